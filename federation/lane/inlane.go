package lane

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

const (
	// What one lane from a peer may hold that the local server has not taken yet,
	// and as much that it has and the disk has not; beyond that its stream is not
	// read, and the rest waits on the peer's disk.
	heldItems = 4096
	heldBytes = 4 << 20
	// commitPause is the least time between two commits of a lane from a peer.
	// Nobody waits for them but the peer's outbox.
	commitPause = 10 * time.Millisecond
	// settlePause is how long the commit of an item waits for the local server to take
	// it, since what it has taken needs no place in the inbox.
	settlePause = 20 * time.Millisecond
	// takenFor is how long the ids of items are remembered (rule 6 of journal).
	takenFor = 24 * time.Hour
)

// inLane is a lane from a peer. Items go to the local server as soon as they
// come; commits, in one transaction, move the lane's cursor and put into the inbox
// what the local server has not taken by then. The peer is acknowledged after that.
type inLane struct {
	d   *Durable
	key laneKey
	// toCommit holds a token when there is something to write.
	toCommit chan struct{}
	turns    turnstile

	mu    sync.Mutex
	row   store.InLane // as on disk
	rules journal.In   // as taken
	fresh []*inItem    // taken since the last commit, in order
	size  int64        // of them
	gone  []int64      // rows of the inbox that the local server has taken
	ids   map[string]bool
	convs map[string]*conv
	held  int   // items that the local server has not taken
	bytes int64 // of them
	room  chan struct{}
	begun []chan error    // wait for everything to be on disk
	acks  *ackSlot        // of the current stream, nil without one
	life  context.Context // of run; nil before and after
}

// inItem is one item on its way to the local server.
type inItem struct {
	store.InItem
	settled bool        // the local server has it
	before  journal.Pos // where the lane stood when it was taken
	came    time.Time
}

func newInLane(ctx context.Context, d *Durable, key laneKey, row store.InLane) (*inLane, error) {
	l := &inLane{
		d: d, key: key, row: row, toCommit: make(chan struct{}, 1),
		rules: journal.In{Cursor: journal.Pos(row.Cursor), Seen: row.Seen},
		ids:   map[string]bool{}, convs: map[string]*conv{},
	}
	if row.ID == 0 {
		return l, nil
	}
	left, err := d.cfg.Store.InItems(ctx, row.ID)
	if err != nil {
		return nil, err
	}
	for _, it := range left {
		l.enqueue(&inItem{InItem: it})
	}
	return l, nil
}

func (l *inLane) log() *slog.Logger { return l.d.logFor(l.key).With("dir", "in") }

// run hands on what the inbox holds and commits, until ctx is done; then it
// commits once more.
func (l *inLane) run(ctx context.Context) error {
	l.mu.Lock()
	l.life = ctx
	for _, c := range l.convs {
		l.work(c)
	}
	l.mu.Unlock()
	for {
		select {
		case <-l.toCommit:
		case <-ctx.Done():
			l.mu.Lock()
			l.life = nil // from here on nobody adds work; a stream may still take items
			l.mu.Unlock()
			if err := l.commit(context.WithoutCancel(ctx), true); err != nil {
				l.log().Error("what was taken last is not on disk; the peer sends it again", "err", err)
			}
			return nil
		}
		l.settle(ctx)
		if err := l.commit(ctx, false); err != nil && ctx.Err() == nil {
			l.d.metrics.storeFailed.Inc()
			l.log().Error("the store does not take what came; the peer keeps it", "err", err)
			pause(ctx, retryPause)
			signal(l.toCommit)
			continue
		}
		pause(ctx, commitPause)
	}
}

