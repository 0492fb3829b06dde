package main

import (
	"context"
	"errors"
	"fmt"
)

var cmdRoute = command{
	name: "route", args: "ADDRESS [FLAGS]",
	short: "explain where traffic for an address goes, sending nothing",
	long: `
Takes a JID or a domain, and explains hop by hop what the running gateway would do
with a stanza to it: whose domain it is, whether that peer may have it, whether the
link and the local server are up. Exits 1 where the way ends early.
`,
	run: func(ctx context.Context, sh *shell, c *command, args []string) error {
		f := newFlags(sh, c).withJSON()
		rest, err := f.parse(args, 1, 1)
		if err != nil {
			return err
		}
		cl, err := f.client(sh)
		if err != nil {
			return err
		}
		r, err := cl.Route(ctx, rest[0])
		if err != nil {
			return err
		}
		if f.json {
			err = printJSON(sh.out, r)
		} else {
			for _, h := range r.Hops {
				mark := "ok  "
				if !h.OK {
					mark = "STOP"
				}
				fmt.Fprintf(sh.out, "%s  %-9s %s\n", mark, h.Step, h.Text)
				if h.Fix != "" {
					fmt.Fprintf(sh.out, "                mend: %s\n", h.Fix)
				}
			}
		}
		if err == nil && !r.OK {
			err = &toldError{errors.New("the way ends early")}
		}
		return err
	},
}
