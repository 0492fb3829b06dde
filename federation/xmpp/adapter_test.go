package xmpp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// TestRandomTriples checks the policy against a reference that is too simple to
// be wrong, on random peers, senders and addressees: 100,000, or as many as
// YGGATE_TRIPLES says.
func TestRandomTriples(t *testing.T) {
	n := 100_000
	if s := os.Getenv("YGGATE_TRIPLES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("YGGATE_TRIPLES: %v", err)
		}
	}
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	w := &world{dir: federation.NewDirectory()}
	var local, remote string // where the last stanza went, "" for nowhere
	a, err := New(Config{Directory: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	sent := senderFunc(func(peer federation.GridID, items []lane.Item) error { remote = string(peer); return nil })
	a.Connect(sent, sent,
		localFunc(func(_ context.Context, from, to string, _ ...[]byte) error { local = from + " " + to; return nil }))
	owners := map[string]string{}
	republish := func() {
		clear(owners)
		w.publish(func(peers map[string]*federation.Peer, claims map[string]string) {
			states := []federation.State{federation.StateActive, federation.StateActive, federation.StatePaused, federation.StateBlocked, federation.StatePending, federation.StateRemoved}
			for _, p := range peers {
				p.State = states[rng.IntN(len(states))]
				p.Policy.Allow = map[federation.Protocol]bool{federation.XMPP: rng.IntN(4) > 0, federation.Matrix: true}
			}
			for d := range claims {
				claims[d] = []string{"bob", "carol", "dave", "erin"}[rng.IntN(4)]
				if p := peers[claims[d]]; p.State == federation.StateActive && p.Policy.Allow[federation.XMPP] {
					owners[d] = claims[d]
				}
			}
		})
	}
	domains := []string{
		"a.grid", "conference.a.grid", "b.grid", "conference.b.grid", "c.grid", "d.grid", "e.grid", "conflict.grid",
		"nowhere.grid", "sub.a.grid", "sub.b.grid", "grid", "", "a.grid.b.grid", "b.grid.a.grid",
	}
	mine := map[string]bool{"a.grid": true, "conference.a.grid": true}
	ctx := context.Background()
	for i := range n {
		if i%500 == 0 {
			republish()
		}
		from, fromDomain := randomAddress(rng, domains)
		to, toDomain := randomAddress(rng, domains)
		stanza := fmt.Appendf(nil, "<message from='%s' to=\"%s\"/>", from, to)
		local, remote = "", ""
		if rng.IntN(2) == 0 {
			peer := []string{"bob", "carol", "dave", "erin"}[rng.IntN(4)]
			want := ""
			if owners[fromDomain] == peer && mine[toDomain] {
				want = fromDomain + " " + toDomain
			}
			err := a.Deliver(ctx, w.dir.Now().Peer(federation.GridID(peer)), lane.Item{Kind: federation.XMPP, Body: stanza})
			var refusal *lane.Refusal
			if local != want || remote != "" || (want == "") != errors.As(err, &refusal) {
				t.Fatalf("seed %d, triple %d: %s from %s went to %q (%v), want %q", seed, i, stanza, peer, local, err, want)
			}
			continue
		}
		self, far := domains[rng.IntN(len(domains))], domains[rng.IntN(len(domains))]
		want := ""
		if fromDomain == self && toDomain == far && self != "" && far != "" {
			want = owners[far]
		}
		err := a.Stanzas(ctx, self, far, [][]byte{stanza}, func() {})
		if remote != want || local != "" || (err == nil) != (fromDomain == self && toDomain == far && self != "" && far != "") {
			t.Fatalf("seed %d, triple %d: %s on %s -> %s went to %q (%v), want %q", seed, i, stanza, self, far, remote, err, want)
		}
		for _, p := range a.peers {
			p.toLocal.take() // bounces: Run is not running
		}
	}
}

// randomAddress spells an address as an attribute in one of many ways, and says
// which domain a parser would see in it.
func randomAddress(rng *rand.Rand, domains []string) (spelled, domain string) {
	d := domains[rng.IntN(len(domains))]
	other := domains[rng.IntN(len(domains))]
	spell := d
	switch rng.IntN(6) {
	case 0:
		spell = strings.ToUpper(d)
	case 1:
		spell = strings.ReplaceAll(d, "g", "&#x67;")
	}
	switch rng.IntN(9) {
	case 0:
		return spell, d
	case 1:
		return "x@" + spell, d
	case 2:
		return "x@" + spell + "/r", d
	case 3:
		return spell + "/x@" + other, d
	case 4:
		return spell + "&#47;x@" + other, d
	case 5:
		return "x&#64;" + spell + "&#x2F;y@" + other, d
	case 6:
		return "x@" + spell + "@" + other, ""
	case 7:
		return "x@" + spell + "/a/b@" + other, d
	}
	return " x@" + spell + " ", ""
}

type senderFunc func(peer federation.GridID, items []lane.Item) error

func (f senderFunc) Send(_ context.Context, peer federation.GridID, _ lane.Name, items ...lane.Item) error {
	return f(peer, items)
}

// Put makes of what Send says what becomes of durable items, too.
func (f senderFunc) Put(_ context.Context, peer federation.GridID, _ lane.Name, stored func(error), items ...lane.Item) error {
	stored(f(peer, items))
	return nil
}

func TestOpen(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct{ from, to, want string }{
		{"a.grid", "b.grid", ""},
		{"conference.a.grid", "c.grid", ""},
		{"a.grid", "d.grid", ""}, // paused: its users are told stanza by stanza
		{"a.grid", "e.grid", ""},
		{"b.grid", "c.grid", "not-authorized"},
		{"nowhere.grid", "b.grid", "not-authorized"},
		{"a.grid", "nowhere.grid", "open stream to nowhere.grid: " + federation.ErrUnknownDomain.Error()},
		{"a.grid", "conflict.grid", "open stream to conflict.grid: " + federation.ErrUnknownDomain.Error()},
		{"a.grid", "a.grid", "open stream to a.grid: " + federation.ErrUnknownDomain.Error()},
	} {
		got := ""
		err := w.adapter.Open(c.from, c.to)
		if err != nil {
			got = conditionOf(err)
		}
		if got != c.want {
			t.Errorf("Open(%s, %s) = %q, want %q", c.from, c.to, got, c.want)
		}
		if unknown := errors.Is(err, federation.ErrUnknownDomain); unknown != strings.HasPrefix(c.want, "open") {
			t.Errorf("Open(%s, %s): errors.Is(ErrUnknownDomain) = %v", c.from, c.to, unknown)
		}
	}
}

func TestAnswer(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]bool{
		"b.grid": true, "B.Grid.": true, "bücher.grid": true, "conference.b.grid": true,
		"d.grid": true, "e.grid": true, // paused, not allowed: the gateway says so itself
		"a.grid": false, "nowhere.grid": false, "conflict.grid": false, "sub.b.grid": false, "": false, "127.0.0.1": false,
	} {
		if got := w.adapter.Answer(name); got != want {
			t.Errorf("Answer(%q) = %v", name, got)
		}
	}
}

