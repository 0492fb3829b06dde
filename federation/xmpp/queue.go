package xmpp

import (
	"context"
	"sync"
)

// reply is a stanza of the gateway's own making, with the domains of the stream
// that it belongs to.
type reply struct {
	from, to string
	stanza   []byte
	// told, where it is set, is called once the reply has reached the local server
	// or never will: somebody counts on it.
	told func()
	// gone, where it is set, is called once the reply has left the queue for good,
	// whatever became of it.
	gone func()
}

const (
	// queueBytes bound what waits in one queue, about 10,000 bounces.
	queueBytes = 4 << 20
	// replyBytes are charged for each reply beside its stanza.
	replyBytes = 64
	// sendBatch is how many stanzas are handed on at once.
	sendBatch = 64
)

// queue decouples those who may not block, or who hold the very stream that the
// reply has to pass, from the sending of replies. There is one for each peer and
// direction, so that no peer waits for another.
type queue struct {
	wake chan struct{} // one token: something waits

	mu    sync.Mutex
	wait  []reply
	bytes int
	room  chan struct{} // closed when the queue is taken; nil while nobody waits
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

// offer queues a reply if there is room.
func (q *queue) offer(r reply) bool {
	ok, _ := q.try(r)
	return ok
}

// put queues a reply, and waits for room.
func (q *queue) put(ctx context.Context, r reply) error {
	for {
		ok, room := q.try(r)
		if ok {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// force queues a reply whether there is room or not. What a caller can force must
// be bounded by other means, and ready.
func (q *queue) force(r reply) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(r)
}

// ready waits until the queue is within its bound.
func (q *queue) ready(ctx context.Context) error {
	for {
		q.mu.Lock()
		room := q.room
		full := q.bytes >= queueBytes
		if full && room == nil {
			room = make(chan struct{})
			q.room = room
		}
		q.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (q *queue) try(r reply) (ok bool, room <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes > 0 && q.bytes+len(r.stanza)+replyBytes > queueBytes {
		if q.room == nil {
			q.room = make(chan struct{})
		}
		return false, q.room
	}
	q.add(r)
	return true, nil
}

// add needs q.mu.
func (q *queue) add(r reply) {
	q.wait = append(q.wait, r)
	q.bytes += len(r.stanza) + replyBytes
	signal(q.wake)
}

func (q *queue) take() []reply {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.wait
	q.wait, q.bytes = nil, 0
	if q.room != nil {
		close(q.room)
		q.room = nil
	}
	return out
}

// drain sends what is queued until ctx is done, then returns nil. Each batch is of
// one stream. What send does not take is its own to account for.
func (q *queue) drain(ctx context.Context, send func(ctx context.Context, batch []reply)) error {
	for {
		for wait := q.take(); len(wait) > 0; {
			n := 1
			for n < len(wait) && n < sendBatch && wait[n].from == wait[0].from && wait[n].to == wait[0].to {
				n++
			}
			send(ctx, wait[:n])
			for _, r := range wait[:n] {
				if r.gone != nil {
					r.gone()
				}
			}
			wait = wait[n:]
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

func stanzasOf(batch []reply) [][]byte {
	out := make([][]byte, len(batch))
	for i := range batch {
		out[i] = batch[i].stanza
	}
	return out
}

// signal leaves one token in a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is there already
	}
}
