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

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/guide"
	"github.com/yggate/yggate/federation/localca"
	matrixsetup "github.com/yggate/yggate/federation/matrix/setup"
	mqttsetup "github.com/yggate/yggate/federation/mqtt/setup"
	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

var cmdSetup = command{
	name: "setup", args: "SERVER [FLAGS]",
	short: "print the lines to add to your XMPP server, homeserver or broker",
	long: `
SERVER is ejabberd or prosody for XMPP, dendrite, synapse, conduit or ejabberd-matrix
(its Matrix gateway) for Matrix, and mosquitto or ejabberd-mqtt (its broker) for MQTT.

Prints exactly the lines that the server needs, and writes beside the configuration
what they refer to: the certificate of a CA that exists only for this purpose, and for
an XMPP server the certificate by which the gateway recognises it. It changes nothing
of the server's. Run it again to renew that certificate, or after you changed your
domains.
`,
	run: runSetup,
}

// guided is what setup tells, as --json prints it.
type guided struct {
	Certificate string       `json:"certificate,omitempty"` // XMPP
	CA          string       `json:"ca,omitempty"`          // XMPP and Matrix
	Guide       *guide.Guide `json:"guide"`
}

func runSetup(ctx context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	dir := f.String("cert-dir", "", "the `DIRECTORY` for certificates (default: xmpp or matrix, beside the configuration)")
	var peers list
	f.Var(&peers, "peer-domain", "without DNS or proxy: a `DOMAIN` of a peer (default: those of the running gateway)")
	rest, err := f.parse(args, 1, 1)
	if err != nil {
		return err
	}
	server := rest[0]
	protocol := federation.XMPP
	switch {
	case slices.Contains(matrixsetup.Servers(), server):
		protocol = federation.Matrix
	case slices.Contains(mqttsetup.Servers(), server):
		protocol = federation.MQTT
	case !slices.Contains(setup.Servers(), server):
		return badUsage("%q is none of %s", server, strings.Join(slices.Concat(setup.Servers(), matrixsetup.Servers(), mqttsetup.Servers()), ", "))
	}
	conf, err := f.load(sh)
	if err != nil {
		return err
	}
	if !slices.Contains(conf.Protocols(), protocol) {
		return fmt.Errorf("%s has no section %s, so there is no %s to set up; `yggate init --print` shows one", conf.Path, protocol, server)
	}
	if *dir == "" {
		*dir = filepath.Join(filepath.Dir(conf.Path), string(protocol))
	}
	if *dir, err = filepath.Abs(*dir); err != nil {
		return err
	}
	s := setupCall{conf: conf, server: server, dir: *dir, peers: peers}
	var told guided
	var notes []string
	switch protocol {
	case federation.Matrix:
		told, notes, err = s.matrix(ctx)
	case federation.MQTT:
		told.Guide, err = mqttsetup.For(server, mqttsetup.Params{Broker: conf.MQTT.Broker, User: conf.MQTT.User, State: conf.MQTT.State})
	default:
		told, notes, err = s.xmpp(ctx)
	}
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(sh.out, told)
	}
	for _, n := range notes {
		fmt.Fprintln(sh.err, n)
	}
	_, err = told.Guide.WriteTo(sh.out)
	return err
}

// setupCall is a command line of setup, understood.
type setupCall struct {
	conf   *config.Config
	server string
	dir    string // for certificates
	peers  []string
}

// xmpp issues what an XMPP server needs, and says what it did.
func (s *setupCall) xmpp(ctx context.Context) (told guided, notes []string, err error) {
	x := s.conf.XMPP
	p := setup.Params{
		Domains: x.Domains, MUC: x.MUC, Gateway: x.Listen,
		Cert: filepath.Join(s.dir, "server.pem"), CA: filepath.Join(s.dir, localca.CertFile),
		Mode: setup.Hosts, PeerDomains: s.peers,
	}
	if x.DNS != nil {
		p.Mode, p.DNS = setup.DNS, x.DNS.Listen
	} else if len(s.peers) == 0 {
		if p.PeerDomains, err = s.known(ctx, federation.XMPP); err != nil {
			return told, nil, fmt.Errorf("hosts mode lists the domains of your peers: %w, or name them with --peer-domain", err)
		}
	}
	told = guided{Certificate: p.Cert, CA: p.CA}
	if told.Guide, err = setup.For(s.server, p); err != nil {
		return told, nil, err
	}
	ca, err := s.writeCA(p.CA)
	if err != nil {
		return told, nil, err
	}
	domains := slices.Concat(p.Domains, p.MUC)
	if err := ca.WriteServer(p.Cert, domains, 0o640); err != nil {
		return told, nil, err
	}
	notes = []string{fmt.Sprintf("Wrote %s, the certificate for %s, and %s.", p.Cert, strings.Join(domains, ", "), p.CA)}
	// On Debian each server has a group of its own name.
	if err := giveTo(p.Cert, s.server); err != nil {
		notes = append(notes, fmt.Sprintf("The server must be able to read %s (its key is in it): %v.", p.Cert, err))
	} else {
		notes = append(notes, fmt.Sprintf("The group %s may read the certificate.", s.server))
	}
	return told, append(notes, ""), nil
}

// matrix writes what a homeserver needs, and says what it did.
func (s *setupCall) matrix(ctx context.Context) (told guided, notes []string, err error) {
	m := s.conf.Matrix
	p := matrixsetup.Params{
		Servers: m.ServerNames, CA: filepath.Join(s.dir, localca.CertFile), Mode: matrixsetup.DefaultMode(s.server),
		Proxy: m.Proxy, PeerServers: s.peers, Upstream: m.UpstreamProxy != "",
	}
	if !m.Proxy.IsValid() {
		p.Mode = matrixsetup.Hosts
	}
	if p.HostsMode() && len(m.Listen) > 0 {
		p.Listen = m.Listen[0].Addr()
	}
	if len(s.peers) == 0 && matrixsetup.NeedsPeers(s.server, p.Mode) {
		if p.PeerServers, err = s.known(ctx, federation.Matrix); err != nil {
			return told, nil, fmt.Errorf("these lines name the servers of your peers: %w, or name them with --peer-domain", err)
		}
	}
	told = guided{CA: p.CA}
	if told.Guide, err = matrixsetup.For(s.server, p); err != nil {
		return told, nil, err
	}
	if _, err := s.writeCA(p.CA); err != nil {
		return told, nil, err
	}
	return told, []string{fmt.Sprintf("Wrote %s, which the homeserver has to believe for peers' names.", p.CA), ""}, nil
}

// known asks the running gateway for the names that peers hold.
func (s *setupCall) known(ctx context.Context, proto federation.Protocol) ([]string, error) {
	domains, err := admin.NewClient(admin.SocketPath(s.conf.State)).Domains(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range domains {
		if d.Status == string(federation.ClaimActive) && d.Protocol == string(proto) && !slices.Contains(s.conf.Own()[proto], d.Domain) {
			out = append(out, d.Domain)
		}
	}
	return out, nil
}

// writeCA writes the certificate of the local CA where the server can read it.
func (s *setupCall) writeCA(path string) (*localca.CA, error) {
	ca, err := localca.Open(s.conf.LocalCA())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("write certificates: %w", err)
	}
	if err := os.WriteFile(path, ca.CertPEM(), 0o644); err != nil {
		return nil, fmt.Errorf("write certificates: %w", err)
	}
	return ca, nil
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
