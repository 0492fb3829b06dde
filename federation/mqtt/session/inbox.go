package session

import (
	"context"
	"sync"
)

// most0In is how many bytes of messages at QoS 0 may wait for the handler; more are
// dropped, as QoS 0 has it.
const most0In = 8 << 20

// event is one thing for the handler.
type event struct {
	m    *Message
	a    *arrival // of a message at QoS 1 or 2
	up   *Info
	down error
	subs *subscribed
}

// subscribed is that all subscriptions are answered.
type subscribed struct{ refused map[string]error }

// inbox keeps what waits for the handler. Messages at QoS 1 and 2 are bounded by
// the gate, those at QoS 0 here.
type inbox struct {
	s *Session

	mu     sync.Mutex
	events []event
	bytes0 int
	wake   chan struct{}
}

func newInbox(s *Session) *inbox { return &inbox{s: s, wake: make(chan struct{}, 1)} }

// put appends an event; false: there is no room for a message at QoS 0.
func (b *inbox) put(e event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.m != nil && e.a == nil {
		if b.bytes0 > 0 && b.bytes0+e.m.size() > most0In {
			return false
		}
		b.bytes0 += e.m.size()
	}
	b.events = append(b.events, e)
	select {
	case b.wake <- struct{}{}:
	default:
	}
	return true
}

// stands says whether the last thing that waits is that all subscriptions are answered.
func (b *inbox) stands() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.events) > 0 && b.events[len(b.events)-1].subs != nil
}

// drop takes out what the broker gives again, at the end of a connection.
func (b *inbox) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.events[:0]
	for _, e := range b.events {
		if e.a == nil {
			kept = append(kept, e)
			continue
		}
		b.s.settle(e.a)
		if b.s.in.held[e.a.id] == e.a {
			delete(b.s.in.held, e.a.id)
		}
	}
	clear(b.events[len(kept):])
	b.events = kept
}

// run calls the handler, until ctx ends.
func (b *inbox) run(ctx context.Context) {
	for ctx.Err() == nil {
		if e, ok := b.next(); ok {
			b.give(ctx, e)
			continue
		}
		select {
		case <-b.wake:
		case <-ctx.Done():
		}
	}
	b.last()
}

// next takes one event: what stays can still be dropped.
func (b *inbox) next() (e event, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.events) == 0 {
		return e, false
	}
	e, b.events[0] = b.events[0], event{}
	b.events = b.events[1:]
	if e.m != nil && e.a == nil {
		b.bytes0 -= e.m.size()
	}
	return e, true
}

// last tells the handler of the end of the connection.
func (b *inbox) last() {
	<-b.s.over
	for e, ok := b.next(); ok; e, ok = b.next() {
		if e.m == nil {
			b.give(context.Background(), e)
		}
	}
}

func (b *inbox) give(ctx context.Context, e event) {
	switch {
	case e.up != nil:
		b.s.cfg.Handler.Up(*e.up)
	case e.down != nil:
		b.s.cfg.Handler.Down(e.down)
	case e.subs != nil:
		b.s.cfg.Handler.Subscribed(e.subs.refused)
	case e.a != nil:
		b.s.cfg.Handler.Arrive(ctx, e.m, b.s.acked(e.a))
	default:
		b.s.cfg.Handler.Arrive(ctx, e.m, func(error) {})
	}
}
