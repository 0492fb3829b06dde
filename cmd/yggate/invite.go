package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"rsc.io/qr"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

var cmdInvite = command{
	name: "invite", args: "{--name NAME [--expect-domain DOMAIN]... | list | revoke ID} [FLAGS]",
	short: "make a string with which another grid becomes your peer",
	long: `
Prints one string (and on a terminal its QR code) for the operator of the other
grid, who runs ` + "`yggate accept STRING`" + `. It works once, and until it expires. Give it
over a way that you trust: whoever has it can become that peer.

Domains that you name with --expect-domain are the peer's at once when it claims
them or what lies below them, for XMPP and as Matrix server names alike, with any
port. With a port, as in b.grid:8448, that one Matrix server name is meant. A peer
that claims anything else waits for ` + "`yggate peer approve`" + `.

list      the invites made here in the last month or so; their strings are not kept
revoke    make an open invite worthless
`,
	run: runInvite,
}

func runInvite(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	name := f.String("name", "", "your `NAME` for the other grid")
	ttl := f.String("ttl", "72h", "`TIME` for which the invite is good")
	noQR := f.Bool("no-qr", false, "print no QR code")
	var expect list
	f.Var(&expect, "expect-domain", "a `DOMAIN` or Matrix server name that the other grid will claim; may be given several times")
	rest, err := f.parse(args, 0, 2)
	if err != nil {
		return err
	}
	d, err := config.ParseDuration(*ttl)
	switch {
	case len(rest) == 1 && rest[0] == "list", len(rest) == 2 && rest[0] == "revoke":
	case len(rest) == 1 && rest[0] == "revoke":
		return badUsage("revoke needs the id of an invite (`yggate invite list` has them)")
	case len(rest) > 0:
		return badUsage("%q is neither list nor revoke", rest[0])
	case *name == "":
		return badUsage("--name is needed: what you will call the other grid, such as bob")
	case err != nil:
		return badUsage("--ttl: %v", err)
	}
	cl, err := f.client(sh)
	switch {
	case err != nil:
		return err
	case len(rest) == 1:
		return listInvites(ctx, sh, f, cl)
	case len(rest) == 2:
		done, err := cl.Revoke(ctx, rest[1])
		if err != nil {
			return err
		}
		return tellDone(sh, f, done)
	}
	inv, err := cl.Invite(ctx, admin.InviteRequest{Name: *name, Expect: expect, TTL: d})
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(sh.out, inv)
	}
	return tellInvite(sh, inv, *noQR)
}

// tellInvite prints the string, for a person what it means as well.
func tellInvite(sh *shell, inv admin.Invite, noQR bool) error {
	// The string goes alone to standard output, so that a script can take it.
	fmt.Fprintln(sh.out, inv.Invite)
	if isTerminal(sh.out) && !noQR {
		if err := printQR(sh.out, inv.Invite); err != nil {
			return err
		}
	}
	fmt.Fprintf(sh.err, "\nThis invite makes whoever accepts it your peer %q, once, until %s.\n", inv.Name, inv.Expires.Local().Format("2006-01-02 15:04"))
	if !inv.Reachable {
		fmt.Fprintln(sh.err, "It carries no peering, because mesh.advertise is empty: the other side must be in the same Yggdrasil network already.")
	}
	fmt.Fprintf(sh.err, "Next: the other operator runs: yggate accept STRING\n      then you see the peer in: yggate peer show %s\n      yggate invite revoke %s takes it back\n", inv.Name, inv.ID)
	return nil
}

func listInvites(ctx context.Context, sh *shell, f *flags, cl *admin.Client) error {
	made, err := cl.Invites(ctx)
	switch {
	case err != nil:
		return err
	case f.json:
		return printJSON(sh.out, made)
	case len(made) == 0:
		fmt.Fprintln(sh.out, "No invites yet. Next: yggate invite --name NAME")
		return nil
	}
	var rows [][]string
	for _, m := range made {
		status := m.Status
		if m.UsedBy != "" {
			status += " by " + federation.GridID(m.UsedBy).Short()
		}
		rows = append(rows, []string{m.ID, m.Name, status, m.Expires.Local().Format("2006-01-02 15:04"), strings.Join(m.Expect, " ")})
	}
	return table(sh.out, []string{"ID", "NAME", "STATUS", "EXPIRES", "EXPECTED DOMAINS"}, rows)
}

// printQR draws two rows of modules in each line of half-block characters, dark on
// light with the quiet zone that readers need, whatever the terminal's colours.
func printQR(w io.Writer, text string) error {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("draw QR code: %w", err)
	}
	const quiet = 2
	var b strings.Builder
	for y := -quiet; y < code.Size+quiet; y += 2 {
		b.WriteString("\x1b[30;107m")
		for x := -quiet; x < code.Size+quiet; x++ {
			switch top, bottom := code.Black(x, y), code.Black(x, y+1); {
			case top && bottom:
				b.WriteRune('█')
			case top:
				b.WriteRune('▀')
			case bottom:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		b.WriteString("\x1b[0m\n")
	}
	_, err = io.WriteString(w, b.String())
	return err
}
