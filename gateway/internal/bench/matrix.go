package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// loadRooms is how many rooms the users of a pair of homeservers share.
const loadRooms = 4

// homes is two homeservers with a user each.
type homes struct {
	name  string
	users [2]*peertest.MatrixClient
	rooms []id.RoomID // both users are in all of them
}

// benchMatrix compares two Dendrites that federate with each other directly with
// two that have a gateway each.
func benchMatrix(ctx context.Context, o *options, dir string) (err error) {
	if err := peertest.Need("dendrite"); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "\n# Matrix: Dendrite <-> Dendrite, direct and through two gateways (data in %s)\n", dir)
	var stops []func() error
	defer func() {
		for i := len(stops) - 1; i >= 0; i-- {
			err = errors.Join(err, stops[i]())
		}
	}()
	servers, err := peertest.StartDirectMatrix(ctx, filepath.Join(dir, "direct"), "da.grid.test", "db.grid.test")
	if err != nil {
		return err
	}
	stops = append(stops, servers.Stop)
	a, b, stop, err := startMatrixGrids(ctx, dir)
	if err != nil {
		return err
	}
	stops = append(stops, stop)
	direct, gated := &homes{name: "direct"}, &homes{name: "gateways"}
	for _, h := range []struct {
		*homes
		at [2]*peertest.Dendrite
	}{{direct, [2]*peertest.Dendrite(servers.Dendrites)}, {gated, [2]*peertest.Dendrite{a.Homeserver, b.Homeserver}}} {
		if err := h.enter(ctx, h.at); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		stops = append(stops, h.leave)
	}
	bare, stop, err := startBare(ctx, filepath.Join(dir, "bare"))
	if err != nil {
		return err
	}
	stops = append(stops, stop)
	link, stop, err := startLink(ctx, filepath.Join(dir, "link"))
	if err != nil {
		return err
	}
	stops = append(stops, stop)

	m := &matrixBench{o: o, direct: direct, gated: gated, gateways: []*peertest.Gateway{a.Gateway, b.Gateway}}
	for _, part := range []func(context.Context) error{m.latency, m.rate, func(ctx context.Context) error { return m.media(ctx, bare, link) }, m.verification} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// matrixBench is the two systems and what stands between the second's servers.
type matrixBench struct {
	o             *options
	direct, gated *homes
	gateways      []*peertest.Gateway
}

// startMatrixGrids starts two paired grids with a homeserver each.
func startMatrixGrids(ctx context.Context, dir string) (a, b *peertest.Grid, stop func() error, err error) {
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	return pairOf(ctx, dir, peertest.GridConfig{
		Name: "a", Matrix: true, Domain: "ga.grid.test",
		Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh, "--metrics", metricsAddr("a")},
	}, peertest.GridConfig{
		Name: "b", Matrix: true, Domain: "gb.grid.test", Mesh: []string{"--metrics", metricsAddr("b")},
	})
}

// enter logs a user in on each server and brings both into rooms.
func (h *homes) enter(ctx context.Context, at [2]*peertest.Dendrite) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.leave())
		}
	}()
	for i, name := range []string{"alice", "bob"} {
		if h.users[i], err = at[i].User(ctx, name); err != nil {
			return err
		}
	}
	alice, bob := h.users[0], h.users[1]
	for range loadRooms {
		made, err := alice.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "public_chat"})
		if err != nil {
			return fmt.Errorf("create a room: %w", err)
		}
		if _, err := bob.JoinRoom(ctx, made.RoomID.String(), &mautrix.ReqJoinRoom{Via: []string{alice.Server()}}); err != nil {
			return fmt.Errorf("join a room: %w", err)
		}
		h.rooms = append(h.rooms, made.RoomID)
	}
	// Until the first message is through, homeservers ask for each other's keys,
	// devices and presence.
	for _, room := range h.rooms {
		for i := range h.users {
			if _, err := h.exchange(ctx, room, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (h *homes) leave() error {
	var errs []error
	for _, u := range h.users {
		if u != nil {
			errs = append(errs, u.Close())
		}
	}
	return errors.Join(errs...)
}
