package mqtt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// Retained messages are set, changed and cleared at the far side, also those of which
// the session was told nothing.
func TestRetained(t *testing.T) {
	once := rule("state/+/once", "")
	once.Retain = false
	w := newWorld(t, names(), pair(rulesOf(once, rule("state/#", "s/{1}")), rulesOf(rule("#", "from/a/"))))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	a.client("state/1", "one", 1, true)
	a.client("state/2", "two", 1, true)
	a.client("state/3", "three", 0, true)
	a.client("state/x/once", "not kept", 1, true)
	want := map[string]string{"from/a/s/1": "one", "from/a/s/2": "two", "from/a/s/3": "three"}
	eventually(t, "they are set", func() bool { return maps.Equal(b.holds("from/#"), want) })
	eventually(t, "one is not kept", func() bool { return slices.Contains(b.got("#"), "from/a/state/x/once=not kept") })

	w.link("a", "b", false)
	a.client("state/1", "ONE", 1, true)
	a.client("state/2", "", 1, true)
	w.quietBut(t, "a")
	// While the session was away, the broker's memory changed as well.
	a.mu.Lock()
	delete(a.retained, "state/3")
	a.retained["state/4"] = &session.Message{Topic: "state/4", Payload: []byte("four"), QoS: 1, Retain: true}
	a.mu.Unlock()
	w.grids["a"].adapter.Down(nil)
	w.grids["a"].adapter.Up(a.info)
	w.grids["a"].adapter.Subscribed(nil)
	w.link("a", "b", true)
	want = map[string]string{"from/a/s/1": "ONE", "from/a/s/4": "four"}
	eventually(t, "they are as they should", func() bool { return maps.Equal(b.holds("from/#"), want) })

	// Nothing comes twice when all is compared again.
	w.quiet()
	before := len(b.got("from/#"))
	w.link("a", "b", false)
	w.link("a", "b", true)
	a.client("state/end", "end", 1, true)
	eventually(t, "the last one arrives", func() bool { return b.holds("#")["from/a/s/end"] == "end" })
	w.quiet()
	if after := b.got("from/#"); len(after) != before+1 {
		t.Errorf("sent again: %v", after[before:])
	}
}

// quietBut waits until the broker of a grid has all its acknowledgements.
func (w *world) quietBut(t *testing.T, name string) {
	t.Helper()
	eventually(t, "what was published is safe", func() bool { return w.grids[name].broker.unacked() == 0 })
}

// What a peer imports later it gets, although it was refused before.
func TestRetainedAfterImport(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("other/#", ""))))
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("state/1", "one", 1, true)
	w.quiet()
	if got := b.broker.holds("#"); len(got) != 0 {
		t.Fatalf("imported %v", got)
	}
	b.policy["a"] = allow(federation.MQTTPolicy{Imports: rulesOf(rule("#", "from/a/"))})
	b.publishPolicy()
	eventually(t, "it is imported now", func() bool { return b.broker.holds("#")["from/a/state/1"] == "one" })
	// And what is not exported any more is cleared.
	a.policy["b"] = allow(federation.MQTTPolicy{Exports: rulesOf(rule("none", ""))})
	a.publishPolicy()
	eventually(t, "it is cleared", func() bool { return len(b.broker.holds("from/#")) == 0 })
}

// What the broker does not show is not taken for gone, and keeps nothing else from being
// compared.
func TestRetainedUnread(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", ""), rule("other/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"].broker
	a.broker.client("state/1", "one", 1, true)
	a.broker.client("other/1", "one", 1, true)
	eventually(t, "they cross", func() bool { return len(b.holds("#")) == 2 })
	a.broker.mu.Lock()
	a.broker.hidden = "state/#"
	a.broker.retained["other/2"] = &session.Message{Topic: "other/2", Payload: []byte("two"), QoS: 1, Retain: true}
	delete(a.broker.retained, "other/1")
	a.broker.mu.Unlock()
	a.adapter.Subscribed(map[string]error{"state/#": &session.Refused{What: "subscribe"}})
	want := map[string]string{"state/1": "one", "other/1": "one", "other/2": "two"}
	eventually(t, "what is shown crosses", func() bool { return maps.Equal(b.holds("#"), want) })
	a.broker.mu.Lock()
	a.broker.hidden = ""
	a.broker.mu.Unlock()
	a.adapter.Subscribed(nil)
	want = map[string]string{"state/1": "one", "other/2": "two"}
	eventually(t, "what is gone is cleared when all is shown", func() bool { return maps.Equal(b.holds("#"), want) })
}

// A broker that has lost its session, and what it retained with it, is told everything
// anew.
func TestRetainedLost(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"]
	eventually(t, "a knows what b imports", func() bool {
		rows, err := a.adapter.cfg.Store.MQTTRetained(t.Context(), string(b.id))
		return err == nil && len(rows) == 1 && len(rows[0].Hash) > 0
	})
	a.broker.client("state/1", "one", 1, true)
	eventually(t, "it crosses", func() bool { return b.broker.holds("#")["state/1"] == "one" })
	w.quiet()
	b.adapter.Down(nil)
	b.broker.mu.Lock()
	clear(b.broker.retained)
	b.broker.mu.Unlock()
	again := b.broker.info
	again.Life = "another"
	b.adapter.Up(again)
	b.adapter.Subscribed(nil)
	eventually(t, "it crosses again", func() bool { return b.broker.holds("#")["state/1"] == "one" })
}

