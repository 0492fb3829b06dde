package pairing

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// eventually waits for a condition; the deadline only ends a test that has failed.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between looks at the condition
	}
}

// run runs a gateway's Run until the test ends.
func (g *gateway) run(t *testing.T, d Dialer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	p := g.Pairing
	go func() { done <- p.Run(ctx, d) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

// flaky refuses to dial while it is down.
type flaky struct {
	*dialer
	down  atomic.Bool
	tries atomic.Int32
}

func (f *flaky) DialPinned(ctx context.Context, addr transports.Addr, grid ed25519.PublicKey) (*http.ClientConn, tls.ConnectionState, error) {
	f.tries.Add(1)
	if f.down.Load() {
		return nil, tls.ConnectionState{}, errors.New("down")
	}
	return f.dialer.DialPinned(ctx, addr, grid)
}

func TestRunTellsPeers(t *testing.T) {
	alice, bob := newGateway(t, "127.0.72.1", "alice.grid"), newGateway(t, "127.0.72.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)

	// Bob restarts with one more domain and finds alice down at first.
	bob.openRegistry(t, "bob.grid", "muc.bob.grid")
	bob.Pairing = New(Config{Registry: bob.reg, Store: bob.store, Key: bob.id.Key(), Now: bob.clock})
	d := &flaky{dialer: bob.dialer(t, alice)}
	d.down.Store(true)
	bob.run(t, d)
	eventually(t, "a first try", func() bool { return d.tries.Load() > 0 })
	d.down.Store(false)
	bob.Wake(alice.id.ID())
	routed := func() bool {
		_, err := alice.reg.Directory().Now().Route(federation.XMPP, "muc.bob.grid")
		return err == nil
	}
	eventually(t, "alice routes the new domain", routed)

	// What is known is not told again.
	eventually(t, "bob is done", func() bool {
		bob.told.mu.Lock()
		defer bob.told.mu.Unlock()
		return bob.told.peers[alice.id.ID()].told
	})
	n := d.tries.Load()
	bob.Wake(alice.id.ID())
	must(t, bob.reg.Heard(t.Context(), alice.id.ID(), time.Now()))
	if d.tries.Load() != n {
		t.Error("told twice")
	}
}

func TestRunTellsOfARotatedKey(t *testing.T) {
	alice, bob := newGateway(t, "127.0.72.1", "alice.grid"), newGateway(t, "127.0.72.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	bob.rotate(t)
	bob.openRegistry(t, "bob.grid")
	bob.Pairing = New(Config{Registry: bob.reg, Store: bob.store, Key: bob.id.Key(), Now: bob.clock})
	bob.run(t, bob.dialer(t, alice))
	eventually(t, "alice knows the new key", func() bool {
		p := alice.reg.Directory().Now().PeerByKey(bob.id.Key())
		return p != nil && p.Name == "bob"
	})
}

// Two grids that both have new keys, of which neither could tell the other.
func TestBothKeysRotated(t *testing.T) {
	alice, bob := newGateway(t, "127.0.72.1", "alice.grid"), newGateway(t, "127.0.72.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	for name, g := range map[string]*gateway{"alice.grid": alice, "bob.grid": bob} {
		g.rotate(t)
		g.openRegistry(t, name)
		g.Pairing = New(Config{Registry: g.reg, Store: g.store, Key: g.id.Key(), Now: g.clock})
		g.addr = serveTLS(t, g.ip, g.id, g.Handler())
	}
	must(t, bob.Exchange(t.Context(), bob.dialer(t, alice), bob.reg.Directory().Now().Peer(alice.id.ID())))
	for _, pair := range [][2]*gateway{{alice, bob}, {bob, alice}} {
		if p := pair[0].reg.Directory().Now().PeerByKey(pair[1].id.Key()); p == nil || p.State != federation.StateActive {
			t.Errorf("%s does not know the new key of %s", pair[0].ip, pair[1].ip)
		}
	}
	// A key that was not announced is that of somebody else.
	eve := newGateway(t, "127.0.72.3", "eve.grid")
	d := bob.dialer(t, alice)
	d.to[alice.ip] = eve.addr
	var wrong *federation.WrongKeyError
	if err := bob.Exchange(t.Context(), d, bob.reg.Directory().Now().Peer(alice.id.ID())); !errors.As(err, &wrong) {
		t.Errorf("eve in alice's place: %v", err)
	}
}

func TestExchangeChecksTheAnswer(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.72.1", "alice.grid"), newGateway(t, "127.0.72.2", "bob.grid"), newGateway(t, "127.0.72.3", "eve.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	_, _, err = accept(t, bob, eve, invite(t, eve, "bob", "bob.grid"), "eve")
	must(t, err)
	peer := bob.reg.Directory().Now().Peer(alice.id.ID())
	must(t, bob.Exchange(t.Context(), bob.dialer(t, alice), peer))

	eves, err := eve.reg.OwnDescriptorAs(t.Context(), "bob")
	must(t, err)
	alice.addr = serveTLS(t, alice.ip, alice.id, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := writeJSON(w, http.StatusOK, descriptorAnswer{Descriptor: eves}); err != nil {
			t.Error(err)
		}
	}))
	if err := bob.Exchange(t.Context(), bob.dialer(t, alice), peer); err == nil {
		t.Error("alice spoke for eve")
	}
}

func TestLedger(t *testing.T) {
	l := &ledger{peers: map[federation.GridID]*entry{}}
	now := time.Now()
	one, two := [32]byte{1}, [32]byte{2}
	active := []federation.GridID{"a"}
	if !l.begin("a", one, now) || l.begin("a", one, now) {
		t.Fatal("one try at a time")
	}
	l.failed("a", now)
	if l.begin("a", one, now) {
		t.Error("no pause after a failure")
	}
	if w := l.wait(active, now); w < time.Second || w > tellFirst+time.Second {
		t.Errorf("next look in %s", w)
	}
	for range 40 {
		l.failed("a", now)
	}
	if w := l.wait(active, now); w > tellLast || w > 5*time.Minute { // see Timing.RedialMax of link
		t.Errorf("next look in %s", w)
	}
	l.retry("a")
	if !l.begin("a", one, now) {
		t.Error("not tried after Wake")
	}
	l.done("a", one)
	if l.begin("a", one, now) || !l.begin("a", two, now) {
		t.Error("must be told exactly what is new")
	}
	// Once the own descriptor can be made again, and has not changed, nothing is due.
	l.done("a", two)
	l.failed("a", now.Add(-time.Hour))
	if l.begin("a", two, now) {
		t.Error("told again what it knows")
	}
	if w := l.wait(active, now); w != tellLast {
		t.Errorf("a peer that knows all is looked at in %s", w)
	}
	l.failed("a", now.Add(-time.Hour))
	if w := l.wait(nil, now); w != tellLast || len(l.peers) != 0 {
		t.Errorf("a peer that is active no more is waited for: %s", w)
	}
}
