//go:build integration

package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// promised is within what time chat flows again after what failed is back. The
// tests log what it took; they fail only much later, because a test machine may
// be busy with anything.
const (
	promised = 10 * time.Second
	patience = 60 * time.Second
)

// world is two grids whose gateways meet only through a stock Yggdrasil node:
//
//	namespace a              namespace relay         namespace b
//	ejabberd - yggate a --- stock Yggdrasil node --- yggate b - Prosody
//	     10.77.1.1/30      10.77.1.2 10.77.2.2      10.77.2.1/30
type world struct {
	a, b         *peertest.Grid
	relay        *peertest.StockNode
	linkA, linkB *peertest.Link
	alice, bob   peertest.Party
}

func newWorld(t *testing.T) *world {
	t.Helper()
	peertest.Require(t, "ejabberd", "erlang", "prosody", "netns")
	ctx, dir := t.Context(), t.TempDir()
	ns := func(name string) *peertest.Netns {
		n, err := peertest.NewNetns(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, n.Close()) })
		return n
	}
	nsA, nsR, nsB := ns("a"), ns("relay"), ns("b")
	w := &world{}
	var err error
	cable := func(n *peertest.Netns, net int) *peertest.Link {
		end := func(host int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("10.77.%d.%d/30", net, host)) }
		l, err := peertest.Connect(ctx, n, nsR, end(1), end(2))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	w.linkA, w.linkB = cable(nsA, 1), cable(nsB, 2)
	w.relay, err = peertest.NewStockNode(ctx, filepath.Join(dir, "relay"), nsR, netip.MustParseAddrPort("0.0.0.0:9001"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, w.relay.Stop()) })
	if err := w.relay.Start(ctx); err != nil {
		t.Fatal(err)
	}
	grid := func(name, kind, domain string, n *peertest.Netns, net int) *peertest.Grid {
		g, err := peertest.NewGrid(ctx, peertest.GridConfig{
			Name: name, Kind: kind, Domain: domain, Dir: filepath.Join(dir, name), Netns: n, Mode: setup.DNS,
			Mesh: []string{"--mesh-peer", fmt.Sprintf("tcp://10.77.%d.2:9001", net)},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			check(t, g.Stop())
			if t.Failed() {
				t.Logf("%s:\n%s", g.Gateway.Log, g.Gateway.LogTail(80))
				t.Logf("%s:\n%s", g.Server.LogFile(), g.Server.LogTail(40))
			}
		})
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return g
	}
	w.a = grid("a", setup.Ejabberd, "a.grid.test", nsA, 1)
	w.b = grid("b", setup.Prosody, "b.grid.test", nsB, 2)
	if err := peertest.Pair(ctx, w.a, w.b); err != nil {
		t.Fatal(err)
	}
	w.login(t)
	t.Cleanup(func() {
		for _, p := range []peertest.Party{w.alice, w.bob} {
			p.Close() // a session that was killed with its server reports that
		}
	})
	return w
}

// login logs both users in anew.
func (w *world) login(t *testing.T) {
	t.Helper()
	for _, u := range []struct {
		p    *peertest.Party
		g    *peertest.Grid
		name string
	}{{&w.alice, w.a, "alice"}, {&w.bob, w.b, "bob"}} {
		if u.p.Client != nil {
			u.p.Close()
		}
		p, err := u.g.User(t.Context(), u.name)
		if err != nil {
			t.Fatal(err)
		}
		*u.p = p
		if err := p.Available(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// flows tries until a message has gone both ways, and returns how long that took.
func (w *world) flows(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	ctx, cancel := context.WithDeadline(t.Context(), since.Add(patience))
	defer cancel()
	for {
		err := peertest.Exchange(ctx, w.alice, w.bob, io.Discard)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("no chat %v after the return: %v", patience, err)
		}
	}
	took := time.Since(since)
	verdict := "within"
	if took > promised {
		verdict = "LATER THAN"
	}
	t.Logf("chat flows again %v after the return, %s the promised %v", took.Round(10*time.Millisecond), verdict, promised)
	return took
}

// TestTwoGrids is what yggate exists for, on real servers: two grids that share
// nothing but one string and a stranger's Yggdrasil node, and what they outlive.
func TestTwoGrids(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	if !t.Run("conversation", func(t *testing.T) {
		if err := peertest.Conversation(ctx, w.alice, w.bob, testWriter{t}); err != nil {
			t.Fatal(err)
		}
	}) {
		return
	}
	type victim interface {
		Kill() error
		Start(context.Context) error
	}
	for _, v := range []struct {
		name string
		victim
	}{{"gateway a", w.a.Gateway}, {"gateway b", w.b.Gateway}, {"ejabberd", w.a.Server}, {"Prosody", w.b.Server}} {
		t.Run("kill -9 of "+v.name, func(t *testing.T) {
			if err := v.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := v.Start(ctx); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			w.login(t)
			w.flows(t, back)
		})
	}
	t.Run("mesh link cut for 60 s", func(t *testing.T) {
		if err := w.linkB.Cut(ctx); err != nil {
			t.Fatal(err)
		}
		cut := time.Now()
		// What is written meanwhile waits, and nobody is told that it failed.
		id := w.alice.NewID()
		if err := w.alice.SendMessage(ctx, w.bob.JID, "are you there?", id); err != nil {
			t.Fatal(err)
		}
		select { // the length of the cut is what is tested
		case <-time.After(time.Until(cut.Add(60 * time.Second))):
		case <-ctx.Done():
		}
		if err := w.linkB.Restore(ctx); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		wait, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		if _, err := w.bob.Await(wait, "message "+id, func(s *peertest.Stanza) bool { return s.ID == id && s.Type == "chat" }); err != nil {
			t.Fatal(err)
		}
		t.Logf("what was written during the cut came %v after the return", time.Since(back).Round(10*time.Millisecond))
		w.flows(t, back)
	})
	t.Run("stop", func(t *testing.T) {
		// A gateway that is asked to stop says goodbye: the peer knows at once.
		if err := w.b.Gateway.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-w.b.Gateway.Done()
		if err := w.b.Gateway.Start(ctx); err != nil {
			t.Fatal(err)
		}
		w.flows(t, time.Now())
	})
}

// check reports an error of a clean-up.
func check(t *testing.T, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// testWriter shows a transcript in the test's log.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p[:max(0, len(p)-1)])
	return len(p), nil
}
