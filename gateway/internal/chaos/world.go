package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// diskSize is that of each gateway's disk: several times what its state needs when
// all messages wait that may be under way.
const diskSize = 64 << 20

// world is two grids that are peers, and everything that is done to them.
//
//	stand-in a - yggate a - cable - yggate b - stand-in b
type world struct {
	a, b   *site
	cable  *peertest.Cable // between the gateways
	ways   []*way
	ledger *ledger
	tally  tally
	log    *slog.Logger
}

// newWorld builds the two sides in dir and makes them peers.
func newWorld(ctx context.Context, o options, dir string, log *slog.Logger) (w *world, err error) {
	w = &world{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if o.program == "" {
		if o.program, err = peertest.Build(ctx, "cmd/yggate"); err != nil {
			return w, err
		}
	}
	mesh, way := netip.AddrPortFrom(peertest.Loopback(), 9001), netip.AddrPortFrom(peertest.Loopback(), 9001)
	if w.cable, err = peertest.NewCable(way.String(), mesh.String()); err != nil {
		return w, err
	}
	site := func(name string, mesh ...string) (*site, error) {
		cfg := siteConfig{name: name, dir: dir, program: o.program, mesh: mesh}
		if mayMount() {
			cfg.disk = diskSize
		}
		s, err := newSite(ctx, cfg, &w.tally, log)
		if err != nil {
			return s, fmt.Errorf("prepare grid %s: %w", name, err)
		}
		return s, nil
	}
	if w.a, err = site("a", "--mesh-listen", "tcp://"+mesh.String(), "--advertise", "tcp://"+way.String()); err != nil {
		return w, err
	}
	if w.b, err = site("b"); err != nil {
		return w, err
	}
	w.ways = waysBetween(w.a, w.b)
	w.ledger = newLedger(w.ways, o.conversations)
	return w, w.start(ctx)
}

// waysBetween are what users write to each other, and what rooms send to users.
func waysBetween(a, b *site) []*way {
	return []*way{
		{from: a, to: b, fromDomain: a.domain, toDomain: b.domain, kind: "chat"},
		{from: b, to: a, fromDomain: b.domain, toDomain: a.domain, kind: "chat"},
		{from: a, to: b, fromDomain: a.muc, toDomain: b.domain, kind: "groupchat"},
		{from: b, to: a, fromDomain: b.muc, toDomain: a.domain, kind: "groupchat"},
	}
}

// start starts both sides and makes them peers as their operators do.
func (w *world) start(ctx context.Context) error {
	for _, s := range []*site{w.a, w.b} {
		if err := s.gateway.Start(ctx); err != nil {
			return err
		}
		var err error
		if s.server, err = newStandIn(s, w.ledger, filepath.Join(s.state, "xmpp"), w.log); err != nil {
			return err
		}
		if err := s.server.start(); err != nil {
			return err
		}
	}
	invite, err := w.a.gateway.Invite(ctx, w.b.name, w.b.domain, w.b.muc)
	if err != nil {
		return err
	}
	if err := w.b.gateway.Accept(ctx, invite, w.a.name); err != nil {
		return err
	}
	return w.linked(ctx, time.Minute)
}

// linked waits until the link is up on both sides.
func (w *world) linked(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("the link is not up after %v", within))
	defer cancel()
	return await(ctx, 50*time.Millisecond, func() bool { return w.a.linked(ctx) && w.b.linked(ctx) })
}

// stop ends every process and gives everything back.
func (w *world) stop() error {
	var errs []error
	for _, s := range []*site{w.a, w.b} {
		if s != nil {
			errs = append(errs, s.stop())
		}
	}
	if w.cable != nil {
		errs = append(errs, w.cable.Close())
	}
	return errors.Join(errs...)
}