// A peer that says without end what it imports has not all compared each
// time.
func TestRetainedFlood(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("state/1", "one", 1, true)
	eventually(t, "it crosses", func() bool { return b.broker.holds("#")["state/1"] == "one" })
	asked := func() int {
		a.broker.mu.Lock()
		defer a.broker.mu.Unlock()
		return a.broker.snapshots
	}
	before, began := asked(), time.Now()
	for i := range 2000 {
		env := envelope{Kind: kindImports, Payload: []byte{byte(i / 1000), 1}}
		body, err := env.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := a.adapter.Deliver(t.Context(), a.peerOf("b"), lane.Item{Kind: federation.MQTT, Body: body}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Microsecond)
	}
	// One that was under way, and one for each time that is left in between.
	if n, most := asked()-before, 2+int(time.Since(began)/a.adapter.cfg.Settle); n > most {
		t.Errorf("%d comparisons, at most %d were due", n, most)
	}
	a.broker.client("state/1", "two", 1, true)
	eventually(t, "what comes then crosses", func() bool { return b.broker.holds("#")["state/1"] == "two" })
}

// Messages of a topic at different QoS that have waited together do not overtake each
// other: the last one is what is retained.
func TestRetainedOrder(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"].broker
	b.mu.Lock()
	b.slow2 = true
	b.mu.Unlock()
	w.link("a", "b", false)
	for i := range 6 {
		a.broker.client("state/1", fmt.Sprint(i), byte(2-i%3), true)
	}
	w.quietBut(t, "a")
	w.link("a", "b", true)
	w.quiet()
	want := []string{"state/1=0", "state/1=1", "state/1=2", "state/1=3", "state/1=4", "state/1=5"}
	// A comparison may tell the last one once more.
	if got := slices.Compact(b.got("state/1")); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A retained message that was given up is not forgotten.
func TestRetainedExpired(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("state/0", "zero", 1, true)
	eventually(t, "the first one crosses", func() bool { return b.broker.holds("#")["state/0"] == "zero" })
	w.link("a", "b", false)
	a.broker.client("state/1", "one", 1, true)
	eventually(t, "it waits", func() bool { return a.wire.waiting(b.id) == 1 })
	a.wire.mu.Lock()
	items := a.wire.queue[b.id]
	a.wire.queue[b.id] = nil
	a.wire.mu.Unlock()
	if err := a.wire.giveBack(t.Context(), b.id, items, lane.ErrExpired); err != nil {
		t.Fatal(err)
	}
	w.link("a", "b", true)
	eventually(t, "it crosses after all", func() bool { return b.broker.holds("#")["state/1"] == "one" })
}

// The same where it is given back before it is noted that the peer will have it.
func TestRetainedExpiredAtOnce(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("state/0", "zero", 1, true)
	eventually(t, "the first one crosses", func() bool { return b.broker.holds("#")["state/0"] == "zero" })
	var once sync.Once
	a.wire.mu.Lock()
	a.wire.early = func(lane.Item) (first bool) { once.Do(func() { first = true }); return first }
	a.wire.mu.Unlock()
	a.broker.client("state/1", "one", 1, true)
	eventually(t, "it crosses after all", func() bool { return b.broker.holds("#")["state/1"] == "one" })
}

// The same where the disk failed: at QoS 0 the broker does not give it again.
func TestRetainedNotStored(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("state/0", "zero", 1, true)
	eventually(t, "the first one crosses", func() bool { return b.broker.holds("#")["state/0"] == "zero" })
	set := func(err error) {
		a.wire.mu.Lock()
		defer a.wire.mu.Unlock()
		a.wire.broken = err
	}
	set(errors.New("the disk is full"))
	a.broker.client("state/1", "one", 0, true)
	eventually(t, "it fails", func() bool { return a.broker.unacked() == 0 })
	set(nil)
	eventually(t, "it crosses after all", func() bool { return b.broker.holds("#")["state/1"] == "one" })
}

// Whatever has ended, in whichever way, is compared from then on: a comparison does not
// leave it to what is being stored.
func TestRetainedEnded(t *testing.T) {
	for name, end := range map[string]func(p *peer, o *outgoing){
		"stored":            func(p *peer, o *outgoing) { p.stored(t.Context(), []*outgoing{o}) },
		"given up":          func(p *peer, o *outgoing) { p.giveUp(o, "full") },
		"not stored":        func(p *peer, o *outgoing) { p.failed([]*outgoing{o}, errors.New("the disk is full")) },
		"given back before": func(p *peer, o *outgoing) { p.comesBack(o.topic); p.stored(t.Context(), []*outgoing{o}) },
	} {
		w := newWorld(t, names(), pair(nil, nil))
		p := newPeer(w.grids["a"].adapter, w.grids["b"].id)
		left := func() map[string]bool {
			p.beginCompare()
			defer p.endCompare()
			return p.touched
		}
		o := &outgoing{peer: p, topic: "state/1", retained: []byte("hash"), done: func(error) {
			if left()["state/1"] {
				t.Errorf("%s: a comparison leaves it to what is being stored", name)
			}
		}}
		p.keep.add(o)
		if next := p.next(t.Context(), &p.keep, p.wake); len(next) != 1 || !left()["state/1"] {
			t.Fatalf("%s: it is not being stored: %v", name, next)
		}
		end(p, o)
	}
}

// What is given back because its peer is gone leaves nothing behind.
func TestRetainedOfOneThatIsGone(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), nil))
	a, b := w.grids["a"].adapter, w.grids["b"]
	w.grids["a"].dir.Publish(federation.NewSnapshot(nil, nil, nil))
	has := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.peers[b.id] != nil
	}
	eventually(t, "its state is dropped", func() bool { return !has() })
	owner := w.grids["a"].peerOf("b")
	owner.State = federation.StateRemoved
	env := envelope{Topic: "state/1", QoS: 1, Flags: flagRetain}
	if err := a.GiveBack(t.Context(), owner, lane.Item{Body: must(env.encode())}, federation.ErrPeerNotActive); err != nil {
		t.Fatal(err)
	}
	rows, err := a.cfg.Store.MQTTRetained(t.Context(), string(b.id))
	if err != nil || len(rows) > 0 || has() {
		t.Errorf("left are %v (%v), and a peer: %v", rows, err, has())
	}
}

