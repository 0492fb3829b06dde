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

// Dir is a direction, seen from this grid.
type Dir string

// The directions of a lane.
const (
	DirOut Dir = "out"
	DirIn  Dir = "in"
)

// Status is what one lane holds.
type Status struct {
	Peer  federation.GridID
	Lane  Name
	Dir   Dir
	Items int64 // not acknowledged by the peer, or not taken by the local server
	Bytes int64
	// Oldest is when the oldest of them was taken; zero without one.
	Oldest time.Time
	// Streaming says that a stream with the peer is open.
	Streaming bool
}

// Status returns what every lane holds.
func (d *Durable) Status(ctx context.Context) []Status {
	var all []Status
	for _, l := range d.outLanes() {
		all = append(all, l.status(ctx))
	}
	for _, l := range d.inLanes() {
		all = append(all, l.status())
	}
	return all
}

// Waiting returns how many items of a lane to a peer are not acknowledged yet, those
// on their way to the disk included.
func (d *Durable) Waiting(peer federation.GridID, name Name) int64 {
	d.mu.Lock()
	l := d.out[laneKey{peer, name}]
	d.mu.Unlock()
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.row.Items + int64(l.queued)
}

func (l *outLane) status(ctx context.Context) Status {
	l.mu.Lock()
	row, streaming := l.row, l.tail.keep
	l.mu.Unlock()
	st := Status{Peer: l.key.peer, Lane: l.key.name, Dir: DirOut, Items: row.Items, Bytes: row.Bytes, Streaming: streaming}
	if row.Items > 0 {
		// What is only missing from a listing is not worth failing it.
		if first, err := l.d.cfg.Store.OutItems(ctx, row.ID, store.Pos{}, 1, 1); err == nil && len(first) > 0 {
			st.Oldest = first[0].At
		}
	}
	return st
}

func (l *inLane) status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Status{Peer: l.key.peer, Lane: l.key.name, Dir: DirIn, Items: int64(l.held), Bytes: l.bytes, Streaming: l.acks != nil}
	for _, c := range l.convs {
		if len(c.queue) > 0 && (st.Oldest.IsZero() || c.queue[0].At.Before(st.Oldest)) {
			st.Oldest = c.queue[0].At
		}
	}
	return st
}

// Queued is an item that waits for a peer.
type Queued struct {
	Peer federation.GridID
	Lane Name
	Seq  uint64 // names it within its lane, for good
	// Sent says that it is on its way: the peer may have it.
	Sent bool
	Item Item
}

// ErrNoItem: no such item waits.
var ErrNoItem = errors.New("no such item waits")

// Queued lists up to limit items of each lane to a peer, oldest first.
func (d *Durable) Queued(ctx context.Context, peer federation.GridID, limit int) ([]Queued, error) {
	var all []Queued
	for _, l := range d.outLanes() {
		if l.key.peer != peer || l.id() == 0 {
			continue
		}
		items, err := d.cfg.Store.ListOut(ctx, l.id(), limit)
		if err != nil {
			return nil, fmt.Errorf("list lane %s: %w", l.key.name, err)
		}
		sent := l.onTheWay()
		for i := range items {
			all = append(all, l.listed(&items[i], sent))
		}
	}
	return all, nil
}

func (l *outLane) listed(it *store.LaneItem, sent journal.Pos) Queued {
	return Queued{
		Peer: l.key.peer, Lane: l.key.name, Seq: it.Pos.Seq, Sent: !journal.Pos(it.Pos).After(sent),
		Item: Item{ID: it.ID, Kind: ProtocolOf(it.Kind), Conv: it.Conv, At: it.At, Expires: it.Expires, Body: it.Body},
	}
}

func (l *outLane) onTheWay() journal.Pos {
	l.sending.Lock()
	defer l.sending.Unlock()
	return l.settledUpTo()
}

// QueuedItem returns one item.
func (d *Durable) QueuedItem(ctx context.Context, peer federation.GridID, lane Name, seq uint64) (Queued, error) {
	l, err := d.existing(peer, lane)
	if err != nil {
		return Queued{}, err
	}
	it, err := d.cfg.Store.OutItem(ctx, l.id(), seq)
	if errors.Is(err, sql.ErrNoRows) {
		return Queued{}, ErrNoItem
	}
	if err != nil {
		return Queued{}, err
	}
	return l.listed(&it, l.onTheWay()), nil
}

// existing returns a lane that has been used.
func (d *Durable) existing(peer federation.GridID, lane Name) (*outLane, error) {
	d.mu.Lock()
	l := d.out[laneKey{peer, lane}]
	d.mu.Unlock()
	if l == nil || l.id() == 0 {
		return nil, ErrNoItem
	}
	return l, nil
}

// ErrSent: an item is on its way, and whether the peer has it will be known soon.
var ErrSent = errors.New("the item is on its way to the peer")

// Drop takes one item out of the queue; its sender is told.
func (d *Durable) Drop(ctx context.Context, peer federation.GridID, lane Name, seq uint64) error {
	l, err := d.existing(peer, lane)
	if err != nil {
		return err
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	it, err := d.cfg.Store.OutItem(ctx, l.id(), seq)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return ErrNoItem
	case err != nil:
		return err
	case !journal.Pos(it.Pos).After(l.settledUpTo()):
		return ErrSent
	}
	return l.bury([]store.LaneItem{it}, ReasonDropped, "")
}

// DropOldest takes up to n items out of a queue that have waited longest and are not
// on their way, to make room for newer ones, and returns how many; their senders are
// told. Nothing is dropped while all that waits is on its way.
func (d *Durable) DropOldest(ctx context.Context, peer federation.GridID, lane Name, n int) (int, error) {
	l, err := d.existing(peer, lane)
	if errors.Is(err, ErrNoItem) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	items, err := d.cfg.Store.OutItems(ctx, l.id(), store.Pos(l.settledUpTo()), n, pageBytes)
	if err != nil || len(items) == 0 {
		return 0, err
	}
	return len(items), l.bury(items, ReasonDropped, "newer ones needed the room")
}

// DropAll takes everything out of the queues to a peer that is not on its way, and
// returns how many items that were; their senders are told.
func (d *Durable) DropAll(ctx context.Context, peer federation.GridID) (int64, error) {
	var dropped int64
	for _, l := range d.outLanes() {
		if l.key.peer != peer {
			continue
		}
		n, err := l.buryAll(ctx, ReasonDropped, "")
		dropped += n
		if err != nil {
			return dropped, err
		}
	}
	return dropped, nil
}

func (l *outLane) items() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.row.Items
}