// A batch goes to the lane in one call, in order, up to the stanza that breaks
// the stream.
func TestBatch(t *testing.T) {
	w := &world{dir: federation.NewDirectory()}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	sent := senderFunc(func(peer federation.GridID, items []lane.Item) error {
		s := string(peer) + ":"
		for _, it := range items {
			s += " " + string(it.Body[len("<message id='"):][:1])
		}
		calls = append(calls, s)
		return nil
	})
	a.Connect(sent, sent, localFunc(w.toLocal))
	var batch [][]byte
	for i, from := range []string{"a.grid", "a.grid", "a.grid", "c.grid", "a.grid"} {
		batch = append(batch, fmt.Appendf(nil, "<message id='%d' from='x@%s' to='y@b.grid'/>", i, from))
	}
	err = a.Stanzas(context.Background(), "a.grid", "b.grid", batch, func() {})
	if err == nil || conditionOf(err) != "invalid-from" {
		t.Errorf("error %v, want invalid-from", err)
	}
	if got := strings.Join(calls, "; "); got != "bob: 0 1 2" {
		t.Errorf("calls %q", got)
	}
}

// Whatever the configuration allows, no stanza goes to the lane that it would not
// carry: the rest of the batch would go down with it.
func TestLaneLimit(t *testing.T) {
	w := &world{dir: federation.NewDirectory()}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir, Limits: frame.Limits{Stanza: 10 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	carry := senderFunc(func(_ federation.GridID, items []lane.Item) error {
		for _, it := range items {
			if sent++; len(it.Body) > lane.MaxBody {
				t.Errorf("an item of %d bytes", len(it.Body))
			}
		}
		return nil
	})
	a.Connect(carry, carry, localFunc(w.toLocal))
	small := []byte("<message from='alice@a.grid' to='bob@b.grid'/>")
	large := fmt.Appendf(nil, "<message from='alice@a.grid' to='bob@b.grid'>%s</message>", strings.Repeat("x", lane.MaxBody))
	if err := a.Stanzas(context.Background(), "a.grid", "b.grid", [][]byte{small, large, small}, func() {}); err != nil || sent != 2 {
		t.Errorf("%d sent, error %v", sent, err)
	}
	if n := len(a.peer("bob").toLocal.take()); n != 1 {
		t.Errorf("%d bounces, want 1", n)
	}
}

// A local server that sends faster than it takes the errors is held up, and let
// go by the context.
func TestBouncesPushBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{dir: federation.NewDirectory(), down: map[federation.GridID]bool{"bob": true}}
		w.publish(nil)
		reg := prometheus.NewPedanticRegistry()
		a, err := New(Config{Directory: w.dir, Metrics: reg})
		if err != nil {
			t.Fatal(err)
		}
		a.Connect(w, w, localFunc(w.toLocal)) // Run is not running: nobody takes the errors
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			stanza := []byte("<message from='alice@a.grid' to='bob@b.grid'/>")
			for {
				if err := a.Stanzas(ctx, "a.grid", "b.grid", [][]byte{stanza}, func() {}); err != nil {
					done <- err
					return
				}
			}
		}()
		synctest.Wait() // it blocks
		if got := a.peer("bob").toLocal.bytes; got > queueBytes {
			t.Errorf("%d bytes wait, at most %d may", got, queueBytes)
		}
		// What may not block is dropped, and counted.
		a.Returned(w.dir.Now().Peer("bob"), lane.Item{Body: []byte("<message from='alice@a.grid' to='bob@b.grid'/>")}, federation.ErrPeerDown)
		if got := gather(t, reg)["yggate_xmpp_replies_lost_total"]; got != 1 {
			t.Errorf("%v replies lost, want 1", got)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want the context's", err)
		}
	})
}

