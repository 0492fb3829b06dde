package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// ledger knows of every message whether it was acknowledged to its sender, has
// arrived, or came back. It lives outside the gateways and their databases, and
// takes three bits a message.
type ledger struct {
	began time.Time

	mu     sync.Mutex
	change *sync.Cond
	ways   []ledgerWay
	count  counts
	faults []string // the first maxFaults things that must not be
	last   time.Time
}

const maxFaults = 40

// counts are of messages, whole run.
type counts struct {
	sent, acked, arrived, told int
	dup, reordered, wrong      int
	both                       int // of dup: arrived and came back
	repeated                   int // again, as the last hop may
	most                       int // of them, of one way in one life
	pending                    int // acknowledged, and neither arrived nor told
}

type ledgerWay struct {
	way     *way
	pending int
	convs   []track
	again   struct { // what was repeated in the latest life with repeats
		life uint64
		n    int
	}
}

// track is one conversation.
type track struct {
	sent                 uint32 // the next number
	acked, arrived, told bitmap

	first     bool   // whether any has arrived
	highest   uint32 // of those that have arrived
	life      uint64 // of the receiving side, at the latest arrival
	at        uint32 // the latest arrival
	toldLives map[uint32]uint64
	marks     []mark // for people: when which were acknowledged
}

// mark says up to which message of a conversation had been acknowledged when.
type mark struct {
	at  time.Time
	seq uint32
}

// markEvery keeps the marks few.
const markEvery = time.Second

func newLedger(ways []*way, conversations int) *ledger {
	l := &ledger{began: time.Now(), last: time.Now()}
	l.change = sync.NewCond(&l.mu)
	for _, w := range ways {
		l.ways = append(l.ways, ledgerWay{way: w, convs: make([]track, conversations)})
	}
	return l
}

// take numbers the next n messages of a conversation once fewer than limit of its
// way are under way; false means that ctx ended before.
func (l *ledger) take(ctx context.Context, wayNo, conv int, n uint32, limit int) (first uint32, ok bool) {
	stop := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.change.Broadcast()
	})
	defer stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.ways[wayNo]
	for w.pending >= limit && ctx.Err() == nil {
		l.change.Wait()
	}
	if ctx.Err() != nil {
		return 0, false
	}
	t := &w.convs[conv]
	first = t.sent
	t.sent += n
	l.count.sent += int(n)
	return first, true
}

// ack notes that the sender's gateway has taken n messages from first on.
func (l *ledger) ack(wayNo, conv int, first uint32, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.ways[wayNo]
	t := &w.convs[conv]
	for seq := first; seq < first+uint32(n); seq++ {
		t.acked.set(seq)
		l.count.acked++
		if !t.arrived.has(seq) && !t.told.has(seq) {
			w.pending++
			l.count.pending++
		}
	}
	if now := time.Now(); n > 0 && (len(t.marks) == 0 || now.Sub(t.marks[len(t.marks)-1].at) >= markEvery) {
		t.marks = append(t.marks, mark{now, first + uint32(n) - 1})
	}
}

// note takes what a stand-in was given: a message that has arrived, or the error
// that tells its sender. life counts the lives of that side: it is another after
// its gateway was killed or its server was away.
func (l *ledger) note(r received, at *site, life uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
	if r.name.way >= len(l.ways) || r.name.conv >= len(l.ways[r.name.way].convs) {
		l.fault(&l.count.wrong, "%s at %s is no message that was sent", r.name, at.name)
		return
	}
	w := &l.ways[r.name.way]
	t := &w.convs[r.name.conv]
	side := w.way.to
	if r.told {
		side = w.way.from
	}
	switch {
	case r.wrong, at != side, r.name.seq >= t.sent:
		l.fault(&l.count.wrong, "%s at %s is not what was sent", r.name, at.name)
	case r.told:
		l.noteTold(w, t, r.name, life)
	default:
		l.noteArrival(w, t, r.name, life)
	}
	l.change.Broadcast()
}

func (l *ledger) noteArrival(w *ledgerWay, t *track, n name, life uint64) {
	// Within a life of the receiving side everything comes in order, what is
	// handed again too: it comes before anything new.
	again := t.first && life == t.life && n.seq <= t.at
	t.life, t.at = life, n.seq
	if t.arrived.has(n.seq) {
		if again {
			l.fault(&l.count.dup, "%s arrived twice in life %d of %s", n, life, w.way.to.name)
		} else {
			l.repeat(w, life)
		}
		return
	}
	if t.first && n.seq < t.highest {
		l.fault(&l.count.reordered, "%s arrived first after %d of its conversation, life %d of %s", n, t.highest, life, w.way.to.name)
	}
	l.settle(w, t, n)
	t.arrived.set(n.seq)
	t.first, t.highest = true, max(t.highest, n.seq)
	l.count.arrived++
	if t.told.has(n.seq) {
		l.fault(&l.count.dup, "%s arrived although its sender was told that it did not", n)
		l.count.both++
	}
}

