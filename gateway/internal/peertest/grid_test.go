//go:build integration

package peertest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/yggate/yggate/federation/xmpp/setup"
)

func startGrid(t *testing.T, cfg GridConfig) *Grid {
	t.Helper()
	cfg.Dir = filepath.Join(t.TempDir(), cfg.Name)
	g, err := NewGrid(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, file := range []string{g.Gateway.Log, g.Server.LogFile()} {
				t.Logf("%s:\n%s", file, tail(file, 40))
			}
		}
	})
	if err := g.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return g
}

func gridUser(t *testing.T, g *Grid, name string) Party {
	t.Helper()
	p, err := g.User(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// Two grids on this machine, set up as operators do it, talk in either mode.
func TestGrids(t *testing.T) {
	Require(t, "ejabberd", "prosody")
	for _, mode := range []setup.Mode{setup.DNS, setup.Hosts} {
		t.Run(string(mode), func(t *testing.T) {
			mesh := fmt.Sprintf("tcp://%s:9001", Loopback())
			a := startGrid(t, GridConfig{
				Name: "alpha", Kind: setup.Ejabberd, Domain: "a.grid.test", Mode: mode,
				PeerDomains: []string{"b.grid.test", "conference.b.grid.test"},
				Mesh:        []string{"--mesh-listen", mesh, "--advertise", mesh},
			})
			b := startGrid(t, GridConfig{
				Name: "beta", Kind: setup.Prosody, Domain: "b.grid.test", Mode: mode,
				PeerDomains: []string{"a.grid.test", "conference.a.grid.test"},
			})
			if err := Pair(t.Context(), a, b); err != nil {
				t.Fatal(err)
			}
			if err := Conversation(t.Context(), gridUser(t, a, "alice"), gridUser(t, b, "bob"), os.Stderr); err != nil {
				t.Fatal(err)
			}
		})
	}
}
