package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

// ServeStream takes the items of a durable lane from a stream that a peer opened,
// until it ends, the peer opens another, ctx is done, or the peer is no longer
// active. It returns nil when the peer closed the stream between two items, and
// closes the stream in any case.
func (d *Durable) ServeStream(ctx context.Context, peer *federation.Peer, name string, stream io.ReadWriteCloser) error {
	defer stream.Close()
	l, life, err := d.inLane(laneKey{peer.ID, Name(name)})
	if err != nil {
		return fmt.Errorf("serve lane %q: %w", name, err)
	}
	ctx, leave := l.turns.enter(ctx)
	defer leave()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(life, func() { end(errNotRunning) })()
	if err := l.serve(ctx, peer, stream); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("serve lane %q: %w", name, err)
	}
	return nil
}

// inLane returns the lane from a peer, made where it is not there yet, and the
// context of Run.
func (d *Durable) inLane(key laneKey) (l *inLane, life context.Context, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	life = d.running
	if life == nil {
		return nil, nil, errNotRunning
	}
	if l := d.in[key]; l != nil {
		return l, life, nil
	}
	if !isDurable(key.name) {
		return nil, nil, ErrUnknownLane
	}
	if l, err = newInLane(life, d, key, store.InLane{Peer: string(key.peer), Lane: string(key.name)}); err != nil {
		return nil, nil, err
	}
	d.in[key] = l
	d.work.Go(func() error { return l.run(life) })
	return l, life, nil
}

func (l *inLane) serve(ctx context.Context, peer *federation.Peer, stream io.ReadWriteCloser) error {
	run, stopped := context.WithCancel(ctx)
	defer stopped()
	g, ctx := errgroup.WithContext(run)
	stop := context.AfterFunc(ctx, func() { stream.Close() }) // wakes a blocked Read or Write
	defer stop()
	frames := newReader(stream, maxFrame)
	acks := newAckSlot()
	if err := l.begin(ctx, frames, acks); err != nil {
		return err
	}
	defer l.leave(acks)
	g.Go(func() error { return acks.write(ctx, stream) })
	g.Go(func() error {
		defer stopped()
		return l.receive(ctx, peer, frames)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// begin reads which life of the peer's gateway this is, and lets the first
// acknowledgement say where the lane stands.
func (l *inLane) begin(ctx context.Context, frames *reader, acks *ackSlot) error {
	var f frame
	if err := frames.next(&f); err != nil {
		return fmt.Errorf("read the beginning: %w", err)
	}
	if f.Epoch == 0 || f.Seq != 0 {
		return fmt.Errorf("the stream begins with frame %d.%d, not with an epoch alone", f.Epoch, f.Seq)
	}
	done := make(chan error, 1)
	l.mu.Lock()
	if err := l.rules.Begin(f.Epoch); err != nil {
		l.mu.Unlock()
		return err
	}
	l.begun = append(l.begun, done)
	l.mu.Unlock()
	signal(l.toCommit)
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("store where the lane stands: %w", err)
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	l.acks = acks
	row := l.row
	l.mu.Unlock()
	acks.set(ackOf(row))
	return nil
}

func (l *inLane) leave(acks *ackSlot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.acks == acks {
		l.acks = nil
	}
}

// receive takes items until the stream ends between two of them.
func (l *inLane) receive(ctx context.Context, peer *federation.Peer, r *reader) error {
	budget := l.d.budget(peer)
	count := l.d.metrics.lane(peer.Name, l.key.name)
	var batch uint64
	for {
		f := frame{}
		if err := r.next(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read items: %w", err)
		}
		if err := f.check(); err != nil {
			return err
		}
		if r.reads != batch {
			batch = r.reads
			if peer = l.d.cfg.Directory.Now().Peer(l.key.peer); peer == nil || peer.State != federation.StateActive {
				return federation.ErrPeerNotActive
			}
		}
		if err := budget.wait(ctx, &peer.Policy.Limits, len(f.Body)); err != nil {
			return err
		}
		if err := l.waitRoom(ctx); err != nil {
			return err
		}
		if err := l.take(ctx, &f); err != nil {
			return err
		}
		count.in.Inc()
		count.bytesIn.Add(float64(len(f.Body)))
	}
}

// take applies the rules to one frame, and lets the local server have its item.
func (l *inLane) take(ctx context.Context, f *frame) error {
	known, err := l.known(ctx, f.ID)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	take, err := l.rules.Accept(journal.Frame{
		Pos:  journal.Pos{Epoch: f.Epoch, Seq: f.Seq},
		Prev: journal.Pos{Epoch: f.PrevEpoch, Seq: f.PrevSeq},
	})
	if err != nil {
		return err
	}
	signal(l.toCommit) // the cursor has moved, or the peer must hear again where it is
	if !take || known {
		return nil
	}
	it := &inItem{InItem: store.InItem{LaneItem: itemOf(f)}, fresh: true}
	if len(f.ID) > 0 {
		l.ids[string(f.ID)] = true
	}
	l.fresh = append(l.fresh, it)
	l.size += it.Size()
	l.open++
	l.enqueue(it)
	return nil
}

// known says whether an item of this id was taken before.
func (l *inLane) known(ctx context.Context, id []byte) (bool, error) {
	if len(id) == 0 {
		return false, nil
	}
	l.mu.Lock()
	row, known := l.row.ID, l.ids[string(id)]
	l.mu.Unlock()
	if known || row == 0 {
		return known, nil
	}
	// What leaves ids is in the store before it does.
	found, err := l.d.cfg.Store.KnownTaken(ctx, row, [][]byte{id})
	if err != nil {
		return false, fmt.Errorf("look up an id: %w", err)
	}
	return found[0], nil
}

func itemOf(f *frame) store.LaneItem {
	it := store.LaneItem{
		Pos: store.Pos{Epoch: f.Epoch, Seq: f.Seq}, ID: f.ID, Kind: int64(f.Kind), Conv: f.Conv, Body: f.Body,
		At: time.Now(),
	}
	if at := time.UnixMilli(f.At); f.At > 0 && at.Before(it.At) { // the peer's clock may be ahead
		it.At = at
	}
	if f.Expires > 0 {
		it.Expires = time.UnixMilli(f.Expires)
	}
	return it
}

// waitRoom blocks while the local server, or the disk, is too far behind.
func (l *inLane) waitRoom(ctx context.Context) error {
	for {
		l.mu.Lock()
		if l.held < heldItems && l.bytes < heldBytes && len(l.fresh) < heldItems && l.size < heldBytes {
			l.mu.Unlock()
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

// ackSlot holds the newest acknowledgement while the one before is written.
type ackSlot struct {
	wake chan struct{}
	mu   sync.Mutex
	next ack
}

func newAckSlot() *ackSlot { return &ackSlot{wake: make(chan struct{}, 1)} }

func (s *ackSlot) set(a ack) {
	s.mu.Lock()
	s.next = a
	s.mu.Unlock()
	signal(s.wake)
}

// write sends acknowledgements until ctx is done. That is no error: why the stream
// ends is for others to say, who may come second.
func (s *ackSlot) write(ctx context.Context, stream io.Writer) error {
	var buf bytes.Buffer
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return nil
		}
		s.mu.Lock()
		a := s.next
		s.mu.Unlock()
		buf.Reset()
		if err := appendMessage(&buf, &a); err != nil {
			return fmt.Errorf("encode ack: %w", err)
		}
		if _, err := stream.Write(buf.Bytes()); err != nil {
			return fmt.Errorf("write acks: %w", err)
		}
	}
}
