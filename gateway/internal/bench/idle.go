package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

const (
	idlePeers = 20
	idleFor   = 30 * time.Second
)

// benchIdle reports what a gateway with 20 live peers takes when nobody talks.
func benchIdle(ctx context.Context, o *options, dir string) (err error) {
	fmt.Fprintf(o.out, "\n# Idle: one gateway with %d live peers\n", idlePeers)
	program, err := peertest.Build(ctx, "cmd/yggate")
	if err != nil {
		return err
	}
	if st, err := os.Stat(program); err == nil {
		fmt.Fprintf(o.out, "binary: %.1f MiB\n", float64(st.Size())/(1<<20))
	}
	var started []*peertest.Gateway
	defer func() {
		for _, g := range started {
			err = errors.Join(err, g.Stop())
		}
	}()
	start := func(name string, flags ...string) (*peertest.Gateway, error) {
		g, err := peertest.NewGateway(ctx, name, filepath.Join(dir, name), nil, program)
		if err != nil {
			return nil, err
		}
		init := []string{"--name", name, "--domain", name + ".grid.test",
			"--server", netip.AddrPortFrom(peertest.Loopback(), 5269).String(),
			"--listen", netip.AddrPortFrom(peertest.Loopback(), 5269).String(),
			"--dns", netip.AddrPortFrom(peertest.Loopback(), 5353).String()}
		if err := g.Init(ctx, append(init, flags...)...); err != nil {
			return nil, err
		}
		if _, err := g.Setup(ctx, setup.Prosody); err != nil {
			return nil, err
		}
		started = append(started, g)
		return g, g.Start(ctx)
	}
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	hub, err := start("hub", "--mesh-listen", mesh, "--advertise", mesh)
	if err != nil {
		return err
	}
	alone, err := hub.Memory()
	if err != nil {
		return err
	}
	for i := range idlePeers {
		name := fmt.Sprintf("peer%02d", i)
		g, err := start(name)
		if err != nil {
			return err
		}
		invite, err := hub.Invite(ctx, name, name+".grid.test")
		if err != nil {
			return err
		}
		if err := g.Accept(ctx, invite, "hub"); err != nil {
			return err
		}
		if _, err := hub.Run(ctx, "status", "--json", "--wait", "60s", "--up", name); err != nil {
			return err
		}
	}
	return watchIdle(ctx, o, hub, alone)
}

func watchIdle(ctx context.Context, o *options, hub *peertest.Gateway, alone peertest.Memory) error {
	before, err := hub.CPU()
	if err != nil {
		return err
	}
	select { // the length of the watch is what is measured
	case <-time.After(idleFor):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := hub.CPU()
	if err != nil {
		return err
	}
	mem, err := hub.Memory()
	if err != nil {
		return err
	}
	mib := func(n int64) float64 { return float64(n) / (1 << 20) }
	fmt.Fprintf(o.out, "resident: %.1f MiB at start, %.1f MiB with %d peers (peak %.1f MiB)\n", mib(alone.RSS), mib(mem.RSS), idlePeers, mib(mem.Peak))
	o.goals = append(o.goals,
		goal{what: "idle gateway with 20 peers, resident", have: mib(mem.RSS), want: 48, atMost: true, unit: "MiB"},
		goal{what: "idle gateway with 20 peers, CPU", have: 100 * (after - before).Seconds() / idleFor.Seconds(), want: 1, atMost: true, unit: "% of a core"},
	)
	return nil
}
