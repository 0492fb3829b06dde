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

// takeFrames is how many frames are looked at together.
const takeFrames = 64

// receive takes items until the stream ends between two of them.
func (l *inLane) receive(ctx context.Context, peer *federation.Peer, r *reader) error {
	budget := l.d.budget(peer)
	count := l.d.metrics.lane(peer.Name, l.key.name)
	frames := make([]frame, 0, takeFrames)
	for {
		var end error
		frames, end = arrived(r, frames[:0])
		if len(frames) > 0 {
			if peer = l.d.cfg.Directory.Now().Peer(l.key.peer); peer == nil || peer.State != federation.StateActive {
				return federation.ErrPeerNotActive
			}
			known, err := l.known(ctx, frames)
			if err != nil {
				return err
			}
			for i := range frames {
				if err := budget.wait(ctx, &peer.Policy.Limits, len(frames[i].Body)); err != nil {
					return err
				}
				if err := l.waitRoom(ctx); err != nil {
					return err
				}
				if err := l.take(&frames[i], known[i]); err != nil {
					return err
				}
				count.in.Inc()
				count.bytesIn.Add(float64(len(frames[i].Body)))
			}
			clear(frames) // of their bodies
		}
		switch {
		case errors.Is(end, io.EOF):
			return nil
		case end != nil:
			return fmt.Errorf("read items: %w", end)
		}
	}
}

// arrived appends the next frame, and those that have come with it, to frames. An
// error is about the frame behind them.
func arrived(r *reader, frames []frame) ([]frame, error) {
	var f frame
	err := r.next(&f)
	for more := err == nil; more && err == nil; {
		if err = f.check(); err != nil {
			break
		}
		if frames = append(frames, f); len(frames) == takeFrames {
			break
		}
		f = frame{}
		more, err = r.buffered(&f)
	}
	return frames, err
}

// take applies the rules to one frame, and lets the local server have its item.
// known says that an item of its id was taken before.
func (l *inLane) take(f *frame, known bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.rules.Cursor
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
	it := &inItem{InItem: store.InItem{LaneItem: itemOf(f)}, before: before, came: time.Now()}
	if len(f.ID) > 0 {
		l.ids[string(f.ID)] = true
	}
	l.fresh = append(l.fresh, it)
	l.size += it.Size()
	l.enqueue(it)
	return nil
}

// known says of each frame whether an item of its id was taken before, or comes
// before it among these.
func (l *inLane) known(ctx context.Context, frames []frame) ([]bool, error) {
	known := make([]bool, len(frames))
	var ids [][]byte
	var of []int // frames
	here := map[string]bool{}
	l.mu.Lock()
	row := l.row.ID
	for i := range frames {
		id := frames[i].ID
		if len(id) == 0 {
			continue
		}
		known[i] = l.ids[string(id)] || here[string(id)]
		here[string(id)] = true
		if !known[i] && row != 0 {
			ids, of = append(ids, id), append(of, i)
		}
	}
	l.mu.Unlock()
	// What leaves l.ids is in the store before it does.
	if len(ids) == 0 {
		return known, nil
	}
	found, err := l.d.cfg.Store.KnownTaken(ctx, row, ids)
	if err != nil {
		return nil, fmt.Errorf("look up ids: %w", err)
	}
	for j, i := range of {
		known[i] = found[j]
	}
	return known, nil
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
