package mqtt

import (
	"fmt"
	"slices"
	"testing"

	"github.com/yggate/yggate/federation"
)

// full is a pair of which b is away and as much waits for it as may.
func full(t *testing.T, overflow federation.MQTTOverflow) *world {
	w := newWorld(t, names(), func(self, _ string) *federation.MQTTPolicy {
		if self == "a" {
			return &federation.MQTTPolicy{Exports: rulesOf(rule("x/#", "")), Overflow: overflow}
		}
		return &federation.MQTTPolicy{Imports: rulesOf(rule("#", "{1}"))}
	})
	a := w.grids["a"]
	a.wire.mu.Lock()
	a.wire.quota = 100
	a.wire.mu.Unlock()
	w.link("a", "b", false)
	for i := range 100 {
		a.broker.client("x/y", fmt.Sprint(i), byte(1+i%2), false)
	}
	eventually(t, "they wait", func() bool { return a.wire.waiting(gridID("b")) == 100 && a.broker.unacked() == 0 })
	for i := range 10 {
		a.broker.client("x/y", fmt.Sprint(100+i), byte(1+i%2), false)
	}
	return w
}

func numbers(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprintf("x/y=%d", i))
	}
	return out
}

func arrives(t *testing.T, w *world, want []string) {
	t.Helper()
	b := w.grids["b"].broker
	w.link("a", "b", true)
	eventually(t, "what was not given up arrives", func() bool { return len(b.got("x/#")) >= len(want) })
	w.quiet()
	if got := b.got("x/#"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Back-pressure: what has no room stays with the broker, and nothing is lost.
func TestOverflowBlock(t *testing.T) {
	w := full(t, federation.OverflowBlock)
	a := w.grids["a"]
	eventually(t, "it is seen that the queue is full", func() bool { return !a.adapter.Peers()[0].Full.IsZero() })
	if n := a.broker.unacked(); n != 10 {
		t.Errorf("%d unacknowledged, want 10", n)
	}
	arrives(t, w, numbers(0, 110))
	eventually(t, "it is seen that there is room", func() bool { return a.adapter.Peers()[0].Full.IsZero() })
}

// A peer that is removed while its queue is full leaves nothing unacknowledged: the broker
// would get no acknowledgement of anything after that.
func TestOverflowRemoved(t *testing.T) {
	w := full(t, federation.OverflowBlock)
	a := w.grids["a"]
	eventually(t, "it is seen that the queue is full", func() bool { return !a.adapter.Peers()[0].Full.IsZero() })
	a.dir.Publish(federation.NewSnapshot(nil, nil, nil))
	w.quietBut(t, "a")
}

// Retained messages at QoS 0 that wait for the disk take no room from others, which were
// acknowledged.
func TestOverflowOfRetained(t *testing.T) {
	w := full(t, federation.OverflowBlock)
	a, b := w.grids["a"].broker, w.grids["b"].broker
	for i := range keepItems + batchItems + 10 {
		a.client("x/loose", fmt.Sprint(i), 0, true)
	}
	for i := range 3 {
		a.client("x/firm", fmt.Sprint(i), 1, true)
	}
	w.link("a", "b", true)
	w.quiet()
	if got, want := b.got("x/firm"), []string{"x/firm=0", "x/firm=1", "x/firm=2"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := len(b.got("x/loose")); got > keepItems+batchItems {
		t.Errorf("%d at QoS 0 waited, more than %d", got, keepItems+batchItems)
	}
}

// While one peer's queue is full, others get what is theirs.
func TestOverflowOfOne(t *testing.T) {
	w := newWorld(t, []string{"a", "b", "c"}, func(self, peer string) *federation.MQTTPolicy {
		if self != "a" {
			return &federation.MQTTPolicy{Imports: rulesOf(rule("#", "{1}"))}
		}
		return &federation.MQTTPolicy{Exports: rulesOf(rule(peer+"/#", ""))}
	})
	a := w.grids["a"]
	a.wire.mu.Lock()
	a.wire.quota = 5
	a.wire.mu.Unlock()
	w.link("a", "b", false)
	for i := range 20 {
		a.broker.client("b/x", fmt.Sprint(i), 1, false)
		a.broker.client("c/x", fmt.Sprint(i), 1, false)
	}
	c := w.grids["c"].broker
	eventually(t, "c has all of its own", func() bool { return len(c.got("c/x")) == 20 })
}

func TestOverflowDropNewest(t *testing.T) {
	w := full(t, federation.OverflowDropNewest)
	w.quietBut(t, "a")
	arrives(t, w, numbers(0, 100))
}

func TestOverflowDropOldest(t *testing.T) {
	w := full(t, federation.OverflowDropOldest)
	w.quietBut(t, "a")
	arrives(t, w, numbers(dropAtOnce, 110))
}

// A peer gets no more messages in a second than it may.
func TestRate(t *testing.T) {
	w := newWorld(t, names(), func(self, _ string) *federation.MQTTPolicy {
		if self == "a" {
			return &federation.MQTTPolicy{Exports: rulesOf(rule("#", "")), Rate: 10, Overflow: federation.OverflowDropNewest}
		}
		return &federation.MQTTPolicy{Imports: rulesOf(rule("#", "{1}"))}
	})
	a, b := w.grids["a"].broker, w.grids["b"].broker
	for i := range 1000 {
		a.client("x", fmt.Sprint(i), byte(i%2), false)
	}
	w.quiet()
	eventually(t, "some arrive", func() bool { return len(b.got("x")) > 0 })
	if got := len(b.got("x")); got > 200 {
		t.Errorf("%d of 1000 arrived at 10 a second", got)
	}
}

// What a peer that is away has no room for is compared when it is back, and not again and
// again until then.
func TestOverflowOfRetainedWhileAway(t *testing.T) {
	w := full(t, federation.OverflowDropNewest)
	a, b := w.grids["a"], w.grids["b"]
	a.broker.client("x/kept", "1", 1, true)
	w.quietBut(t, "a")
	if read, err := a.adapter.peer(b.id).compareOnce(t.Context()); read || err != nil {
		t.Errorf("compared with a peer that is away: %v, %v", read, err)
	}
	w.link("a", "b", true)
	eventually(t, "it is retained in the end", func() bool { return b.broker.holds("#")["x/kept"] == "1" })
}
