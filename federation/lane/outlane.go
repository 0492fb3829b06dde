package lane

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

const (
	// What may wait for the disk: about what one commit takes in.
	queueItems = 4096
	queueBytes = 4 << 20
	// commitItems are what one commit adds, and deletes, about; more would keep the
	// other lanes waiting for their turn.
	commitItems = 1024
	// commitSpace is the least time between commits while several items come at
	// once. Whoever sends one after the other is not held up.
	commitSpace = 2 * time.Millisecond
	// cutDelay is how long acknowledged items may stay in the outbox, so that many
	// are deleted at once.
	cutDelay = 100 * time.Millisecond
	// While the store fails it is tried each retryPause, and what has waited for
	// putPatience goes back to its sender.
	retryPause  = time.Second
	putPatience = 30 * time.Second
)

var errNotRunning = errors.New("the durable lanes are not running")

// outLane is a lane to a peer. One goroutine, commits, is the only one that
// writes to it; another, streams, carries what is on disk to the peer.
type outLane struct {
	d   *Durable
	key laneKey
	// toCommit and toSend each hold a token when there is work.
	toCommit, toSend chan struct{}
	// linkUp holds a token when the link has changed.
	linkUp chan struct{}

	// row is the lane as on disk; only commits writes it, under mu.
	mu     sync.Mutex
	row    store.OutLane
	puts   []put
	queued int   // items in puts
	bytes  int64 // of them
	room   chan struct{}
	ops    []op
	cut    journal.Pos // the peer has made safe up to here
	tail   tail
	up     bool
	due    bool // what is to be deleted must not wait longer
	closed bool // commits has ended

	// sending is held while it is decided what is on its way to the peer, so that
	// what is given back is not sent, and the other way round. It is taken before mu.
	sending sync.Mutex
	flight  *journal.Flight // of the current stream, nil without one
	reached journal.Pos     // the peer is known to have everything up to here
	// quiet is until when no item expires, as far as was looked.
	quiet time.Time
}

// put is one call of Put.
type put struct {
	items  []store.LaneItem
	limits federation.Limits
	bytes  int64
	stored func(error)
	since  time.Time
}

// op changes the lane beside what is put into it, in the same transactions.
type op struct {
	apply func(tx *sql.Tx, row *store.OutLane) error
	done  chan error
}

func newOutLane(d *Durable, key laneKey, row store.OutLane) *outLane {
	return &outLane{
		d: d, key: key, row: row, tail: tail{base: journal.Pos(row.Last)},
		toCommit: make(chan struct{}, 1), toSend: make(chan struct{}, 1), linkUp: make(chan struct{}, 1),
	}
}

func (l *outLane) log() *slog.Logger { return l.d.logFor(l.key).With("dir", "out") }

