package link

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yggate/yggate/federation"
)

func TestLinkComesUpAndCarriesLanes(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	if e := a.await(true); e.Peer != b.id.ID() || e.Epoch != 1 {
		t.Fatalf("event %+v", e)
	}
	b.await(true)
	s := a.lane(b)
	for range 100 {
		if err := talk(s, "hello"); err != nil {
			t.Fatal(err)
		}
	}
	st := a.Status()
	if len(st) != 1 || st[0].State != Up || st[0].LastHeard.IsZero() || st[0].RTT <= 0 || st[0].Address != b.ip || st[0].Inbound != 1 {
		t.Fatalf("status %+v", st)
	}
	if _, err := a.OpenLane(context.Background(), b.id.ID(), "nonsense"); !errors.Is(err, errRefused) {
		t.Fatalf("unknown lane: %v", err)
	}
	if err := talk(s, "still"); err != nil {
		t.Fatal(err)
	}
}

func TestStreamsFailBeforeDownIsTold(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	a.await(true)
	b.await(true)
	s := a.lane(b)
	if err := talk(s, "x"); err != nil {
		t.Fatal(err)
	}
	b.stop()
	a.await(false)
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("write on a stream of a dead link succeeded")
	}
	if _, err := io.ReadAll(s); err == nil {
		t.Error("read on a stream of a dead link ended without error")
	}
	if _, err := a.OpenLane(context.Background(), b.id.ID(), "eph"); !errors.Is(err, federation.ErrPeerDown) {
		t.Errorf("open lane without a link: %v", err)
	}
	b.start(2, quick)
	if e := a.await(true); e.Epoch != 2 {
		t.Errorf("came back with epoch %d", e.Epoch)
	}
	if err := talk(a.lane(b), "back"); err != nil {
		t.Fatal(err)
	}
}

func TestChangesTakeEffectOnALiveLink(t *testing.T) {
	// Each change must end the link at once, and no heartbeat is due that would.
	for name, change := range map[string]func(a, b *testGateway){
		"paused":  func(a, b *testGateway) { a.setState(b, federation.StatePaused) },
		"pending": func(a, b *testGateway) { a.setState(b, federation.StatePending) },
		"blocked": func(a, b *testGateway) { a.setState(b, federation.StateBlocked) },
		"removed": func(a, b *testGateway) { a.setState(b, federation.StateRemoved) },
		"other key": func(a, b *testGateway) {
			key := newIdentity(t).Key()
			a.change(b.id.ID(), func(p *federation.Peer) { p.Key = key })
		},
		"node revoked": func(a, b *testGateway) {
			a.change(b.id.ID(), func(p *federation.Peer) {
				d := *p.Descriptor
				d.Revoked = []federation.Hash{b.id.NodeSPKI()}
				p.Descriptor = &d
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			slow := func(c *Config, g *testGateway) { quick(c, g); c.Timing.Heartbeat = time.Hour }
			a, b := newGateway(t, slow), newGateway(t, slow)
			link(a, b)
			a.await(true)
			b.await(true)
			fromB := b.lane(a)
			if err := talk(fromB, "x"); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			change(a, b)
			a.await(false)
			b.await(false)
			t.Logf("took %v", time.Since(start))
			if err := talk(fromB, "x"); err == nil {
				t.Error("the peer's stream still works")
			}
			waitFor(t, "the connection to be closed at the peer, too", func() bool {
				b.Links.mu.Lock()
				defer b.Links.mu.Unlock()
				return len(b.inbound) == 0
			})
		})
	}
}

// A transport that fails closes its listeners, and says why once it has ended.
func TestTransportThatFailsIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, fail := context.WithCancel(t.Context())
		time.AfterFunc(closedPause/2, fail)
		if err := new(Links).listenerClosed(ctx, net.ErrClosed); err != nil {
			t.Errorf("got %v before the transport has said why", err)
		}
		if err := new(Links).listenerClosed(t.Context(), net.ErrClosed); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a listener that is gone: %v", err)
		}
	})
}
