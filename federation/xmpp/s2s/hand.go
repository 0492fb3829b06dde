package s2s

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Hand gives stanzas of a peer domain to the local server of the domain to, in
// order with those that Send queues, and returns when the server has them: on a
// stream with stream management (XEP-0198) when it has acknowledged them, on
// another when they are written. n is how many, from the first, it surely has, and
// err says why not all; it may have some of the others. Those are not tried again
// and not given to Handler.Failed: they are the caller's to hand again, without
// having changed them. Unless the error wraps ErrDown a stream broke while it
// carried them, and the next attempt may begin at once.
//
// Hand fails as Send does if it cannot begin, and ends the stream of a server that
// does not take or acknowledge in time (Limits.Write, Limits.Ack).
func (s *Streams) Hand(ctx context.Context, from, to string, stanzas ...[]byte) (n int, err error) {
	if len(stanzas) == 0 {
		return 0, nil
	}
	h := &hand{size: len(stanzas), done: make(chan struct{})}
	o, err := s.enqueue(ctx, pair{from, to}, stanzas, h)
	if err != nil {
		return 0, err
	}
	select {
	case <-h.done:
	case <-ctx.Done():
		o.withdraw(h, ctx.Err())
	}
	return h.had, h.err
}

// hand is one call of Hand. Its stanzas stand side by side in the queue and go
// over one stream. The mu of the outbound guards it until done is closed.
type hand struct {
	size    int       // stanzas
	written int       // or in the write that is under way
	first   uint32    // how many stanzas were sent on the stream before it
	had     int       // that the server surely has
	due     time.Time // when the server must have acknowledged them; zero until all are written
	err     error
	done    chan struct{}
}

// ended says that nothing more happens to h.
func (h *hand) ended() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// end wakes the caller of Hand.
func (h *hand) end(err error) {
	if !h.ended() {
		h.err = err
		close(h.done)
	}
}

// gain notes that the server has n more, of those written.
func (h *hand) gain(n int) {
	h.had += min(n, h.written-h.had)
	if h.had == h.size {
		h.end(nil)
	}
}

// withdraw takes back what is not being written yet.
func (o *outbound) withdraw(h *hand, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	h.end(why)
	o.prune()
}

// cut ends the hands that the stream has begun to carry and will not finish.
func (o *outbound) cut(f *flight, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, h := range f.hands {
		h.end(fmt.Errorf("the stream to the local server broke: %w", why))
	}
	o.prune()
}

// prune drops the stanzas of ended hands from the queue. It needs o.mu.
func (o *outbound) prune() {
	gone := 0
	o.queue = slices.DeleteFunc(o.queue, func(it item) bool {
		if it.hand == nil || !it.hand.ended() {
			return false
		}
		gone += len(it.stanza)
		return true
	})
	if gone > 0 {
		o.grow(-gone)
	}
}
