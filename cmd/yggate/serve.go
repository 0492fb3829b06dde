package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/yggate/yggate/gateway"
)

var cmdServe = command{
	name: "serve", args: "[FLAGS]",
	short: "run the gateway",
	long: `
Runs until SIGINT or SIGTERM. SIGHUP reads the configuration anew, as
` + "`yggate reload`" + ` does: peers and limits change at once, all else at the next start.
`,
	run: func(ctx context.Context, sh *shell, c *command, args []string) error {
		f := newFlags(sh, c)
		if _, err := f.parse(args, 0, 0); err != nil {
			return err
		}
		conf, err := f.load(sh)
		if err != nil {
			return err
		}
		hup := make(chan os.Signal, 1)
		signal.Notify(hup, syscall.SIGHUP)
		defer signal.Stop(hup)
		return gateway.Run(ctx, gateway.Options{Config: conf, Log: gateway.NewLogger(sh.err, conf.Log), Reload: hup})
	},
}
