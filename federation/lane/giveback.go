package lane

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

// Why an item became a dead letter, as the store, the metrics and the commands
// name it.
const (
	ReasonExpired = "expired"
	ReasonDropped = "dropped"
	ReasonPeer    = "peer"
)

const (
	sweepEvery = time.Second
	// lookAgain is the longest time between two looks for expired items.
	lookAgain = 30 * time.Second
	buryItems = 256
	// Dead letters are kept for people to look at, so many and so long.
	keepDead    = 10_000
	keepDeadFor = 30 * 24 * time.Hour
	purgeEvery  = 10 * time.Minute
	purgeItems  = 1000
)

// reasonError is what a Recipient hears of a reason.
func reasonError(reason, detail string) error {
	switch reason {
	case ReasonExpired:
		return ErrExpired
	case ReasonDropped:
		return ErrDropped
	}
	return fmt.Errorf("%w: %s", federation.ErrPeerNotActive, detail)
}

// bury turns items of the outbox into dead letters. It needs l.sending, and none
// of them may be on its way.
func (l *outLane) bury(items []store.LaneItem, reason, detail string) error {
	err := l.do(func(tx *sql.Tx, row *store.OutLane) error {
		return l.d.cfg.Store.BuryOut(tx, row, items, reason, detail)
	})
	if err != nil {
		return fmt.Errorf("bury items: %w", err)
	}
	l.d.metrics.dead.WithLabelValues(l.d.peerName(l.key.peer), reason).Add(float64(len(items)))
	l.log().Warn("items given up", "reason", reason, "count", len(items))
	signal(l.d.untold)
	return nil
}

// settledUpTo is the position behind which nothing is on its way to the peer. It
// needs l.sending.
func (l *outLane) settledUpTo() journal.Pos {
	if l.flight != nil {
		return l.flight.Sent()
	}
	return l.reached
}

// expire buries what has waited for too long. An item that is to wait less long
// than the ones before it goes when they have gone.
func (l *outLane) expire(ctx context.Context, now time.Time) error {
	if now.Before(l.quietUntil()) {
		return nil
	}
	for {
		n, err := l.expirePage(ctx, now)
		if n < buryItems || err != nil {
			return err
		}
	}
}

func (l *outLane) quietUntil() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.row.Items == 0 {
		return time.Now().Add(sweepEvery)
	}
	return l.quiet
}

func (l *outLane) expirePage(ctx context.Context, now time.Time) (int, error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	id, after := l.id(), store.Pos(l.settledUpTo())
	items, err := l.d.cfg.Store.ExpiredOut(ctx, id, after, now, buryItems)
	if err != nil {
		return 0, fmt.Errorf("look for expired items: %w", err)
	}
	if len(items) > 0 {
		return len(items), l.bury(items, ReasonExpired, "")
	}
	first, err := l.d.cfg.Store.OutItems(ctx, id, after, 1, 1)
	if err != nil {
		return 0, fmt.Errorf("look for the oldest item: %w", err)
	}
	quiet := now.Add(lookAgain)
	if len(first) > 0 && first[0].Expires.Before(quiet) {
		quiet = first[0].Expires
	}
	l.mu.Lock()
	l.quiet = quiet
	l.mu.Unlock()
	return 0, nil
}

func (l *outLane) id() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.row.ID
}

// sweep buries what expires and forgets what is old, until ctx is done.
func (d *Durable) sweep(ctx context.Context) error {
	var purged time.Time
	for pause(ctx, sweepEvery) {
		now := time.Now()
		for _, l := range d.outLanes() {
			if err := l.expire(ctx, now); err != nil && ctx.Err() == nil {
				l.log().Error("expired items could not be given back; they are tried again", "err", err)
			}
		}
		d.buryGone(ctx)
		if now.Sub(purged) < purgeEvery {
			continue
		}
		purged = now
		if err := d.purge(ctx, now); err != nil && ctx.Err() == nil {
			d.cfg.Log.Error("old ids and dead letters could not be deleted; it is tried again", "err", err)
		}
	}
	return nil
}

// purge deletes what has been kept for long enough, a little at a time so that
// nobody waits for it.
func (d *Durable) purge(ctx context.Context, now time.Time) error {
	for _, step := range []func(tx *sql.Tx) (int64, error){
		func(tx *sql.Tx) (int64, error) { return d.cfg.Store.PurgeTaken(tx, now.Add(-takenFor), purgeItems) },
		func(tx *sql.Tx) (int64, error) {
			return d.cfg.Store.PurgeDead(tx, keepDead, now.Add(-keepDeadFor), purgeItems)
		},
	} {
		for {
			var n int64
			err := d.cfg.Store.Write(ctx, func(tx *sql.Tx) (err error) {
				n, err = step(tx)
				return err
			})
			if err != nil {
				return err
			}
			if n < purgeItems {
				break
			}
		}
	}
	return nil
}