// repeat counts a message that was handed again in another life.
func (l *ledger) repeat(w *ledgerWay, life uint64) {
	if w.again.life != life {
		w.again.life, w.again.n = life, 0
	}
	w.again.n++
	l.count.repeated++
	l.count.most = max(l.count.most, w.again.n)
}

func (l *ledger) noteTold(w *ledgerWay, t *track, n name, life uint64) {
	if t.told.has(n.seq) {
		if t.toldLives[n.seq] == life {
			l.fault(&l.count.dup, "the sender of %s was told twice in life %d of %s", n, life, w.way.from.name)
		} else {
			l.count.repeated++
		}
		t.toldLives[n.seq] = life
		return
	}
	l.settle(w, t, n)
	t.told.set(n.seq)
	if t.toldLives == nil {
		t.toldLives = map[uint32]uint64{}
	}
	t.toldLives[n.seq] = life
	l.count.told++
	if t.arrived.has(n.seq) {
		l.fault(&l.count.dup, "the sender of %s was told that it did not arrive, and it had", n)
		l.count.both++
	}
}

// settle ends the wait for an acknowledged message.
func (l *ledger) settle(w *ledgerWay, t *track, n name) {
	if t.acked.has(n.seq) && !t.arrived.has(n.seq) && !t.told.has(n.seq) {
		w.pending--
		l.count.pending--
	}
}

// fault counts what must not be, and keeps the first of them for people.
func (l *ledger) fault(counter *int, format string, args ...any) {
	*counter++
	if len(l.faults) < maxFaults {
		l.faults = append(l.faults, fmt.Sprintf("+%7.2fs  ", time.Since(l.began).Seconds())+fmt.Sprintf(format, args...))
	}
}

// now returns the counts, and when something came last.
func (l *ledger) now() (counts, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count, l.last
}

// underWay counts the acknowledged messages of a way that are neither there nor
// told.
func (l *ledger) underWay(wayNo int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ways[wayNo].pending
}

// arrivals counts the messages that have arrived at a site for the first time.
func (l *ledger) arrivals(at *site) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for i := range l.ways {
		if w := &l.ways[i]; w.way.to == at {
			for c := range w.convs {
				n += w.convs[c].arrived.n
			}
		}
	}
	return n
}

// explain writes what went wrong, and which messages are lost.
func (l *ledger) explain(out io.Writer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range l.faults {
		fmt.Fprintln(out, f)
	}
	shown := 0
	for i := range l.ways {
		w := &l.ways[i]
		for c := range w.convs {
			w.convs[c].lost(func(from, to uint32) {
				if shown++; shown <= maxFaults {
					fmt.Fprintf(out, "lost: %s, conversation %d, %d to %d, acknowledged about %s\n", w.way, c, from, to, w.convs[c].when(l.began, from))
				}
			})
		}
	}
	if shown > maxFaults {
		fmt.Fprintf(out, "lost: %d more runs of messages\n", shown-maxFaults)
	}
}

// lost yields each run of messages that were acknowledged and are lost.
func (t *track) lost(yield func(from, to uint32)) {
	in, from := false, uint32(0)
	for seq := range t.sent {
		gone := t.acked.has(seq) && !t.arrived.has(seq) && !t.told.has(seq)
		if gone && !in {
			from = seq
		}
		if in && !gone {
			yield(from, seq-1)
		}
		in = gone
	}
	if in {
		yield(from, t.sent-1)
	}
}

// when says between which marks a message was acknowledged.
func (t *track) when(began time.Time, seq uint32) string {
	before := began
	for _, m := range t.marks {
		if m.seq >= seq {
			return fmt.Sprintf("+%.2fs to +%.2fs", before.Sub(began).Seconds(), m.at.Sub(began).Seconds())
		}
		before = m.at
	}
	return fmt.Sprintf("+%.2fs or later", before.Sub(began).Seconds())
}

// bitmap is a set of numbers that are given out one after the other.
type bitmap struct {
	words []uint64
	n     int
}

func (b *bitmap) has(i uint32) bool {
	return int(i/64) < len(b.words) && b.words[i/64]&(1<<(i%64)) != 0
}

func (b *bitmap) set(i uint32) {
	for len(b.words) <= int(i/64) {
		b.words = append(b.words, 0)
	}
	if !b.has(i) {
		b.words[i/64] |= 1 << (i % 64)
		b.n++
	}
}
