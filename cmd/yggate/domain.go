package main

import (
	"context"
	"fmt"

	"github.com/yggate/yggate/gateway/admin"
)

var cmdDomain = command{
	name: "domain", args: "{list | assign DOMAIN PEER} [FLAGS]",
	short: "show who holds which domain, and decide conflicts",
	long: `
list      this grid's own domains and every claim of a peer
assign    give a domain to one of the peers that claim it

The first approved peer that claims a domain holds it. A later claimant is in
conflict, and nothing goes to it, until you assign the domain.
`,
	run: runDomain,
}

func runDomain(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	proto := f.String("protocol", "xmpp", "the `PROTOCOL` of the claim")
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
	conflict := ""
	var rows [][]string
	for _, d := range domains {
		rows = append(rows, []string{d.Domain, d.Protocol, d.Peer, d.Status})
		if d.Status == "conflict" && conflict == "" {
			conflict = d.Domain
		}
	}
	if err := table(sh.out, []string{"DOMAIN", "PROTOCOL", "CLAIMED BY", "STATUS"}, rows); err != nil {
		return err
	}
	if conflict != "" {
		fmt.Fprintf(sh.out, "Next: decide with yggate domain assign %s PEER\n", conflict)
	}
	return nil
}
