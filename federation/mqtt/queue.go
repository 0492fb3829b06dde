package mqtt

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

const (
	// What goes to the outbox in one go.
	batchItems = 256
	batchBytes = 1 << 20
	// What may wait here for a peer. Messages at QoS 1 and 2 are bounded by what the
	// broker gives unacknowledged; these bounds are for QoS 0.
	passItems = 16384
	passBytes = 8 << 20
	// keepItems and keepBytes bound what of QoS 0 waits for the disk because it is
	// retained.
	keepItems = 4096
	keepBytes = 8 << 20
	// A queue that is full is tried again after such a time.
	fullMin = 50 * time.Millisecond
	fullMax = time.Second
	// remembered bounds the response topics of one peer.
	remembered = 4096
	// dropAtOnce is how many of the oldest make room for a message.
	dropAtOnce = 64
)

// peer is the working state for one peer.
type peer struct {
	a  *Adapter
	id federation.GridID
	// asked has the response topics that the peer was told of, and when.
	asked *recent[[16]byte, time.Time]
	pace  *pace

	mu     sync.Mutex
	up     bool
	gone   bool
	keep   pending // for the disk
	pass   pending // over lane.Eph
	wake   chan struct{}
	wakeup chan struct{} // of pass
	// storing is what of keep is on its way to the disk.
	storing []*outgoing
	// returned are topics of storing of which a retained message was given back meanwhile.
	returned map[string]bool
	// full is since when the outbox has had no room; zero: it has.
	full time.Time
	// touched are the topics that changed since the comparison of retained messages
	// that runs began; nil: none runs.
	touched map[string]bool
	// leftOut are those that it has left out, with MQTT 3.1.1, and leftBefore those of the
	// comparison before.
	leftOut, leftBefore map[string]bool
	// doubted is when all that the peer was told was last made unknown, for compare alone.
	doubted time.Time
	// heard is what the peer last said that it imports; nil: nothing in this life.
	heard []byte
	// comparing has a token when retained messages are to be compared, stating when
	// the state of the link is to be told.
	comparing, stating, importing chan struct{}
	end                           chan struct{} // closed when the peer is gone
}

// pending is what waits, in order.
type pending struct {
	items []*outgoing
	bytes int
}

func (q *pending) add(o *outgoing) {
	q.items = append(q.items, o)
	q.bytes += len(o.item.Body)
}

// take returns the first items, up to what goes in one go.
func (q *pending) take() []*outgoing {
	n, bytes := 0, 0
	for n < len(q.items) && n < batchItems && (n == 0 || bytes+len(q.items[n].item.Body) <= batchBytes) {
		bytes += len(q.items[n].item.Body)
		n++
	}
	batch := q.items[:n:n]
	if q.items = q.items[n:]; len(q.items) == 0 {
		q.items = nil
	}
	q.bytes -= bytes
	return batch
}

func newPeer(a *Adapter, id federation.GridID) *peer {
	token := func() chan struct{} { return make(chan struct{}, 1) }
	return &peer{
		a: a, id: id, asked: newRecent[[16]byte, time.Time](remembered), pace: newPace(), end: make(chan struct{}),
		wake: token(), wakeup: token(), comparing: token(), stating: token(), importing: token(),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// start begins the work. It needs a.mu and a.spawn.
func (p *peer) start() {
	for _, work := range []func(context.Context){p.store, p.send, p.compare, p.state, p.imports} {
		p.a.spawn(func(ctx context.Context) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			go func() {
				select {
				case <-p.end:
					cancel()
				case <-ctx.Done():
				}
			}()
			work(ctx)
		})
	}
}

// stop ends the work for good. What waits is given up.
func (p *peer) stop() {
	p.mu.Lock()
	p.gone = true
	left := append(p.keep.items, p.pass.items...)
	p.keep, p.pass = pending{}, pending{}
	p.mu.Unlock()
	close(p.end)
	for _, o := range left {
		p.giveUp(o, "peer")
	}
}

func (p *peer) name() string { return p.a.name(p.id) }

func (p *peer) setUp(up bool) {
	p.mu.Lock()
	p.up = up
	p.mu.Unlock()
}

func (p *peer) isUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.up
}

// rules are those of the peer now; nil if it may not use MQTT.
func (p *peer) rules() *peerRules { return p.a.rules.Load().peers[p.id] }

