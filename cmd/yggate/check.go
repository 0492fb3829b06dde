package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway"
	"github.com/yggate/yggate/gateway/config"
)

var cmdCheck = command{
	name: "check", args: "[FLAGS]",
	short: "check the configuration and the keys without running anything",
	long: `
Reads the configuration and the keys and shows every mistake with its file, line
and column. Exits 0 when the gateway can start with them, 1 when not.
`,
	run: runCheck,
}

// checked is the outcome, as --json prints it.
type checked struct {
	OK       bool     `json:"ok"`
	Config   string   `json:"config"`
	Errors   []string `json:"errors"`
	Warnings []string `json:"warnings"`
	Grid     string   `json:"grid,omitempty"`
}

func runCheck(_ context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	if _, err := f.parse(args, 0, 0); err != nil {
		return err
	}
	res := check(f.config)
	if f.json {
		if err := printJSON(sh.out, res); err != nil {
			return err
		}
	} else {
		res.tell(sh)
	}
	if !res.OK {
		return &toldError{errors.New("the check failed")}
	}
	return nil
}

func check(path string) checked {
	res := checked{Config: path, Errors: []string{}, Warnings: []string{}}
	fail := func(err error) { res.Errors = append(res.Errors, err.Error()) }
	c, err := config.Load(path)
	var ps config.Problems
	switch {
	case errors.As(err, &ps):
		for _, p := range ps {
			res.Errors = append(res.Errors, p.String())
		}
		return res
	case err != nil:
		fail(unread(err))
		return res
	}
	res.Warnings = append(res.Warnings, c.Warnings...)
	if id, err := federation.LoadIdentity(c.State); err != nil {
		fail(err)
	} else {
		res.Grid = string(id.ID())
	}
	if _, err := federation.LoadKeyFile(c.MeshKey()); err != nil {
		fail(err)
	}
	for _, err := range gateway.CheckFiles(c) {
		fail(err)
	}
	res.OK = len(res.Errors) == 0
	return res
}

func (res checked) tell(sh *shell) {
	for _, e := range res.Errors {
		fmt.Fprintln(sh.err, e)
	}
	for _, w := range res.Warnings {
		fmt.Fprintf(sh.err, "warning: %s\n", w)
	}
	if !res.OK {
		fmt.Fprintf(sh.err, "%d mistake(s); mend them and run `yggate check` again\n", len(res.Errors))
		return
	}
	fmt.Fprintf(sh.out, "%s is good; grid %s\nNext: yggate serve, or yggate reload when it runs already\n", res.Config, federation.GridID(res.Grid).Short())
}
