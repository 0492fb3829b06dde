package lane

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/yggate/yggate/federation"
)

const (
	// What a Recipient is handed at once.
	handItems = 64
	handBytes = 64 << 10
	// After a failure a conversation waits, twice as long each time.
	handMin = 100 * time.Millisecond
	handMax = 5 * time.Second
)

// conv is one conversation of a lane: its items go to the local server one
// after the other, whatever the others do.
type conv struct {
	key   string
	kind  federation.Protocol
	queue []*inItem
}

// enqueue puts an item behind those of its conversation. It needs l.mu.
func (l *inLane) enqueue(it *inItem) {
	kind := ProtocolOf(it.Kind)
	key := string(kind) + " " + it.Conv
	c := l.convs[key]
	if c == nil {
		c = &conv{key: key, kind: kind}
		l.convs[key] = c
		l.work(c)
	}
	c.queue = append(c.queue, it)
	l.held++
	l.bytes += it.Size()
}

// ProtocolOf returns the protocol that has a number in the tables and on the wire, or
// "" for one that this version does not know.
func ProtocolOf(kind int64) federation.Protocol {
	if kind < 0 || kind >= int64(len(kindName)) {
		return ""
	}
	return kindName[kind]
}

// work starts the worker of a conversation, once run runs. It needs l.mu.
func (l *inLane) work(c *conv) {
	if ctx := l.life; ctx != nil {
		l.d.work.Go(func() error { l.hand(ctx, c); return nil })
	}
}

// hand gives the local server the items of a conversation, in order, until none
// is left or ctx is done.
func (l *inLane) hand(ctx context.Context, c *conv) {
	wait := handMin
	for {
		items := l.front(c)
		if len(items) == 0 {
			return
		}
		n, err := l.give(ctx, c, items)
		l.settled(c, n)
		if n > 0 {
			wait = handMin
		}
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return
		}
		l.log().Info("the local server does not take items now; they wait", "proto", string(c.kind), "waiting", len(items), "err", err)
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, handMax)
	}
}

// front copies the first items of a conversation; the last one to see it empty
// ends it.
func (l *inLane) front(c *conv) []Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(c.queue) == 0 {
		delete(l.convs, c.key)
		return nil
	}
	var items []Item
	bytes := 0
	for _, it := range c.queue {
		if len(items) == handItems || len(items) > 0 && bytes+len(it.Body) > handBytes {
			break
		}
		bytes += len(it.Body)
		items = append(items, Item{
			ID: it.ID, Kind: c.kind, Conv: it.Conv, At: it.At, Expires: it.Expires, Source: l.source(it.Pos), Body: it.Body,
		})
	}
	return items
}

var errPaused = errors.New("the peer is paused")

// give hands items to their Recipient. What came from a peer that has been
// blocked or removed since is not delivered any more.
func (l *inLane) give(ctx context.Context, c *conv, items []Item) (settled int, err error) {
	to := l.d.cfg.Recipients[c.kind]
	peer := l.d.cfg.Directory.Now().Peer(l.key.peer)
	switch {
	case to == nil, peer == nil, peer.State == federation.StateBlocked, peer.State == federation.StateRemoved:
		l.log().Warn("items dropped: their peer or their kind is not served any more", "proto", string(c.kind), "count", len(items))
		l.d.metrics.discarded.Add(float64(len(items)))
		return len(items), nil
	case peer.State != federation.StateActive:
		return 0, errPaused
	}
	return to.Hand(ctx, peer, items)
}

// settled takes the first n items of a conversation for done.
func (l *inLane) settled(c *conv, n int) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, it := range c.queue[:n] {
		it.settled = true
		if it.fresh {
			l.open--
		}
		if it.Row != 0 {
			l.gone = append(l.gone, it.Row)
		}
		l.held--
		l.bytes -= it.Size()
	}
	clear(c.queue[:n])
	c.queue = c.queue[n:]
	l.makeRoom()
	signal(l.toCommit)
}

// makeRoom lets the stream go on, if there is room. It needs l.mu.
func (l *inLane) makeRoom() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}
