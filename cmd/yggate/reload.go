package main

import (
	"context"
)

var cmdReload = command{
	name: "reload", args: "[FLAGS]",
	short: "take up changed peers and limits",
	long: `
Makes the running gateway read its configuration anew. Peers and limits take
effect at once; what needs a restart is named. A configuration with mistakes
changes nothing.
`,
	run: func(ctx context.Context, sh *shell, c *command, args []string) error {
		f := newFlags(sh, c).withJSON()
		if _, err := f.parse(args, 0, 0); err != nil {
			return err
		}
		cl, err := f.client(sh)
		if err != nil {
			return err
		}
		done, err := cl.Reload(ctx)
		if err != nil {
			return err
		}
		return tellDone(sh, f, done)
	},
}