// A comparison that ends because the gateway does leaves nothing running.
func TestCompareEnds(t *testing.T) {
	w := newWorld(t, names(), pair(nil, nil))
	p := newPeer(w.grids["a"].adapter, w.grids["b"].id)
	before := runtime.NumGoroutine()
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		c := &piece{p: p, items: []*outgoing{{peer: p, durable: true, count: prometheus.NewCounter(prometheus.CounterOpts{})}}}
		go func() { // what is queued waits for ever: nothing stores it
			for p.waiting() == 0 {
				runtime.Gosched()
			}
			cancel()
		}()
		if err := c.flush(ctx); err == nil {
			t.Fatal("stored")
		}
		p.next(t.Context(), &p.keep, p.wake)
	}
	eventually(t, "nothing is left running", func() bool { return runtime.NumGoroutine() < before+25 })
}

func (p *peer) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.keep.items)
}

// With MQTT 3.1.1, too, what was published after the broker was asked is not followed by
// what it retained then.
func TestRetainedOvertaken(t *testing.T) {
	for _, version := range []byte{session.V5, session.V311} {
		w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
		a := w.grids["a"]
		a.broker.mu.Lock()
		a.broker.info.Version = version
		a.broker.mu.Unlock()
		a.adapter.Up(a.broker.info)
		r := a.adapter.rules.Load()
		old := a.adapter.outgoingState(r.exportsOf("state/1")[0], &session.Message{Topic: "state/1", Payload: []byte("old"), QoS: 1, Retain: true}, &trace{}, nil)
		for qos := range byte(2) {
			p := newPeer(a.adapter, w.grids["b"].id) // that nothing else compares
			p.beginCompare()
			live := &session.Message{Topic: "state/1", Payload: []byte("new"), QoS: qos, Retain: version == session.V5}
			o := a.adapter.outgoing(r.exportsOf("state/1")[0], live, &trace{}, nil, 0)
			o.done = func(error) {}
			p.setUp(true)
			p.queue(o)
			skipped := false
			old.done = func(error) { skipped = true }
			if p.queue(old); !skipped {
				t.Errorf("version %d, QoS %d: what was retained before goes after it", version, qos)
			}
		}
	}
}

// A topic of MQTT 3.1.1 that is published to all the time is retained at the peer all the
// same: it is not left out by one comparison after the other.
func TestRetainedOfABusyTopic(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("state/#", "")), rulesOf(rule("#", "{1}"))))
	a := w.grids["a"]
	a.broker.mu.Lock()
	a.broker.info.Version = session.V311
	a.broker.mu.Unlock()
	a.adapter.Up(a.broker.info)
	e := a.adapter.rules.Load().exportsOf("state/1")[0]
	p := newPeer(a.adapter, w.grids["b"].id) // that nothing else compares
	message := func(retain bool) *session.Message {
		return &session.Message{Topic: "state/1", Payload: []byte("on"), QoS: 1, Retain: retain}
	}
	var told []bool
	for range 4 {
		p.beginCompare()
		live := a.adapter.outgoing(e, message(false), &trace{}, nil, 0)
		live.done = func(error) {}
		p.queue(live)
		state := a.adapter.outgoingState(e, message(true), &trace{}, nil)
		state.done = func(error) {}
		p.queue(state)
		told = append(told, slices.Contains(p.keep.items, state))
		p.keep = pending{}
		p.endCompare()
	}
	if want := []bool{false, true, false, true}; !slices.Equal(told, want) {
		t.Errorf("told by four comparisons: %v, want %v", told, want)
	}
}
