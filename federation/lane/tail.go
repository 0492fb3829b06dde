package lane

import (
	"slices"

	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

// tailBytes bound the memory of a tail: what a stream that keeps up needs not
// read from disk again.
const tailBytes = 1 << 20

// tail is the newest part of an outbox, as long as a stream follows closely.
type tail struct {
	base  journal.Pos // every item after this is in items
	items []store.LaneItem
	bytes int64
	keep  bool // a stream is there
}

// add takes what was committed; last is the end of the log.
func (t *tail) add(fresh []store.LaneItem, last journal.Pos) {
	if !t.keep {
		t.clear(last)
		return
	}
	t.items = append(t.items, fresh...)
	for i := range fresh {
		t.bytes += fresh[i].Size()
	}
	drop := 0
	for t.bytes > tailBytes {
		t.bytes -= t.items[drop].Size()
		drop++
	}
	t.drop(drop)
}

// clear forgets the items.
func (t *tail) clear(last journal.Pos) { t.base, t.items, t.bytes = last, nil, 0 }

// after returns up to limit items behind pos; ok is false if the tail does not
// reach back that far. What is before pos is not asked for again by this stream.
func (t *tail) after(pos journal.Pos, limit int) (items []store.LaneItem, ok bool) {
	if t.base.After(pos) {
		return nil, false
	}
	n, _ := slices.BinarySearchFunc(t.items, pos, func(it store.LaneItem, pos journal.Pos) int {
		if journal.Pos(it.Pos).After(pos) {
			return 1
		}
		return -1
	})
	for i := range n {
		t.bytes -= t.items[i].Size()
	}
	t.drop(n)
	return slices.Clone(t.items[:min(limit, len(t.items))]), true
}

// caughtUp says that there was nothing behind pos on disk when the log ended at end:
// what has come since is in items, unless it did not fit.
func (t *tail) caughtUp(pos, end journal.Pos) {
	if t.base == end {
		t.base = pos
	}
}

func (t *tail) drop(n int) {
	if n == 0 {
		return
	}
	t.base = journal.Pos(t.items[n-1].Pos)
	clear(t.items[:n]) // let the bodies go
	t.items = t.items[n:]
}
