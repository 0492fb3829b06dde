package lane

import (
	"testing"

	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

// TestTailCatchesUp has items committed while a stream looks on disk and finds nothing
// behind what it has sent: they are sent from memory, or looked for on disk, but not
// passed over.
func TestTailCatchesUp(t *testing.T) {
	pos := func(seq uint64) journal.Pos { return journal.Pos{Epoch: 1, Seq: seq} }
	large := make([]byte, MaxBody)
	for name, c := range map[string]struct {
		bodies [][]byte
		ok     bool // the tail has them
	}{
		"nothing":              {nil, true},
		"small ones":           {[][]byte{nil, nil}, true},
		"one that is too much": {[][]byte{large}, false},
		"a small one behind":   {[][]byte{large, nil}, false},
		"and a large one":      {[][]byte{nil, large}, false},
	} {
		// Items 6 to 9 were there, and are gone: it may be that none is behind 5.
		tail := tail{keep: true, base: pos(9)}
		last := pos(9)
		end := last
		if _, ok := tail.after(pos(5), 10); ok {
			t.Fatal("the tail reaches back to where it does not")
		}
		for _, body := range c.bodies {
			last.Seq++
			tail.add([]store.LaneItem{{Pos: store.Pos(last), Body: body}}, last)
		}
		tail.caughtUp(pos(5), end)
		if items, ok := tail.after(pos(5), 10); ok != c.ok || ok && len(items) != len(c.bodies) {
			t.Errorf("%s: %d items of %d, and that is all: %v", name, len(items), len(c.bodies), ok)
		}
	}
}
