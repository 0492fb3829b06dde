package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/yggate/yggate/gateway"
)

var cmdRotate = command{
	name: "rotate", args: "[FLAGS]",
	short: "replace this grid's keys by means of the recovery sheet",
	long: `
For when somebody else may have this grid's keys: a copy of the state directory or a
backup is in the wrong hands, or the machine was.

Stop the gateway first. rotate asks for the recovery sheet, shows a new one, once, and
makes the key that the old sheet stands for the grid key, with a new node key beside
it. Whoever has the old keys is refused by each peer as soon as that peer has heard
of the new one, which happens when the gateway runs again. The grid's id, its
fingerprint, its peers and its domains stay.

--mesh-key makes a new mesh key as well, and with it another Yggdrasil address, for
the case that a thief stands in the way of the old one.
`,
	run: runRotate,
}

func runRotate(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c)
	yes := f.Bool("yes", false, "do not ask whether the new sheet is kept")
	mesh := f.Bool("mesh-key", false, "make a new mesh key, too")
	if _, err := f.parse(args, 0, 0); err != nil {
		return err
	}
	conf, err := f.load(sh)
	if err != nil {
		return err
	}
	sheet, err := ask(ctx, sh, "The recovery sheet, on one line:")
	if err != nil {
		return err
	}
	declined := errors.New("declined")
	id, err := gateway.Rotate(conf, gateway.Rotation{Sheet: sheet, MeshKey: *mesh, Keep: func(fresh string) error {
		_, err := fmt.Fprintf(sh.out, "\nThe new recovery sheet, which is shown only now. The old one is worth nothing once\nyou say yes. Print it or write it down:\n\n  %s\n\n", fresh)
		if err != nil || *yes {
			return err
		}
		ok, err := confirm(ctx, sh, "Is it on paper? The keys are replaced then.")
		if err == nil && !ok {
			err = declined
		}
		return err
	}})
	if errors.Is(err, declined) {
		fmt.Fprintln(sh.out, "Nothing was changed. The old sheet is good, the new one is not.")
		return &toldError{err}
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(sh.out, "The grid has a new key (rotation %d). Its fingerprint stays:\n\n  %s\n\nNext: yggate serve, and yggate status until each peer's link is up again.\n",
		id.Rot(), id.ID().Fingerprint())
	return nil
}