// put queues items for the disk.
func (l *outLane) put(ctx context.Context, limits federation.Limits, stored func(error), items []Item) error {
	p := put{limits: limits, stored: stored, since: time.Now(), items: make([]store.LaneItem, len(items))}
	for i := range items {
		p.items[i] = l.stamp(&items[i], limits.TTL, p.since)
		p.bytes += p.items[i].Size()
	}
	for {
		l.mu.Lock()
		switch {
		case l.closed:
			l.mu.Unlock()
			return errNotRunning
		case l.queued == 0 || l.queued+len(items) <= queueItems && l.bytes+p.bytes <= queueBytes:
			l.puts = append(l.puts, p)
			l.queued += len(items)
			l.bytes += p.bytes
			l.mu.Unlock()
			signal(l.toCommit)
			return nil
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stamp makes an item one for the outbox.
func (l *outLane) stamp(it *Item, ttl time.Duration, now time.Time) store.LaneItem {
	out := store.LaneItem{ID: it.ID, Kind: int64(kindNumber[it.Kind]), Conv: it.Conv, At: now, Expires: it.Expires, Body: it.Body}
	if ttl <= 0 {
		ttl = federation.DefaultLimits().TTL
	}
	if last := now.Add(ttl); out.Expires.IsZero() || out.Expires.After(last) {
		out.Expires = last
	}
	return out
}

// do has commits apply a change, and waits for it to be on disk.
func (l *outLane) do(apply func(tx *sql.Tx, row *store.OutLane) error) error {
	o := op{apply, make(chan error, 1)}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errNotRunning
	}
	l.ops = append(l.ops, o)
	l.mu.Unlock()
	signal(l.toCommit)
	return <-o.done
}

// commits writes what is put, acknowledged and changed, until ctx is done; then
// it writes what is left and ends.
func (l *outLane) commits(ctx context.Context) error {
	var lazy <-chan time.Time
	for {
		b := l.gather()
		switch {
		case !b.empty():
			started := time.Now()
			if err := l.commit(context.WithoutCancel(ctx), &b); err != nil && !l.hold(ctx, b, err) {
				l.close(err)
				return nil
			}
			if len(b.puts) > 1 {
				pause(ctx, commitSpace-time.Since(started))
			}
			continue
		case ctx.Err() != nil:
			l.close(errNotRunning)
			return nil
		case b.pending && lazy == nil:
			lazy = time.After(cutDelay)
		}
		select {
		case <-l.toCommit:
		case <-ctx.Done():
		case <-lazy:
			lazy = nil
			l.mu.Lock()
			l.due = true
			l.mu.Unlock()
		}
	}
}

// batch is what one commit writes.
type batch struct {
	puts []put
	ops  []op
	upTo journal.Pos // to delete
	// pending says that there is something to delete, cut that it is deleted now.
	pending, cut bool
}

func (b *batch) empty() bool { return len(b.puts) == 0 && len(b.ops) == 0 && !b.cut }

// gather takes what waits. What is to be deleted stays until it is due or much.
func (l *outLane) gather() batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := batch{ops: l.ops, upTo: l.cut, pending: l.cut.After(journal.Pos(l.row.Safe))}
	if most := l.row.Safe.Seq + commitItems; b.upTo.Seq > most {
		// The rest goes with the next. All that is up to this is safe, too.
		b.upTo.Seq, l.due = most, true
	}
	b.cut = b.pending && l.due
	n := 0
	for taken := 0; n < len(l.puts) && taken < commitItems; n++ {
		taken += len(l.puts[n].items)
	}
	b.puts, l.puts = l.puts[:n:n], l.puts[n:]
	l.ops, l.due = nil, l.due && !b.cut
	return b
}

// commit writes a batch in one transaction, tells everyone concerned, and lets
// the stream have what is new. After an error nothing has changed.
func (l *outLane) commit(ctx context.Context, b *batch) error {
	l.mu.Lock()
	before := l.row
	l.mu.Unlock()
	var (
		row     store.OutLane
		verdict []error // of puts
		fresh   []store.LaneItem
		opErrs  []error
	)
	err := l.d.cfg.Store.Write(ctx, func(tx *sql.Tx) (err error) {
		row, verdict, fresh, opErrs = before, nil, nil, nil // it may run more than once
		if row.ID == 0 {
			if row, err = l.d.cfg.Store.AddOutLane(tx, string(l.key.peer), string(l.key.name)); err != nil {
				return err
			}
		}
		if verdict, fresh, err = l.place(&row, b.puts); err != nil {
			return err
		}
		if err := l.d.cfg.Store.AddOutItems(tx, row.ID, fresh); err != nil {
			return err
		}
		if b.cut {
			items, bytes, err := l.d.cfg.Store.CutOut(tx, row.ID, store.Pos(b.upTo))
			if err != nil {
				return err
			}
			row.Items, row.Bytes, row.Safe = row.Items-items, row.Bytes-bytes, store.Pos(b.upTo)
		}
		for _, o := range b.ops {
			opErrs = append(opErrs, o.apply(tx, &row))
		}
		if err := errors.Join(opErrs...); err != nil {
			return err // half a change must not be committed
		}
		return l.d.cfg.Store.SaveOutLane(tx, &row)
	})
	if err != nil {
		return err
	}
	l.committed(row, fresh, b)
	for i, p := range b.puts {
		p.stored(verdict[i])
	}
	for _, o := range b.ops {
		o.done <- nil
	}
	if len(fresh) > 0 {
		signal(l.toSend)
	}
	return nil
}

// place gives positions to what the quota lets in. verdict is ErrFull for the
// others.
func (l *outLane) place(row *store.OutLane, puts []put) (verdict []error, fresh []store.LaneItem, err error) {
	log := journal.Out{Last: journal.Pos(row.Last), Safe: journal.Pos(row.Safe)}
	for _, p := range puts {
		limits := quota(p.limits)
		if row.Items+int64(len(p.items)) > int64(limits.QueueItems) || row.Bytes+p.bytes > limits.QueueBytes {
			verdict = append(verdict, ErrFull)
			continue
		}
		verdict = append(verdict, nil)
		for _, it := range p.items {
			pos, err := log.Append(l.d.cfg.Epoch)
			if err != nil {
				return nil, nil, err
			}
			it.Pos = store.Pos(pos)
			fresh = append(fresh, it)
		}
		row.Items += int64(len(p.items))
		row.Bytes += p.bytes
	}
	row.Last = store.Pos(log.Last)
	return verdict, fresh, nil
}

// quota is what a peer's limits allow, with the default where they say nothing.
func quota(l federation.Limits) federation.Limits {
	def := federation.DefaultLimits()
	if l.QueueItems <= 0 {
		l.QueueItems = def.QueueItems
	}
	if l.QueueBytes <= 0 {
		l.QueueBytes = def.QueueBytes
	}
	return l
}

// committed takes over what is on disk now.
func (l *outLane) committed(row store.OutLane, fresh []store.LaneItem, b *batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.row = row
	l.tail.add(fresh, journal.Pos(row.Last))
	if len(b.ops) > 0 { // which may have taken items out
		l.tail.clear(journal.Pos(row.Last))
	}
	for _, p := range b.puts {
		l.queued -= len(p.items)
		l.bytes -= p.bytes
	}
	l.makeRoom()
}

func (l *outLane) makeRoom() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// hold keeps a batch that could not be written for the next attempt, and gives
// back what has waited long enough. It waits before that, and says whether to go
// on.
func (l *outLane) hold(ctx context.Context, b batch, why error) bool {
	l.d.metrics.storeFailed.Inc()
	l.log().Error("the store does not take items; they wait", "err", why)
	now := time.Now()
	var late []put
	for len(b.puts) > 0 && now.Sub(b.puts[0].since) > putPatience {
		late = append(late, b.puts[0])
		b.puts = b.puts[1:]
	}
	for _, o := range b.ops { // their callers try again as they see fit
		o.done <- why
	}
	l.mu.Lock()
	l.puts = append(b.puts, l.puts...)
	for _, p := range late {
		l.queued -= len(p.items)
		l.bytes -= p.bytes
	}
	if len(late) > 0 {
		l.makeRoom()
	}
	l.mu.Unlock()
	for _, p := range late {
		p.stored(why)
	}
	return pause(ctx, retryPause)
}

// close answers everyone who still waits.
func (l *outLane) close(why error) {
	l.mu.Lock()
	l.closed = true
	puts, ops := l.puts, l.ops
	l.puts, l.ops = nil, nil
	l.makeRoom()
	l.mu.Unlock()
	for _, p := range puts {
		p.stored(why)
	}
	for _, o := range ops {
		o.done <- why
	}
}