// followPeers gives back what waits for peers that are blocked or removed, until
// ctx is done.
func (d *Durable) followPeers(ctx context.Context) error {
	changed, cancel := d.cfg.Directory.Subscribe()
	defer cancel()
	for {
		d.buryGone(ctx)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// buryGone buries what waits for peers that are blocked or removed. What is on its
// way when a peer goes is buried when its stream has ended, at the next sweep.
func (d *Durable) buryGone(ctx context.Context) {
	now := d.cfg.Directory.Now()
	for _, l := range d.outLanes() {
		p := now.Peer(l.key.peer)
		if p != nil && p.State != federation.StateBlocked && p.State != federation.StateRemoved || l.items() == 0 {
			continue
		}
		if _, err := l.buryAll(ctx, ReasonPeer, "the grid is no peer any more"); err != nil && ctx.Err() == nil {
			l.log().Error("what waits for a peer that is gone could not be given back; it is tried again", "err", err)
		}
	}
}

// buryAll buries everything that is not on its way, and returns how many items
// that were.
func (l *outLane) buryAll(ctx context.Context, reason, detail string) (buried int64, err error) {
	for {
		n, err := l.buryPage(ctx, reason, detail)
		if n == 0 || err != nil {
			return buried, err
		}
		buried += int64(n)
	}
}

func (l *outLane) buryPage(ctx context.Context, reason, detail string) (int, error) {
	l.sending.Lock()
	defer l.sending.Unlock()
	id := l.id()
	if id == 0 {
		return 0, nil
	}
	items, err := l.d.cfg.Store.OutItems(ctx, id, store.Pos(l.settledUpTo()), buryItems, pageBytes)
	if err != nil || len(items) == 0 {
		return 0, err
	}
	return len(items), l.bury(items, reason, detail)
}

// giveBack tells senders what has become of their items, oldest first for each
// conversation with a peer, until ctx is done. Where senders cannot be told now,
// that holds up neither the other conversations nor the other peers: each round
// looks at every letter once, and leaves out those behind one that failed.
func (d *Durable) giveBack(ctx context.Context) error {
	for ctx.Err() == nil {
		round := map[string]*telling{}
		for more := true; more && ctx.Err() == nil; {
			var err error
			if more, err = d.giveBackOnce(ctx, round); err != nil && ctx.Err() == nil {
				d.cfg.Log.Error("dead letters could not be given back; they are tried again", "err", err)
			}
		}
		timer := time.NewTimer(handMax)
		select {
		case <-d.untold:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	return nil
}

// telling is how far a round has come with the dead letters to one peer.
type telling struct {
	after  int64             // the last row that was looked at
	failed map[talk]struct{} // whose senders cannot be told now
}

func newTelling() *telling { return &telling{failed: map[talk]struct{}{}} }

// talk is a conversation with a peer.
type talk struct {
	kind int64
	conv string
}

// giveBackOnce tells the senders of the next page of dead letters of each peer.
// more says that there may be another page.
func (d *Durable) giveBackOnce(ctx context.Context, round map[string]*telling) (more bool, err error) {
	peers, err := d.cfg.Store.UntoldPeers(ctx)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, peer := range peers {
		t := round[peer]
		if t == nil {
			t = newTelling()
			round[peer] = t
		}
		dead, err := d.cfg.Store.Untold(ctx, peer, t.after, buryItems)
		if err != nil {
			return false, errors.Join(append(errs, err)...)
		}
		errs = append(errs, d.tell(ctx, t, dead))
		more = more || len(dead) > 0 // a page may have few letters, if they are large
	}
	return more, errors.Join(errs...)
}

// tell gives dead letters back, in order, and notes which senders were told.
func (d *Durable) tell(ctx context.Context, t *telling, dead []store.Dead) error {
	var told []store.Dead
	var first error
	failures := 0
	for i := range dead {
		l := &dead[i]
		t.after = l.Row
		about := talk{l.Kind, l.Conv}
		if _, failed := t.failed[about]; failed || ctx.Err() != nil {
			continue
		}
		if err := d.tellOne(ctx, l); err != nil {
			t.failed[about] = struct{}{}
			if failures++; failures == 1 {
				first = err
			}
			continue
		}
		told = append(told, *l)
	}
	if failures > 1 {
		first = fmt.Errorf("%w; so in %d conversations", first, failures)
	}
	return errors.Join(first, d.noteTold(ctx, told))
}

// noteTold notes on disk who was told: they have been, whatever happens now.
func (d *Durable) noteTold(ctx context.Context, told []store.Dead) error {
	if len(told) == 0 {
		return nil
	}
	err := d.cfg.Store.Write(context.WithoutCancel(ctx), func(tx *sql.Tx) error { return d.cfg.Store.MarkTold(tx, told) })
	if err == nil {
		for i := range told {
			delete(d.told, letterOf(&told[i]))
		}
	}
	return err
}

// letter names a dead letter for good; a row alone may be another's later.
type letter struct {
	row        int64
	peer, lane string
	pos        store.Pos
}

func letterOf(l *store.Dead) letter { return letter{l.Row, l.Peer, l.Lane, l.Pos} }

// tellOne gives one dead letter back, unless that was done and could not be noted.
func (d *Durable) tellOne(ctx context.Context, l *store.Dead) error {
	if d.told[letterOf(l)] {
		return nil
	}
	name := d.peerName(federation.GridID(l.Peer))
	to := d.cfg.Recipients[ProtocolOf(l.Kind)]
	if to == nil { // the operator took the protocol out of the configuration
		d.cfg.Log.Warn("the sender of an item that was given up cannot be told: its protocol is not served any more",
			"peer", name, "proto", string(ProtocolOf(l.Kind)), "id", fmt.Sprintf("dead/%d", l.Row))
	} else {
		it := Item{ID: l.ID, Kind: ProtocolOf(l.Kind), Conv: l.Conv, At: l.At, Expires: l.Expires, Body: l.Body}
		peer := d.cfg.Directory.Now().Peer(federation.GridID(l.Peer))
		if err := to.GiveBack(ctx, peer, it, reasonError(l.Reason, l.Detail)); err != nil {
			return fmt.Errorf("give back dead/%d, an item for %s: %w", l.Row, name, err)
		}
	}
	d.told[letterOf(l)] = true
	return nil
}
