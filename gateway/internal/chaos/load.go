package main

import (
	"context"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// maxBatch is how many messages of a conversation are handed over at once,
	// and with that how many of it are unacknowledged.
	maxBatch = 64
	// While more than a third of the messages that may be under way are, because
	// nothing gets through for a while, a conversation sends only some now and
	// then, so that the gateways always have something to take in.
	trickleBatch = 4
	tricklePause = 20 * time.Millisecond
	// sendAgain is how long a sender waits after its server could not send.
	sendAgain = 30 * time.Millisecond
)

// send has every conversation of every way send until load ends. What was begun
// then is brought to its end within ctx.
func (w *world) send(load, ctx context.Context, parts *errgroup.Group, o options) {
	for wayNo, way := range w.ways {
		for conv := range o.conversations {
			c := &sender{w: w, way: way, wayNo: wayNo, conv: conv, limit: o.backlog}
			parts.Go(func() error { return c.run(load, ctx) })
		}
	}
}

// sender is one conversation of one way.
type sender struct {
	w           *world
	way         *way
	wayNo, conv int
	limit       int
}

func (s *sender) run(load, ctx context.Context) error {
	for load.Err() == nil {
		n := 1 + rand.Uint32N(maxBatch)
		if s.w.ledger.underWay(s.wayNo) > s.limit/3 {
			n = 1 + rand.Uint32N(trickleBatch)
			pause(ctx, tricklePause)
		}
		first, ok := s.w.ledger.take(load, s.wayNo, s.conv, n, s.limit)
		if !ok {
			return nil
		}
		batch := make([][]byte, n)
		for i := range batch {
			batch[i] = s.way.message(name{s.wayNo, s.conv, first + uint32(i)})
		}
		took, err := s.way.from.server.hand(ctx, s.way.fromDomain, s.way.toDomain, batch)
		s.w.ledger.ack(s.wayNo, s.conv, first, took)
		// What was not acknowledged is not sent again: nobody knows where it is.
		if err != nil && !pause(ctx, sendAgain) {
			return nil
		}
	}
	return nil
}
