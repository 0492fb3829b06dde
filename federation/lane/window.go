package lane

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/yggate/yggate/federation"
)

// itemOverhead is charged to the window for each item beside its bytes, so that
// bounding bytes bounds the number of items too.
const itemOverhead = 512

// window holds what was sent to a peer and not yet acknowledged, in order, and
// bounds it. Items are numbered from 1 in the order of put.
type window struct {
	size int64
	room *semaphore.Weighted // first come, first served
	wake chan struct{}       // one token: there is something to take
	down chan struct{}       // closed by drain

	mu      sync.Mutex
	entries []entry // entries[head:] are unacknowledged
	head    int
	base    uint64 // number of entries[head]
	next    uint64 // number of the first entry not taken yet
	drained bool
	// One sample at a time measures how long an acknowledgement takes.
	sampleSeq uint64
	sampleAt  time.Time
}

type entry struct {
	item Item
	cost int64 // what it holds of room
}

func newWindow(size int64) *window {
	return &window{
		size: size, room: semaphore.NewWeighted(size),
		wake: make(chan struct{}, 1), down: make(chan struct{}), base: 1, next: 1,
	}
}

// put appends all items or none. It blocks while there is no room, in the order
// of the callers. Items that together exceed the whole window are let in when it
// is empty: their caller holds that memory already.
func (w *window) put(ctx context.Context, items []Item) error {
	var total int64
	for i := range items {
		total += cost(&items[i])
	}
	total = min(total, w.size)
	if err := w.acquire(ctx, total); err != nil {
		return err
	}
	w.mu.Lock()
	if w.drained {
		w.mu.Unlock()
		w.room.Release(total)
		return federation.ErrPeerDown
	}
	for i := range items {
		c := min(cost(&items[i]), total)
		total -= c
		w.entries = append(w.entries, entry{items[i], c})
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default: // a token is there already
	}
	return nil
}

func cost(it *Item) int64 {
	return int64(itemOverhead + len(it.Body) + len(it.ID) + len(it.Conv))
}

// acquire takes n of the room; it also ends when the window is drained.
func (w *window) acquire(ctx context.Context, n int64) error {
	if w.room.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-w.down:
			cancel(federation.ErrPeerDown)
		case <-stop:
		}
	}()
	if w.room.Acquire(ctx, n) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// take copies the next entries that were never taken into dst, up to its length,
// and returns how many and the number of the first.
func (w *window) take(dst []Item) (n int, first uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first = w.next
	for _, e := range w.entries[w.head+int(w.next-w.base):] {
		if n == len(dst) {
			break
		}
		dst[n] = e.item
		n++
	}
	w.next += uint64(n)
	if n > 0 && w.sampleSeq == 0 {
		w.sampleSeq, w.sampleAt = w.next-1, time.Now()
	}
	return n, first
}

// acked is what one ack settled.
type acked struct {
	items   int
	refused []returned
	// latency is the time from take to ack of a sampled item, 0 without one.
	latency time.Duration
}

type returned struct {
	item Item
	why  error
}

// ack settles every item up to a.Seq. It refuses an ack for what was never
// taken or is settled already.
func (w *window) ack(a *ack) (acked, error) {
	var done acked
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.drained {
		return done, federation.ErrPeerDown
	}
	if a.Seq < w.base || a.Seq >= w.next {
		return done, fmt.Errorf("ack of item %d, want one of %d to %d", a.Seq, w.base, w.next-1)
	}
	refusals := a.Refused
	for _, r := range refusals {
		if r.Seq < w.base || r.Seq > a.Seq {
			return done, fmt.Errorf("refusal of item %d in an ack of %d to %d", r.Seq, w.base, a.Seq)
		}
	}
	var freed int64
	for ; w.base <= a.Seq; w.base++ {
		e := &w.entries[w.head]
		if len(refusals) > 0 && refusals[0].Seq == w.base {
			r := refusals[0]
			refusals = refusals[1:]
			done.refused = append(done.refused, returned{e.item, &Refusal{Code: r.Code, Text: r.Text}})
		}
		freed += e.cost
		*e = entry{} // let the body go
		w.head++
		done.items++
	}
	w.compact()
	w.room.Release(freed)
	if w.sampleSeq != 0 && a.Seq >= w.sampleSeq {
		done.latency, w.sampleSeq = time.Since(w.sampleAt), 0
	}
	if len(refusals) > 0 {
		// The items are settled; the peer that repeats or disorders refusals is not
		// worth going on with.
		return done, fmt.Errorf("refusal of item %d out of order", refusals[0].Seq)
	}
	return done, nil
}

// compact moves the entries to the front once half of the slice is spent, which
// costs each entry at most one move.
func (w *window) compact() {
	if w.head < len(w.entries)-w.head {
		return
	}
	n := copy(w.entries, w.entries[w.head:])
	clear(w.entries[n:])
	w.entries, w.head = w.entries[:n], 0
}

// drain closes the window and returns what is left in it, in order. It is called
// once.
func (w *window) drain() []Item {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.drained = true
	close(w.down)
	left := make([]Item, 0, len(w.entries)-w.head)
	for _, e := range w.entries[w.head:] {
		left = append(left, e.item)
	}
	w.entries, w.head = nil, 0
	return left
}

func (w *window) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.entries) - w.head
}
