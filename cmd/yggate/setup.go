package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

var cmdSetup = command{
	name: "setup", args: "{ejabberd | prosody} [FLAGS]",
	short: "issue your XMPP server's certificate and print the lines to add to it",
	long: `
Issues, from a CA that exists only for this purpose, the certificate by which the
gateway recognises your XMPP server, and prints exactly the lines that the server
needs. It changes nothing of the server's. Run it again to renew the certificate or
after you changed your domains.
`,
	run: runSetup,
}

// guided is what setup tells, as --json prints it.
type guided struct {
	Certificate string       `json:"certificate"`
	CA          string       `json:"ca"`
	Guide       *setup.Guide `json:"guide"`
}

func runSetup(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	dir := f.String("cert-dir", "", "the `DIRECTORY` for the certificate and the CA's own (default: xmpp, beside the configuration)")
	var peers list
	f.Var(&peers, "peer-domain", "hosts mode: a `DOMAIN` of a peer (default: those of the running gateway)")
	rest, err := f.parse(args, 1, 1)
	if err != nil {
		return err
	}
	server := rest[0]
	if !slices.Contains(setup.Servers(), server) {
		return badUsage("%q is none of %s", server, strings.Join(setup.Servers(), ", "))
	}
	conf, err := f.load(sh)
	if err != nil {
		return err
	}
	if conf.XMPP == nil {
		return fmt.Errorf("%s has no section xmpp, so there is no XMPP server to set up; `yggate init --print` shows one", conf.Path)
	}
	if *dir == "" {
		*dir = filepath.Join(filepath.Dir(conf.Path), "xmpp")
	}
	if *dir, err = filepath.Abs(*dir); err != nil {
		return err
	}
	p := setup.Params{
		Domains: conf.XMPP.Domains, MUC: conf.XMPP.MUC, Gateway: conf.XMPP.Listen,
		Cert: filepath.Join(*dir, "server.pem"), CA: filepath.Join(*dir, localca.CertFile),
		Mode: setup.Hosts, PeerDomains: peers,
	}
	if conf.XMPP.DNS != nil {
		p.Mode, p.DNS = setup.DNS, conf.XMPP.DNS.Listen
	} else if len(peers) == 0 {
		if p.PeerDomains, err = knownDomains(ctx, conf); err != nil {
			return err
		}
	}
	guide, err := setup.For(server, p)
	if err != nil {
		return err
	}
	notes, err := issue(conf, p, server)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(sh.out, guided{p.Cert, p.CA, guide})
	}
	for _, n := range notes {
		fmt.Fprintln(sh.err, n)
	}
	_, err = guide.WriteTo(sh.out)
	return err
}

// knownDomains asks the running gateway whose domains it would lead to.
func knownDomains(ctx context.Context, conf *config.Config) ([]string, error) {
	domains, err := admin.NewClient(admin.SocketPath(conf.State)).Domains(ctx)
	if err != nil {
		return nil, fmt.Errorf("hosts mode lists the domains of your peers: %w, or name them with --peer-domain", err)
	}
	var out []string
	for _, d := range domains {
		if d.Status == "active" && d.Protocol == "xmpp" {
			out = append(out, d.Domain)
		}
	}
	return out, nil
}

// issue writes the server's certificate and the CA's own where the server can read
// them, and says what it did.
func issue(conf *config.Config, p setup.Params, server string) ([]string, error) {
	ca, err := localca.Open(conf.LocalCA())
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(p.Cert)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("write certificates: %w", err)
	}
	if err := os.WriteFile(p.CA, ca.CertPEM(), 0o644); err != nil {
		return nil, fmt.Errorf("write certificates: %w", err)
	}
	domains := slices.Concat(p.Domains, p.MUC)
	if err := ca.WriteServer(p.Cert, domains, 0o640); err != nil {
		return nil, err
	}
	notes := []string{fmt.Sprintf("Wrote %s, the certificate for %s, and %s.", p.Cert, strings.Join(domains, ", "), p.CA)}
	// On Debian each server has a group of its own name.
	if err := giveTo(p.Cert, server); err != nil {
		notes = append(notes, fmt.Sprintf("The server must be able to read %s (its key is in it): %v.", p.Cert, err))
	} else {
		notes = append(notes, fmt.Sprintf("The group %s may read the certificate.", server))
	}
	return append(notes, ""), nil
}

func giveTo(path, group string) error {
	g, err := user.LookupGroup(group)
	if err != nil {
		return fmt.Errorf("there is no group %s here; set the owner yourself", group)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("group %s has the id %q; set the owner yourself", group, g.Gid)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("run: sudo chgrp %s %s", group, path)
		}
		return err
	}
	return nil
}
