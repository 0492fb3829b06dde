package main

import (
	"context"
	"fmt"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
)

var cmdDomain = command{
	name: "domain", args: "{list | assign DOMAIN PEER [--protocol PROTOCOL]} [FLAGS]",
	short: "show who holds which domain, and decide conflicts",
	long: `
list      this grid's own domains and every claim of a peer
assign    give a domain to one of the peers that claim it

The first approved peer that claims a domain holds it. A later claimant is in
conflict, and nothing goes to it, until you assign the domain. A claim that a peer
adds later is pending until then as well, unless it lies below a domain that the
peer holds.

Domains are held for each protocol by itself; for Matrix they are server names,
which may have a port. Without --protocol, assign takes the one for which the
peer's claim is undecided.
`,
	run: runDomain,
}

func runDomain(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	proto := f.String("protocol", "", "the `PROTOCOL` of the claim, xmpp or matrix (default: that of the undecided claim)")
	rest, err := f.parse(args, 1, 3)
	if err != nil {
		return err
	}
	switch {
	case rest[0] == "list" && len(rest) == 1, rest[0] == "assign" && len(rest) == 3:
	case rest[0] == "assign":
		return badUsage("assign needs a domain and a peer")
	default:
		return badUsage("want list, or assign DOMAIN PEER")
	}
	cl, err := f.client(sh)
	if err != nil {
		return err
	}
	if rest[0] == "assign" {
		done, err := cl.Assign(ctx, admin.DomainRequest{Protocol: *proto, Domain: rest[1], Peer: rest[2]})
		if err != nil {
			return err
		}
		return tellDone(sh, f, done)
	}
	domains, err := cl.Domains(ctx)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(sh.out, domains)
	}
	var open *admin.Domain
	var rows [][]string
	for i, d := range domains {
		rows = append(rows, []string{d.Domain, d.Protocol, d.Peer, d.Status})
		if d.Status == "conflict" && open == nil {
			open = &domains[i]
		}
	}
	if err := table(sh.out, []string{"DOMAIN", "PROTOCOL", "CLAIMED BY", "STATUS"}, rows); err != nil {
		return err
	}
	if open != nil {
		fmt.Fprintf(sh.out, "Next: decide with %s\n", assignCommand(*open))
	}
	return nil
}

// assignCommand is the command that decides who holds a domain.
func assignCommand(d admin.Domain) string {
	cmd := "yggate domain assign " + d.Domain + " PEER"
	if d.Protocol != string(federation.XMPP) {
		cmd += " --protocol " + d.Protocol
	}
	return cmd
}
