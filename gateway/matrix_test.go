//go:build integration

package gateway_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// parish is grids with a Dendrite each, every two of them peers, whose gateways
// meet over the mesh nodes that they embed.
type parish struct {
	grids []*peertest.Grid
	users []*peertest.MatrixClient // one on each
}

// newParish starts grids a, b, c, of which the first can be reached by the others.
func newParish(t *testing.T, names ...string) *parish {
	t.Helper()
	peertest.Require(t, "dendrite")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	p := &parish{}
	for i, name := range names {
		cfg := peertest.GridConfig{Name: name, Matrix: true, Domain: name + ".grid.test", Dir: filepath.Join(dir, name)}
		if i == 0 {
			cfg.Mesh = []string{"--mesh-listen", mesh, "--advertise", mesh}
		} else {
			cfg.Mesh = []string{"--mesh-peer", mesh}
		}
		g := newGrid(t, cfg)
		talkative := g.Homeserver.Config()
		talkative.LogLevel = "debug" // says when it sends what
		if err := g.Homeserver.Configure(talkative); err != nil {
			t.Fatal(err)
		}
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for _, other := range p.grids {
			if err := peertest.Pair(ctx, other, g); err != nil {
				t.Fatal(err)
			}
		}
		p.grids = append(p.grids, g)
		p.users = append(p.users, peertest.MatrixUser(t, g.Homeserver, []string{"alice", "bob", "carol"}[i]))
	}
	return p
}

// TestMatrixFederation is what users do on Matrix, across grids.
func TestMatrixFederation(t *testing.T) {
	t.Parallel()
	p := newParish(t, "a", "b", "c")
	ctx := t.Context()
	if err := peertest.MatrixConversation(ctx, p.users[0], p.users[1], os.Stderr); err != nil {
		t.Fatal(err)
	}
	if _, err := peertest.MatrixGathering(ctx, os.Stderr, p.users[0], p.users[1:]...); err != nil {
		t.Fatal(err)
	}
}
