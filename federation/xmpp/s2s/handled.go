package s2s

import (
	"context"
	"sync"
	"time"
)

const (
	// ackEvery is how many settled stanzas a server is told of without asking.
	ackEvery = 100
	// ackDelay is how long fewer of them wait for more, and how long a server that
	// asks waits at most for what it asked about to be settled.
	ackDelay = time.Second
	// ackSpace is the least time between two acknowledgements. Prosody's mod_smacks
	// answers each with the next request while anything is unacknowledged, so that
	// under load as many would go back and forth as the connection carries.
	ackSpace = 20 * time.Millisecond
	// batchCost is charged for a batch beside its bytes, so that a flood of the
	// smallest is bounded too.
	batchCost = 128
)

// handled counts what the local server sent on a stream since it has enabled
// stream management, and tells it what of that is settled (XEP-0198 §4). Batches
// are settled in any order, and count in that of the stream.
//
// A server that asks is answered once, when what it asked about is settled: an
// answer before that would say nothing new, and have to be followed by another.
// It is held back for a time at most, as XEP-0198 §4 has it, and no stanza
// waits for it.
type handled struct {
	limit int // bytes of what is not counted yet
	write func([]byte) error
	wake  chan struct{} // an acknowledgement is due
	stop  chan struct{} // closed to end run
	ended chan error    // what run ended with

	telling sync.Mutex // keeps acknowledgements in order; taken before mu

	mu          sync.Mutex
	first, last *batch // those not counted, in the order of the stream
	bytes       int    // of these
	taken       uint32 // stanzas, modulo 2^32, as all counts here
	count       uint32 // of settled stanzas with none unsettled before them
	told        uint32 // count as the server last heard it
	toldAt      time.Time
	asks        bool   // it has asked and not been answered
	asked       uint32 // taken when it first did
	askedLast   uint32 // and when it last did
	moved       chan struct{}
	alarm       *time.Timer // wakes run
	due         time.Time   // when; zero if it does not
}

// batch is a number of stanzas that the handler was given in one call.
type batch struct {
	of      *handled
	next    *batch
	n       uint32 // stanzas
	bytes   int
	settled bool
}

// newHandled starts the goroutine that tells the server; finish ends it.
// broken is called if it cannot.
func newHandled(limit int, write func([]byte) error, broken func()) *handled {
	c := &handled{limit: limit, write: write, wake: make(chan struct{}, 1), stop: make(chan struct{}), ended: make(chan error, 1)}
	c.alarm = time.AfterFunc(ackDelay, c.signal)
	c.alarm.Stop()
	go func() {
		err := c.run()
		if err != nil {
			broken()
		}
		c.ended <- err
	}()
	return c
}

func (c *handled) signal() {
	select {
	case c.wake <- struct{}{}:
	default: // already told
	}
}

// run acknowledges what nobody waits for. Whoever settles a batch must not be
// held up by a server that does not read.
func (c *handled) run() error {
	for {
		select {
		case <-c.wake:
			if err := c.tell(); err != nil {
				return err
			}
		case <-c.stop:
			return nil
		}
	}
}

// take notes a batch before the handler gets it. It waits while too much is
// unsettled, which keeps the stream from being read.
func (c *handled) take(ctx context.Context, n, bytes int) (*batch, error) {
	b := &batch{of: c, n: uint32(n), bytes: bytes + batchCost}
	for {
		moved := c.add(b)
		if moved == nil {
			return b, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// add returns a channel to wait on if there is no room. A batch beyond all room
// passes alone.
func (c *handled) add(b *batch) (moved <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes > 0 && c.bytes+b.bytes > c.limit {
		return c.awaitMove()
	}
	if c.last == nil {
		c.first = b
	} else {
		c.last.next = b
	}
	c.last = b
	c.bytes += b.bytes
	c.taken += b.n
	return nil
}

// awaitMove returns what is closed when count moves on. It needs c.mu.
func (c *handled) awaitMove() <-chan struct{} {
	if c.moved == nil {
		c.moved = make(chan struct{})
	}
	return c.moved
}

// settle says that the batch need not be sent again. Once is enough.
func (b *batch) settle() {
	c := b.of
	c.mu.Lock()
	defer c.mu.Unlock()
	b.settled = true
	c.advance()
}

// refuse takes the batch out of the count: the handler did not take it.
func (b *batch) refuse() {
	c := b.of
	c.mu.Lock()
	defer c.mu.Unlock()
	if !b.settled {
		c.taken -= b.n
		b.n, b.settled = 0, true
		c.advance()
	}
}

// advance counts the settled batches at the front. It needs c.mu.
func (c *handled) advance() {
	if c.first == nil || !c.first.settled {
		return
	}
	for c.first != nil && c.first.settled {
		b := c.first
		c.first, b.next = b.next, nil
		c.count += b.n
		c.bytes -= b.bytes
	}
	if c.first == nil {
		c.last = nil
	}
	if c.moved != nil {
		close(c.moved)
		c.moved = nil
	}
	c.arrange()
}

// arrange sees to it that run tells the server when it is time. It needs c.mu.
func (c *handled) arrange() {
	owed, answer := c.count-c.told, c.asks && int32(c.asked-c.count) <= 0
	switch {
	case answer || owed >= ackEvery:
		c.tellAt(c.toldAt.Add(ackSpace))
	case owed > 0 || c.asks:
		if c.due.IsZero() {
			c.tellAt(time.Now().Add(ackDelay))
		}
	}
}

// tellAt wakes run at that time, unless it will be earlier. It needs c.mu.
func (c *handled) tellAt(at time.Time) {
	if !c.due.IsZero() && !at.Before(c.due) {
		return
	}
	c.due = at
	if wait := time.Until(at); wait > 0 {
		c.alarm.Reset(wait)
	} else {
		c.alarm.Stop()
		c.signal()
	}
}

// ask notes that the server wants to hear how much of what it sent is settled.
func (c *handled) ask() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.askedLast = c.taken
	if !c.asks {
		c.asks, c.asked = true, c.taken
	}
	c.arrange()
}

// tell sends the count, if it is time for that.
func (c *handled) tell() error {
	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	if c.due.IsZero() || time.Now().Before(c.due) {
		c.mu.Unlock() // lastWord was faster
		return nil
	}
	h := c.said()
	c.mu.Unlock()
	return c.write(smAck(h))
}

// lastWord sends the count at once.
func (c *handled) lastWord() error {
	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	h := c.said()
	c.mu.Unlock()
	return c.write(smAck(h))
}

// said takes the count for told, and returns it. It needs c.mu.
func (c *handled) said() uint32 {
	c.told, c.toldAt, c.due = c.count, time.Now(), time.Time{}
	c.alarm.Stop()
	c.asks, c.asked = c.asks && int32(c.askedLast-c.count) > 0, c.askedLast
	c.arrange()
	return c.count
}

// finish waits until all is settled, at most so long, and ends the goroutine. Its
// error is what kept that from telling the server.
func (c *handled) finish(within time.Duration) error {
	late := time.NewTimer(within)
	defer late.Stop()
	for moved := c.unsettled(); moved != nil; {
		select {
		case <-moved:
			moved = c.unsettled()
		case <-late.C:
			moved = nil
		}
	}
	close(c.stop)
	c.mu.Lock()
	c.alarm.Stop()
	c.mu.Unlock()
	return <-c.ended
}

// unsettled is nil when there is nothing of the kind.
func (c *handled) unsettled() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first == nil {
		return nil
	}
	return c.awaitMove()
}