// Presence that is on its way to the local server while the operator takes its domain
// away is ended like that which was there before.
func TestRevokedOnTheWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		revoked := false
		local := localFunc(func(ctx context.Context, from, to string, stanzas ...[]byte) error {
			if !revoked {
				revoked = true
				w.publish(func(_ map[string]*federation.Peer, claims map[string]string) { delete(claims, "b.grid") })
				synctest.Wait() // the adapter has followed
			}
			return w.toLocal(ctx, from, to, stanzas...)
		})
		w, _ = newDurable(t, local)
		stop := w.run(t)
		bob := w.dir.Now().Peer("bob")
		if err := w.adapter.Deliver(t.Context(), bob, lane.Item{Body: []byte("<presence from='bob@b.grid/y' to='alice@a.grid'/>")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		stop()
		if got := w.take(); len(got) != 2 || !strings.Contains(got[1], "<presence type='unavailable' from='bob@b.grid/y' to='alice@a.grid'/>") {
			t.Errorf("local server got %q", got)
		}
	})
}

// That is so, too, where the link ends while much else waits for the local server, as when
// the operator removes the peer.
func TestRevokedWhileTheLinkEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context()) // of the link
		var w *world
		slow, revoked := make(chan struct{}), false
		local := localFunc(func(ctx context.Context, from, to string, stanzas ...[]byte) error {
			if strings.Contains(string(stanzas[0]), "<message") {
				<-slow
				return nil
			}
			if !revoked {
				revoked = true
				w.publish(func(_ map[string]*federation.Peer, claims map[string]string) { delete(claims, "b.grid") })
				synctest.Wait() // the adapter has followed
				cancel()
			}
			return w.toLocal(ctx, from, to, stanzas...)
		})
		w, _ = newDurable(t, local)
		stop := w.run(t)
		bob := w.dir.Now().Peer("bob")
		p := w.adapter.peer("bob")
		p.toLocal.force(reply{from: "b.grid", to: "a.grid", stanza: []byte("<message/>")})
		synctest.Wait() // the server is being told
		p.toLocal.force(reply{from: "b.grid", to: "a.grid", stanza: []byte("<message>" + strings.Repeat("x", queueBytes) + "</message>")})
		if err := w.adapter.Deliver(ctx, bob, lane.Item{Body: []byte("<presence from='bob@b.grid/y' to='alice@a.grid'/>")}); err != nil {
			t.Fatal(err)
		}
		close(slow)
		synctest.Wait()
		stop()
		if got := w.take(); len(got) != 2 || !strings.Contains(got[1], "<presence type='unavailable' from='bob@b.grid/y' to='alice@a.grid'/>") {
			t.Errorf("local server got %q", got)
		}
		p.ending.mu.Lock()
		defer p.ending.mu.Unlock()
		if p.ending.left != 0 {
			t.Errorf("%d endings are waited for in vain", p.ending.left)
		}
	})
}

