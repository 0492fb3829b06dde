package lane

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

// TestHandsAhead: a Recipient is given the next items before it is done with the
// first, and all of them again, in order, from the one at which it failed.
func TestHandsAhead(t *testing.T) {
	a, b := towns(t)
	type begun struct {
		bodies []string
		done   func(int, error)
	}
	var mu sync.Mutex
	var calls []begun
	b.hall.later = func(items []Item, done func(int, error)) {
		var c begun
		for _, it := range items {
			c.bodies = append(c.bodies, string(it.Body))
		}
		c.done = done
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, c)
	}
	handed := func() (all []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range calls {
			all = append(all, c.bodies...)
		}
		return all
	}
	a.wake().PeerUp("bob")
	b.wake()
	want := numbered(0, 3*handItems)
	a.put("bob", want...)
	waitFor(t, "everything is with the recipient", func() bool { return len(handed()) == len(want) })
	if got := handed(); !slices.Equal(got, want) {
		t.Fatalf("handed %v", got)
	}
	first := calls
	calls = nil
	for _, c := range slices.Backward(first[1:]) {
		c.done(len(c.bodies), nil)
	}
	first[0].done(0, errors.New("the first is not taken"))
	waitFor(t, "everything is handed again", func() bool { return len(handed()) == len(want) })
	if got := handed(); !slices.Equal(got, want) {
		t.Fatalf("handed again %v", got)
	}
	for _, c := range calls {
		c.done(len(c.bodies), nil)
	}
	waitFor(t, "the peer's outbox is empty", func() bool { return a.items(Chat, DirOut) == 0 })
}

// TestCommitStopsBeforeWhatIsUnderWay: what the local server may take in a moment has
// no place in the inbox, so the lane is said to stand before it.
func TestCommitStopsBeforeWhatIsUnderWay(t *testing.T) {
	pos := func(seq uint64) journal.Pos { return journal.Pos{Epoch: 1, Seq: seq} }
	item := func(seq uint64, settled bool, age time.Duration) *inItem {
		return &inItem{
			InItem: store.InItem{LaneItem: store.LaneItem{Pos: store.Pos(pos(seq))}}, settled: settled, before: pos(seq - 1), came: time.Now().Add(-age),
		}
	}
	for what, c := range map[string]struct {
		fresh  []*inItem
		begun  bool
		all    bool
		n      int
		stored int
		cursor uint64
	}{
		"all settled":           {fresh: []*inItem{item(1, true, 0), item(2, true, 0)}, n: 2, cursor: 9},
		"one under way":         {fresh: []*inItem{item(1, true, 0), item(2, false, 0), item(3, true, 0)}, n: 1, cursor: 1},
		"one that took long":    {fresh: []*inItem{item(1, false, time.Hour), item(2, true, 0), item(3, false, 0)}, n: 2, stored: 1, cursor: 2},
		"a stream waits for it": {fresh: []*inItem{item(1, true, 0), item(2, false, 0)}, begun: true, n: 2, stored: 1, cursor: 9},
		"the end":               {fresh: []*inItem{item(1, true, 0), item(2, false, 0)}, all: true, n: 2, stored: 1, cursor: 9},
		"nothing":               {cursor: 9},
	} {
		l := &inLane{fresh: c.fresh, rules: journal.In{Cursor: pos(9), Seen: 1}}
		if c.begun {
			l.begun = append(l.begun, make(chan error, 1))
		}
		in := l.gather(c.all)
		if len(in.fresh) != c.n || len(in.store) != c.stored || journal.Pos(in.row.Cursor) != pos(c.cursor) || len(l.fresh) != len(c.fresh)-c.n {
			t.Errorf("%s: %d written, %d of them into the inbox, up to %v; want %d, %d, %d", what, len(in.fresh), len(in.store), in.row.Cursor, c.n, c.stored, c.cursor)
		}
	}
}
