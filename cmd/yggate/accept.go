package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/yggate/yggate/gateway/admin"
)

var cmdAccept = command{
	name: "accept", args: "STRING [--name NAME] [FLAGS]",
	short: "become the peer of the grid that made an invite",
	long: `
Shows whose invite it is and what accepting it would add, asks, and then makes the
two grids peers. Compare the fingerprint with the other operator. What you say yes
to are the domains shown, each for its protocol; there is nothing to expect besides.
`,
	run: runAccept,
}

func runAccept(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	name := f.String("name", "", "your `NAME` for the other grid (default: what it calls itself)")
	yes := f.Bool("yes", false, "do not ask")
	wait := f.Duration("wait", time.Minute, "give up when the other grid has not answered in this `TIME`")
	rest, err := f.parse(args, 1, 1)
	if err != nil {
		return err
	}
	cl, err := f.client(sh)
	if err != nil {
		return err
	}
	req := admin.AcceptRequest{Invite: rest[0], Name: *name}
	p, err := within(ctx, *wait, func(ctx context.Context) (admin.Preview, error) { return cl.Preview(ctx, req) })
	if err != nil {
		return err
	}
	if req.Name = p.Name; req.Name == "" {
		return badUsage("--name is needed: the other grid calls itself nothing that could be its name here")
	}
	if !*yes {
		tellPreview(sh, p)
		ok, err := confirm(ctx, sh, "Become peers?")
		if err != nil {
			return err
		}
		if !ok {
			fmt.Fprintln(sh.out, "Nothing was changed. The invite is good until it expires.")
			return &toldError{errors.New("declined")}
		}
	}
	req.Domains = p.Domains
	peer, err := within(ctx, *wait, func(ctx context.Context) (admin.Peer, error) { return cl.Accept(ctx, req) })
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(sh.out, peer)
	}
	fmt.Fprintf(sh.out, "%s is now your peer (%s).\n", peer.Name, peer.State)
	for _, d := range peer.Domains {
		fmt.Fprintf(sh.out, "  %s %s: %s\n", d.Protocol, d.Domain, d.Status)
	}
	if peer.There != "active" {
		fmt.Fprintf(sh.out, "On the other side you are %s: its operator has to run `yggate peer approve`.\n", peer.There)
	}
	fmt.Fprintf(sh.out, "Next: yggate status, and yggate route SOMEONE@DOMAIN\n")
	return nil
}

// within gives one request its time; what a person takes to answer in between
// does not count.
func within[T any](ctx context.Context, d time.Duration, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	out, err := do(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the other grid has not answered within %s; `yggate status` shows whether a mesh peering is up, and --wait gives it more time", d)
	}
	return out, err
}

func tellPreview(sh *shell, p admin.Preview) {
	fmt.Fprintf(sh.out, "Invite of the grid\n\n  %s\n\n", p.Fingerprint)
	fmt.Fprintf(sh.out, "  your name for it   %s\n", p.Name)
	if p.Known != "" {
		fmt.Fprintf(sh.out, "  it is known as     %s\n", p.Known)
	}
	for _, d := range p.Domains {
		fmt.Fprintf(sh.out, "  it claims          %s %s (%s)\n", d.Protocol, d.Domain, d.Status)
	}
	for _, uri := range p.Peerings {
		fmt.Fprintf(sh.out, "  mesh peering       %s (kept while it is your peer)\n", uri)
	}
	fmt.Fprintf(sh.out, "  node               %s\n  expires            %s\n\n", p.Node, p.Expires.Local().Format("2006-01-02 15:04"))
}
