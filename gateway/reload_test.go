package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/gateway/config"
)

// TestReloadsAtOnce has one reload wait for the database and be given up while another
// one has begun: what that says is in force is.
func TestReloadsAtOnce(t *testing.T) {
	t.Parallel()
	conf := lonelyConfig(t)
	write := func(peer string) {
		t.Helper()
		src := fmt.Sprintf("name: a\nstate: %s\nxmpp: {domains: [a.grid], server: 127.0.0.1:5269, listen: 127.0.0.2:5269}\npeers: {%s: {allow: []}}\n", conf.State, peer)
		if err := os.WriteFile(conf.Path, []byte(src), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := &gateway{log: slog.New(slog.DiscardHandler), metrics: newMetrics()}
	g.conf.Store(conf)
	if err := g.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer g.store.Close()
	// changed waits until a reload has put its configuration in the place of that one.
	changed := func(from *config.Config, within time.Duration) bool {
		for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if g.conf.Load() != from {
				return true
			}
		}
		return false
	}
	release := holdDatabase(t, conf.Database(), "BEGIN IMMEDIATE")
	first, giveUp := context.WithCancel(t.Context())
	ended, endedToo := make(chan error, 1), make(chan error, 1)
	write("bob")
	go func() { _, err := g.reload(first); ended <- err }()
	if !changed(conf, time.Minute) {
		t.Fatal("the first reload does not begin")
	}
	write("carol")
	now := g.conf.Load()
	go func() { _, err := g.reload(t.Context()); endedToo <- err }()
	changed(now, 200*time.Millisecond) // it may, or wait for the first to end
	giveUp()
	if err := <-ended; err == nil {
		t.Fatal("the first reload did not fail")
	}
	release()
	if err := <-endedToo; err != nil {
		t.Fatal(err)
	}
	if _, ok := g.conf.Load().Peers["carol"]; !ok {
		t.Errorf("the second reload succeeded, and the peers are %v", g.conf.Load().PeerNames())
	}
}

// When a peer was last heard is what its link says, whatever was stored while the clock
// was ahead.
func TestLastHeardIsTheLinks(t *testing.T) {
	t.Parallel()
	g := &gateway{log: slog.New(slog.DiscardHandler), metrics: newMetrics()}
	g.conf.Store(lonelyConfig(t))
	if err := g.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer g.store.Close()
	now := time.Now()
	p := &federation.Peer{ID: "bob", LastHeard: now.AddDate(1, 0, 0)}
	if d := g.describe(p, map[federation.GridID]link.PeerStatus{"bob": {LastHeard: now}}); !d.LastHeard.Equal(now) {
		t.Errorf("heard at %v, want %v", d.LastHeard, now)
	}
	if d := g.describe(p, map[federation.GridID]link.PeerStatus{"bob": {}}); !d.LastHeard.Equal(p.LastHeard) {
		t.Errorf("heard at %v, want what is stored", d.LastHeard)
	}
}
