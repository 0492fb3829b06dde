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
	// handAhead is with how many items of a conversation a Recipient may be called
	// again before it is done with them.
	handAhead = 512
	// After a failure a conversation waits, twice as long each time.
	handMin = 100 * time.Millisecond
	handMax = 5 * time.Second
)

// conv is one conversation of a lane: its items go to the local server one
// after the other, whatever the others do.
type conv struct {
	key   string
	kind  federation.Protocol
	queue []*inItem // not settled
	given int       // of them, from the first, that are with the Recipient
	calls []*call   // of Hand, which have those, in order
	// failed is why a call has failed. The others under way are waited for, and what
	// is not settled is handed again.
	failed error
	moved  bool // items were settled since the worker last looked
	// wake has a token when there is more to hand, or a call has ended.
	wake chan struct{}
}

// call is one call of Hand.
type call struct {
	items   int
	ended   bool
	settled int
	err     error
}

// enqueue puts an item behind those of its conversation. It needs l.mu.
func (l *inLane) enqueue(it *inItem) {
	kind := ProtocolOf(it.Kind)
	key := string(kind) + " " + it.Conv
	c := l.convs[key]
	if c == nil {
		c = &conv{key: key, kind: kind, wake: make(chan struct{}, 1)}
		l.convs[key] = c
		l.work(c)
	}
	c.queue = append(c.queue, it)
	signal(c.wake)
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

// work starts the worker of a conversation while run runs. It needs l.mu.
func (l *inLane) work(c *conv) {
	if ctx := l.life; ctx != nil {
		l.d.work.Go(func() error { l.hand(ctx, c); return nil })
	}
}

// hand gives the local server the items of a conversation, in order, until none
// is left or ctx is done.
func (l *inLane) hand(ctx context.Context, c *conv) {
	wait := handMin
	for ctx.Err() == nil {
		if items, call := l.front(c); call != nil {
			l.give(ctx, c.kind, items, func(settled int, err error) { l.ended(c, call, settled, err) })
			continue
		}
		over, moved, err := l.stand(c)
		if over {
			return
		}
		if moved {
			wait = handMin
		}
		if err == nil {
			select {
			case <-c.wake:
			case <-ctx.Done():
			}
			continue
		}
		l.log().Info("the local server does not take items now; they wait", "proto", string(c.kind), "err", err)
		if !pause(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, handMax)
	}
}

// front copies the first items of a conversation that are not with the Recipient, for
// a call; nil if there are none or they are not to be handed now.
func (l *inLane) front(c *conv) ([]Item, *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.failed != nil || c.given >= handAhead {
		return nil, nil
	}
	var items []Item
	bytes := 0
	for _, it := range c.queue[c.given:] {
		if len(items) == handItems || len(items) > 0 && bytes+len(it.Body) > handBytes {
			break
		}
		bytes += len(it.Body)
		items = append(items, Item{
			ID: it.ID, Kind: c.kind, Conv: it.Conv, At: it.At, Expires: it.Expires, Source: l.source(it.Pos), Body: it.Body,
		})
	}
	if len(items) == 0 {
		return nil, nil
	}
	call := &call{items: len(items)}
	c.calls = append(c.calls, call)
	c.given += len(items)
	return items, call
}

// stand says how a conversation stands for which there is no call to make: that it is
// over, that items were settled since this was last asked, and why the items are to be
// handed again after a pause.
func (l *inLane) stand(c *conv) (over, moved bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	moved, c.moved = c.moved, false
	if len(c.calls) > 0 {
		return false, moved, nil
	}
	if err, c.failed = c.failed, nil; err != nil {
		c.given = 0
		return false, moved, err
	}
	if len(c.queue) > 0 {
		return false, moved, nil
	}
	delete(l.convs, c.key)
	return true, moved, nil
}

var (
	errPaused = errors.New("the peer is paused")
	errSome   = errors.New("it took only some")
)

// give hands items to their Recipient. What came from a peer that has been
// blocked or removed since is not delivered any more.
func (l *inLane) give(ctx context.Context, kind federation.Protocol, items []Item, done func(settled int, err error)) {
	to := l.d.cfg.Recipients[kind]
	peer := l.d.cfg.Directory.Now().Peer(l.key.peer)
	switch {
	case to == nil, peer == nil, peer.State == federation.StateBlocked, peer.State == federation.StateRemoved:
		l.log().Warn("items dropped: their peer or their kind is not served any more", "proto", string(kind), "count", len(items))
		l.d.metrics.discarded.Add(float64(len(items)))
		done(len(items), nil)
	case peer.State != federation.StateActive:
		done(0, errPaused)
	default:
		to.Hand(ctx, peer, items, done)
	}
}

// ended takes note of the end of a call. What calls behind one that failed have
// settled is handed again with the rest, since it comes behind it.
func (l *inLane) ended(c *conv, done *call, settled int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done.ended, done.settled, done.err = true, settled, err
	for len(c.calls) > 0 && c.calls[0].ended {
		first := c.calls[0]
		c.calls = c.calls[1:]
		if c.failed != nil {
			continue
		}
		l.settled(c, first.settled)
		if c.failed = first.err; c.failed == nil && first.settled < first.items {
			c.failed = errSome
		}
	}
	signal(c.wake)
}

// settled takes the first n items of a conversation for done. It needs l.mu.
func (l *inLane) settled(c *conv, n int) {
	if n == 0 {
		return
	}
	for _, it := range c.queue[:n] {
		it.settled = true
		if it.Row != 0 {
			l.gone = append(l.gone, it.Row)
		}
		l.held--
		l.bytes -= it.Size()
	}
	clear(c.queue[:n])
	c.queue = c.queue[n:]
	c.given -= n
	c.moved = true
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
