package peertest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/yggate/yggate/federation/guide"
)

// Gateway is a yggate process.
type Gateway struct {
	*Process
	// Config is its configuration file. Until Init or somebody else writes it
	// there is none.
	Config string
	// OnCommand, if set, is told each command that Run runs, without --config.
	OnCommand func(args []string)

	program string
	netns   *Netns
}

// NewGateway prepares a gateway that keeps everything in dir. program is the
// yggate to run; empty builds the one of this module.
func NewGateway(ctx context.Context, name, dir string, ns *Netns, program string) (*Gateway, error) {
	var err error
	if program == "" {
		if program, err = Build(ctx, "cmd/yggate"); err != nil {
			return nil, err
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("prepare gateway %s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("prepare gateway %s: %w", name, err)
	}
	g := &Gateway{Config: filepath.Join(dir, "yggate.yaml"), program: program, netns: ns}
	g.Process = &Process{
		Name: "yggate " + name, Dir: dir, Log: filepath.Join(dir, "yggate.log"),
		Argv: ns.wrap([]string{program, "serve", "--config", g.Config}),
	}
	return g, nil
}

// Init runs `yggate init` for this gateway's configuration and state, with more
// flags as given.
func (g *Gateway) Init(ctx context.Context, flags ...string) error {
	_, err := g.Run(ctx, append([]string{"init", "--state", filepath.Join(g.Dir, "state")}, flags...)...)
	return err
}

// Start starts the gateway and returns when it is ready to federate.
func (g *Gateway) Start(ctx context.Context) error {
	if err := g.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return g.await(ctx, func(ctx context.Context) error {
		_, err := g.run(ctx, "status", "--json", "--wait", "1s")
		return err
	})
}

// Restart stops the gateway if it runs and starts it on the same state.
func (g *Gateway) Restart(ctx context.Context) error {
	if err := g.Stop(); err != nil {
		return err
	}
	return g.Start(ctx)
}

// Run runs a yggate command with this gateway's configuration and returns what
// it printed. The error of a failed command holds what it said.
func (g *Gateway) Run(ctx context.Context, args ...string) (string, error) {
	if g.OnCommand != nil {
		g.OnCommand(args)
	}
	return g.run(ctx, args...)
}

func (g *Gateway) run(ctx context.Context, args ...string) (string, error) {
	argv := append([]string{g.program, args[0], "--config", g.Config}, args[1:]...)
	cmd := g.netns.Command(ctx, argv...)
	cmd.Dir = g.Dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("yggate %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String(), nil
}

// Invite runs `yggate invite` and returns the one string to exchange.
func (g *Gateway) Invite(ctx context.Context, name string, expect ...string) (string, error) {
	args := []string{"invite", "--name", name}
	for _, domain := range expect {
		args = append(args, "--expect-domain", domain)
	}
	out, err := g.Run(ctx, args...)
	return strings.TrimSpace(out), err
}

// Accept runs `yggate accept`.
func (g *Gateway) Accept(ctx context.Context, invite, name string) error {
	_, err := g.Run(ctx, "accept", invite, "--yes", "--name", name)
	return err
}

// Issued is what `yggate setup` wrote for the local server.
type Issued struct {
	Cert  string       `json:"certificate"`
	CA    string       `json:"ca"`
	Guide *guide.Guide `json:"guide"`
	// Pool holds the CA, for the clients of tests.
	Pool *x509.CertPool `json:"-"`
}

// Setup runs `yggate setup` for a server ("ejabberd", "dendrite", ...), by which
// certificates are issued.
func (g *Gateway) Setup(ctx context.Context, server string, flags ...string) (Issued, error) {
	var i Issued
	out, err := g.Run(ctx, append([]string{"setup", server, "--json"}, flags...)...)
	if err != nil {
		return i, err
	}
	if err := json.Unmarshal([]byte(out), &i); err != nil {
		return i, fmt.Errorf("yggate setup %s: read what it printed: %w", server, err)
	}
	if i.CA == "" { // a broker does not need one
		return i, nil
	}
	i.Pool, err = ReadPool(i.CA)
	return i, err
}