// queue takes an item. What does not wait for anyone is given up where too much waits.
func (p *peer) queue(o *outgoing) {
	p.mu.Lock()
	reason := ""
	switch {
	case p.gone:
		reason = "peer"
	case o.durable && o.state && p.leftOutLocked(o.topic):
		reason = "newer" // what was published meanwhile goes before it
	case o.durable && o.casual && (len(p.keep.items) >= keepItems || p.keep.bytes >= keepBytes):
		reason = "full"
	case o.durable:
		p.touchLocked(o)
		p.keep.add(o)
		o.count.Inc()
		signal(p.wake)
	case !p.up:
		reason = "down"
	case len(p.pass.items) >= passItems || p.pass.bytes >= passBytes:
		reason = "full"
	default:
		p.touchLocked(o)
		p.pass.add(o)
		o.count.Inc()
		signal(p.wakeup)
	}
	p.mu.Unlock()
	if reason == "newer" {
		o.done(nil)
	} else if reason != "" {
		p.giveUp(o, reason)
	}
}

// touchLocked notes for a comparison that runs that a topic has changed. With MQTT 3.1.1
// any message may be what its topic now holds. It needs p.mu.
func (p *peer) touchLocked(o *outgoing) {
	if p.touched != nil && !o.state && (o.retained != nil || p.a.v311()) {
		p.touched[o.topic] = true
	}
}

// leftOutLocked says whether a comparison leaves a topic out because it has changed. With
// MQTT 3.1.1 what changed it may not be retained at the peer: a topic that is published to
// all the time would never be, were it left out by two comparisons in turn. What is new of
// it soon follows what is told then. It needs p.mu.
func (p *peer) leftOutLocked(topic string) bool {
	if p.touched == nil || !p.touched[topic] || p.leftBefore[topic] {
		return false
	}
	if p.a.v311() {
		p.leftOut[topic] = true
	}
	return true
}

// endedLocked takes an item, and what was before it, from what is being stored. That
// comes before a comparison is asked for: one that finds the topic there leaves it to
// what is being stored. It needs p.mu.
func (p *peer) endedLocked(o *outgoing) {
	if i := slices.Index(p.storing, o); i >= 0 {
		p.storing = p.storing[i+1:]
	}
}

// giveUp ends the way of an item. A retained topic is compared again.
func (p *peer) giveUp(o *outgoing, reason string) {
	p.mu.Lock()
	p.endedLocked(o)
	p.mu.Unlock()
	p.a.metrics.dropped.WithLabelValues(p.name(), "out", reason).Inc()
	if o.retained != nil && reason != "peer" {
		p.reconcile()
	}
	o.done(nil)
}

// failed ends the way of items that were not stored. The broker gives them again, but not
// those at QoS 0: what is retained is compared.
func (p *peer) failed(batch []*outgoing, err error) {
	p.mu.Lock()
	p.endedLocked(batch[len(batch)-1])
	p.mu.Unlock()
	if slices.ContainsFunc(batch, func(o *outgoing) bool { return o.retained != nil }) {
		p.reconcile()
	}
	for _, o := range batch {
		o.done(err)
	}
}