// A local server that is slow to be told that the peer's users are gone does not hear of
// it after they are back.
func TestEndingsAreNotOvertaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		slow := make(chan struct{})
		local := localFunc(func(ctx context.Context, from, to string, stanzas ...[]byte) error {
			if strings.Contains(string(stanzas[0]), "unavailable") {
				<-slow
			}
			return w.toLocal(ctx, from, to, stanzas...)
		})
		w, _ = newDurable(t, local)
		stop := w.run(t)
		bob := w.dir.Now().Peer("bob")
		there := lane.Item{Body: []byte("<presence from='bob@b.grid/y' to='alice@a.grid'/>")}
		deliver := func() {
			if err := w.adapter.Deliver(t.Context(), bob, there); err != nil {
				t.Error(err)
			}
		}
		w.adapter.PeerUp("bob", 1)
		deliver()
		w.adapter.PeerDown("bob")
		time.Sleep(DefaultGrace) // on the bubble's clock
		synctest.Wait()          // the server is being told
		w.adapter.PeerUp("bob", 1)
		go deliver()
		synctest.Wait()
		close(slow)
		synctest.Wait()
		deliver() // nothing is waited for any more
		stop()
		got := slices.DeleteFunc(w.take(), func(s string) bool { return strings.HasPrefix(s, "p: ") })
		is := "s: " + string(there.Body)
		if len(got) != 4 || got[0] != is || !strings.Contains(got[1], "unavailable") || got[2] != is || got[3] != is {
			t.Errorf("local server got %q", got)
		}
	})
}

// A peer that turns up when Run has ended is not worked for: nothing may be added to
// a group that nothing runs in.
func TestNothingStartsAfterRun(t *testing.T) {
	w, _ := newDurable(t, nil)
	w.run(t)()
	w.adapter.PeerUp("bob", 1)
	w.adapter.mu.Lock()
	defer w.adapter.mu.Unlock()
	if w.adapter.spawn != nil {
		t.Error("a peer's work would still be started")
	}
}

// A peer decides how often it is refused, but not how much of the log it fills.
func TestAuditIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{dir: federation.NewDirectory()}
		w.publish(nil)
		var log bytes.Buffer
		a, err := New(Config{Directory: w.dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		a.Connect(w, w, localFunc(w.toLocal))
		spoof := func() {
			it := lane.Item{Body: []byte("<message from='eve@c.grid' to='alice@a.grid'><body>secret</body></message>")}
			if a.Deliver(context.Background(), w.dir.Now().Peer("bob"), it) == nil {
				t.Fatal("taken")
			}
		}
		for range 1000 {
			spoof()
		}
		if n := strings.Count(log.String(), "stanza refused"); n != auditBurst {
			t.Errorf("%d lines, want %d", n, auditBurst)
		}
		time.Sleep(auditEvery) // on the bubble's clock
		log.Reset()
		spoof()
		if got := log.String(); !strings.Contains(got, "peer=bob") || !strings.Contains(got, "rule=sender_domain") ||
			!strings.Contains(got, fmt.Sprintf("unlogged=%d", 1000-auditBurst)) || strings.Contains(got, "secret") {
			t.Errorf("log %q", got)
		}
	})
}

// An error is counted when it has reached somebody, not each time that it is tried.
// gather returns counters by name and label values.