// settle waits until there is something to write: the local server gets a moment to
// take what is new.
func (l *inLane) settle(ctx context.Context) {
	for {
		l.mu.Lock()
		n, next := l.ripe()
		wait := n == 0 && len(l.fresh) > 0 && len(l.gone) == 0
		l.mu.Unlock()
		if !wait {
			return
		}
		timer := time.NewTimer(next)
		select {
		case <-l.toCommit: // something was taken or settled, or a stream has begun
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// ripe says how many of fresh, from the first, are to be written now, and in what time
// the one behind them will have to be. It needs l.mu.
func (l *inLane) ripe() (n int, next time.Duration) {
	if len(l.begun) > 0 { // a stream waits for all of it
		return len(l.fresh), 0
	}
	late := time.Now().Add(-settlePause)
	for n < len(l.fresh) && (l.fresh[n].settled || !l.fresh[n].came.After(late)) {
		n++
	}
	if n < len(l.fresh) {
		next = l.fresh[n].came.Sub(late)
	}
	return n, next
}

// intake is what one commit writes.
type intake struct {
	row   store.InLane
	store []*inItem
	ids   [][]byte
	gone  []int64
	begun []chan error
	fresh []*inItem
}

func (in *intake) empty(now store.InLane) bool {
	return len(in.gone) == 0 && len(in.begun) == 0 && in.row == now
}

// commit writes where the lane stands, up to the first item that the local server
// may take in a moment unless it is to be all, and acknowledges that to the peer.
func (l *inLane) commit(ctx context.Context, all bool) error {
	l.mu.Lock()
	in := l.gather(all)
	empty := in.empty(l.row)
	l.mu.Unlock()
	if empty {
		return nil
	}
	row, stored, err := l.write(ctx, in)
	l.mu.Lock()
	if err != nil {
		l.restore(in)
		l.mu.Unlock()
		for _, done := range in.begun {
			done <- err
		}
		return err
	}
	l.row = row
	for i, it := range in.store {
		if it.Row = stored[i].Row; it.settled {
			l.gone = append(l.gone, it.Row) // meanwhile
		}
	}
	for _, id := range in.ids {
		delete(l.ids, string(id))
	}
	acks, more := l.acks, len(l.gone) > 0 || len(l.fresh) > 0
	l.makeRoom()
	l.mu.Unlock()
	if acks != nil {
		acks.set(ackOf(row))
	}
	for _, done := range in.begun {
		done <- nil
	}
	if more {
		signal(l.toCommit)
	}
	return nil
}

// gather takes what is to be written now. It needs l.mu.
func (l *inLane) gather(all bool) *intake {
	n, _ := l.ripe()
	if all {
		n = len(l.fresh)
	}
	in := &intake{row: l.row, gone: l.gone, begun: l.begun, fresh: l.fresh[:n:n]}
	l.gone, l.begun, l.fresh = nil, nil, l.fresh[n:]
	in.row.Cursor, in.row.Seen = store.Pos(l.rules.Cursor), l.rules.Seen
	if len(l.fresh) > 0 {
		in.row.Cursor = store.Pos(l.fresh[0].before)
	} else {
		l.fresh = nil
	}
	for _, it := range in.fresh {
		l.size -= it.Size()
		if !it.settled {
			in.store = append(in.store, it)
		}
		if len(it.ID) > 0 {
			in.ids = append(in.ids, it.ID)
		}
	}
	return in
}

// restore takes back what could not be written. It needs l.mu.
func (l *inLane) restore(in *intake) {
	l.fresh = append(in.fresh, l.fresh...)
	l.gone = append(in.gone, l.gone...)
	for _, it := range in.fresh {
		l.size += it.Size()
	}
}

func (l *inLane) write(ctx context.Context, in *intake) (row store.InLane, stored []store.InItem, err error) {
	err = l.d.cfg.Store.Write(ctx, func(tx *sql.Tx) (err error) {
		row = in.row // it may run more than once
		if row.ID == 0 {
			made, err := l.d.cfg.Store.AddInLane(tx, string(l.key.peer), string(l.key.name))
			if err != nil {
				return err
			}
			row.ID = made.ID
		}
		stored = make([]store.InItem, len(in.store))
		for i, it := range in.store {
			stored[i] = it.InItem
		}
		if err := l.d.cfg.Store.AddInItems(tx, row.ID, stored); err != nil {
			return err
		}
		if err := l.d.cfg.Store.AddTaken(tx, row.ID, in.ids, time.Now()); err != nil {
			return err
		}
		if err := l.d.cfg.Store.CutIn(tx, in.gone); err != nil {
			return err
		}
		return l.d.cfg.Store.SaveInLane(tx, &row)
	})
	return row, stored, err
}

// ackOf says where a lane stands on disk. On one node that is safe, too; with a
// standby, only what that has would be (rule 4 of journal).
func ackOf(row store.InLane) ack {
	return ack{Epoch: row.Cursor.Epoch, Seq: row.Cursor.Seq, SafeEpoch: row.Cursor.Epoch, SafeSeq: row.Cursor.Seq}
}

// source names an item of the lane, see Item.Source.
func (l *inLane) source(pos store.Pos) string {
	return fmt.Sprintf("%s/%d.%d", l.key.name, pos.Epoch, pos.Seq)
}
