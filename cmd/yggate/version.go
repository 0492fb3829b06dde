package main

import (
	"context"
	"fmt"
	"runtime"

	"github.com/yggate/yggate/gateway"
)

var cmdVersion = command{
	name: "version", args: "[FLAGS]",
	short: "print the version",
	long:  `Prints the version of yggate and of Go, and the platform.`,
	run: func(_ context.Context, sh *shell, c *command, args []string) error {
		f := newFlags(sh, c).withJSON()
		if _, err := f.parse(args, 0, 0); err != nil {
			return err
		}
		if f.json {
			return printJSON(sh.out, map[string]string{
				"version": gateway.Version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			})
		}
		_, err := fmt.Fprintf(sh.out, "yggate %s (%s, %s/%s)\n", gateway.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return err
	},
}
