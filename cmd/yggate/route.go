package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/yggate/yggate/gateway/admin"
)

var cmdRoute = command{
	name: "route", args: "ADDRESS [--protocol PROTOCOL] [FLAGS]",
	short: "explain where traffic for an address goes, sending nothing",
	long: `
Takes an address of XMPP (bob@b.grid, b.grid), of Matrix (@bob:b.grid, #room:b.grid,
!id:b.grid, b.grid:8448), or a topic of MQTT (mqtt:sensors/hall/temp), and explains
hop by hop what the running gateway would do with traffic to it: whose domain it is,
or who gets the topic and as what, whether that peer may have it, whether the link is
up. Exits 1 where the way ends early.

Quote what begins with # or !, because shells have these for themselves:
yggate route '#room:b.grid'. A name alone is taken for an XMPP domain where XMPP
runs; --protocol decides otherwise. Where MQTT runs alone, a topic needs no mqtt:.
`,
	run: func(ctx context.Context, sh *shell, c *command, args []string) error {
		f := newFlags(sh, c).withJSON()
		proto := f.String("protocol", "", "the `PROTOCOL` of the address, xmpp, matrix or mqtt (default: as it is written)")
		rest, err := f.parse(args, 0, 1)
		if err != nil {
			return err
		}
		if len(rest) == 0 {
			return badUsage("an address is needed; quote one that begins with # or !, as in '#room:b.grid', or the shell takes it away")
		}
		cl, err := f.client(sh)
		if err != nil {
			return err
		}
		r, err := cl.Route(ctx, admin.RouteRequest{Address: rest[0], Protocol: *proto})
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
