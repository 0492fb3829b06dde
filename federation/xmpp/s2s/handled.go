package s2s

import (
	"context"
	"sync"
	"time"
)

const (
	// ackEvery is how many settled stanzas a server is told of without asking.
	ackEvery = 100
	// ackDelay is how long fewer of them wait for more.
	ackDelay = time.Second
	// batchCost is charged for a batch beside its bytes, so that a flood of the
	// smallest is bounded too.
	batchCost = 128
)

// handled counts what the local server sent on a stream since it has enabled
// stream management, and tells it what of that is settled (XEP-0198 §4). Batches
// are settled in any order, and count in that of the stream.
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
	asked       uint32 // taken when it last asked
	moved       chan struct{}
	idle        *time.Timer // wakes run after ackDelay
	ticking     bool        // idle is running
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
	c.idle = time.AfterFunc(ackDelay, c.signal)
	c.idle.Stop()
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
			if err := c.tell(false); err != nil {
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
	switch owed := c.count - c.told; {
	case owed == 0:
	case owed >= ackEvery, int32(c.asked-c.told) > 0: // it asked and was told less than it asked about
		c.signal()
	case !c.ticking:
		c.ticking = true
		c.idle.Reset(ackDelay)
	}
}

// tell sends the count if the server asks for it, or has not heard it.
func (c *handled) tell(asks bool) error {
	c.telling.Lock()
	defer c.telling.Unlock()
	c.mu.Lock()
	c.ticking = false
	c.idle.Stop()
	if asks {
		c.asked = c.taken
	}
	h, news := c.count, c.count != c.told
	c.told = h
	if int32(c.asked-h) < 0 {
		c.asked = h // or it would seem to lie ahead one day
	}
	c.mu.Unlock()
	if !asks && !news {
		return nil
	}
	return c.write(smAck(h))
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
	c.idle.Stop()
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