// next waits for items.
func (p *peer) next(ctx context.Context, q *pending, wake chan struct{}) []*outgoing {
	for ctx.Err() == nil {
		p.mu.Lock()
		batch := q.take()
		if q == &p.keep {
			p.storing, p.returned = batch, nil
		}
		p.mu.Unlock()
		if len(batch) > 0 {
			return batch
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
	return nil
}

// send carries what passes, until ctx is done.
func (p *peer) send(ctx context.Context) {
	for {
		batch := p.next(ctx, &p.pass, p.wakeup)
		if batch == nil {
			return
		}
		items := make([]lane.Item, 0, len(batch))
		for _, o := range batch {
			if !p.pace.allow(p.rules()) {
				p.giveUp(o, "rate")
				continue
			}
			items = append(items, o.item)
			o.done(nil) // nothing more is promised
		}
		if len(items) == 0 {
			continue
		}
		if err := p.a.eph.Send(ctx, p.id, lane.Eph, items...); err != nil {
			p.a.metrics.dropped.WithLabelValues(p.name(), "out", "down").Add(float64(len(items)))
		}
	}
}

// store puts what waits on disk, in order, until ctx is done.
func (p *peer) store(ctx context.Context) {
	for {
		batch := p.next(ctx, &p.keep, p.wake)
		if batch == nil {
			return
		}
		left := p.storeBatch(ctx, batch)
		if len(left) == 0 {
			continue
		}
		p.mu.Lock()
		gone := p.gone
		p.mu.Unlock()
		for _, o := range left {
			if gone { // else the broker gives it to the next life
				p.giveUp(o, "peer")
			}
		}
		return
	}
}

// storeBatch returns what has no end yet when ctx is done.
func (p *peer) storeBatch(ctx context.Context, batch []*outgoing) (left []*outgoing) {
	for len(batch) > 0 {
		n := p.paced(ctx, batch)
		if n < 0 {
			return batch
		}
		if n == 0 { // given up by its rate
			p.giveUp(batch[0], "rate")
			batch = batch[1:]
			continue
		}
		ended := p.put(ctx, batch[:n])
		if batch = batch[ended:]; ended < n {
			return batch
		}
	}
	return nil
}

// paced says how many items may go now: at least one, or 0 for one that is too much,
// or -1 when ctx is done.
func (p *peer) paced(ctx context.Context, batch []*outgoing) int {
	r := p.rules()
	n := 0
	for n < len(batch) && p.pace.allow(r) {
		n++
	}
	if n > 0 || r == nil {
		return max(n, 1)
	}
	if r.policy.Overflow == federation.OverflowDropNewest || r.policy.Overflow == federation.OverflowDropOldest {
		return 0
	}
	if err := p.pace.Wait(ctx); err != nil {
		return -1
	}
	return 1
}

// put returns how many items are safe, given up, or have to be given again: from the
// first, and all of them unless ctx is done.
func (p *peer) put(ctx context.Context, batch []*outgoing) (ended int) {
	wait := fullMin
	for rest := batch; ; rest = batch[ended:] {
		err := p.putOnce(ctx, rest)
		switch {
		case ctx.Err() != nil:
			return ended
		case err == nil:
			p.setFull(false)
			p.stored(ctx, rest)
			return len(batch)
		case errors.Is(err, federation.ErrPeerNotActive):
			for _, o := range rest {
				p.giveUp(o, "peer")
			}
			return len(batch)
		case !errors.Is(err, lane.ErrFull):
			p.a.log.Warn("messages for a peer cannot be stored; the broker keeps them", "peer", p.name(), "count", len(rest), "err", err)
			p.failed(rest, err)
			return len(batch)
		case len(rest) > 1:
			half := rest[:len(rest)/2]
			n := p.put(ctx, half)
			if ended += n; n < len(half) {
				return ended
			}
			continue
		}
		p.setFull(true)
		if last := rest[0].item.Expires; !last.IsZero() && time.Now().After(last) {
			p.giveUp(rest[0], "expired")
			return len(batch)
		}
		if p.overflow(ctx, rest[0]) {
			return len(batch)
		}
		if !pause(ctx, wait) {
			return ended
		}
		wait = min(2*wait, fullMax)
	}
}

// overflow makes room for an item or gives it up; then it is true.
func (p *peer) overflow(ctx context.Context, o *outgoing) (gone bool) {
	r := p.rules()
	if r == nil {
		p.giveUp(o, "peer")
		return true
	}
	switch r.policy.Overflow {
	case federation.OverflowDropNewest:
		p.giveUp(o, "full")
		return true
	case federation.OverflowDropOldest:
		n, err := p.a.outbox.DropOldest(ctx, p.id, lane.MQTT, dropAtOnce)
		if err != nil && ctx.Err() == nil {
			p.a.log.Warn("the oldest messages for a peer cannot be dropped; it is tried again", "peer", p.name(), "err", err)
		}
		p.a.metrics.dropped.WithLabelValues(p.name(), "out", "oldest").Add(float64(n))
	}
	return false
}

// putOnce returns when the items are on disk, or will not be.
func (p *peer) putOnce(ctx context.Context, batch []*outgoing) error {
	items := make([]lane.Item, len(batch))
	for i, o := range batch {
		items[i] = o.item
	}
	stored := make(chan error, 1)
	if err := p.a.outbox.Put(ctx, p.id, lane.MQTT, func(err error) { stored <- err }, items...); err != nil {
		return err
	}
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		return ctx.Err() // they may be stored; what comes again is dropped by the peer
	}
}

// stored remembers what the peer will have retained, and lets the broker forget.
func (p *peer) stored(ctx context.Context, batch []*outgoing) {
	err := p.a.rememberRetained(ctx, p.id, batch)
	if err != nil {
		p.a.log.Warn("what a peer has retained is not noted; it is sent once more", "peer", p.name(), "err", err)
	}
	p.doubtReturned(ctx, batch)
	for _, o := range batch {
		o.done(nil)
	}
}

func (p *peer) setFull(full bool) {
	p.mu.Lock()
	was := p.full
	switch {
	case !full:
		p.full = time.Time{}
	case was.IsZero():
		p.full = time.Now()
	}
	p.mu.Unlock()
	if r := p.rules(); full && was.IsZero() && r != nil {
		p.a.log.Warn("the queue to a peer is full", "peer", p.name(), "overflow", string(r.policy.Overflow))
	}
}
