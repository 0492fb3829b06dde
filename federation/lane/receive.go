package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
)

// Conditions of refusals that the lane itself gives (RFC 6120 §8.3.3).
const (
	codeUnknownKind = "feature-not-implemented"
	codeNotAllowed  = "not-allowed"
	codeInternal    = "internal-server-error"
)

// ServeStream receives items on a stream that a peer opened, until it ends, the
// peer opens another, ctx is done, or the peer is no longer active. It returns
// nil when the peer closed the stream between two items, and closes the stream in
// any case.
func (m *Memory) ServeStream(ctx context.Context, peer *federation.Peer, name string, stream io.ReadWriteCloser) error {
	if Name(name) != Eph {
		stream.Close()
		return fmt.Errorf("serve lane %q: %w", name, ErrUnknownLane)
	}
	budget := m.budget(peer)
	ctx, leave := budget.turns.enter(ctx)
	defer leave()
	in := &inbound{
		m: m, id: peer.ID, budget: budget, count: m.metrics.receiver(peer.Name),
		log: m.cfg.Log.With("peer", peer.Name, "dir", "in"), acks: newAckQueue(),
	}
	turn := ctx
	g, ctx := errgroup.WithContext(ctx)
	stopAll := context.AfterFunc(m.ctx, func() { stream.Close() })
	defer stopAll()
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	g.Go(func() error { return in.writeAcks(stream) })
	g.Go(func() error {
		defer in.acks.finish() // lets writeAcks end after what is acknowledged
		return in.receive(ctx, stream)
	})
	err := g.Wait()
	stream.Close()
	if cause := context.Cause(turn); cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("serve lane %q: %w", name, err)
	}
	return nil
}

// inbound is the receiving side of one stream.
type inbound struct {
	m      *Memory
	id     federation.GridID
	peer   *federation.Peer // as of the last batch
	budget *budget
	count  receiveCounters
	log    *slog.Logger
	acks   *ackQueue
}

func (in *inbound) receive(ctx context.Context, stream io.Reader) error {
	r := newReader(stream, maxFrame)
	var (
		f          frame
		seq, batch uint64
	)
	for {
		f = frame{}
		if err := r.next(&f); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read items: %w", err)
		}
		if err := f.check(); err != nil {
			return err
		}
		if seq++; f.Seq != seq {
			return fmt.Errorf("frame %d where %d is due", f.Seq, seq)
		}
		if r.reads != batch || in.peer == nil {
			batch = r.reads
			if err := in.refresh(); err != nil {
				return err
			}
		}
		if err := in.budget.wait(ctx, &in.peer.Policy.Limits, len(f.Body)); err != nil {
			return err
		}
		refusal, err := in.deliver(ctx, &f)
		if err != nil {
			return err
		}
		if err := in.acks.add(ctx, f.Seq, refusal); err != nil {
			return err
		}
	}
}

// refresh reads the peer's state and policy anew.
func (in *inbound) refresh() error {
	p := in.m.cfg.Directory.Now().Peer(in.id)
	if p == nil || p.State != federation.StateActive {
		return federation.ErrPeerNotActive
	}
	in.peer = p
	return nil
}

// deliver hands one item to its handler. The error is for the stream; a refusal
// is for the item.
func (in *inbound) deliver(ctx context.Context, f *frame) (*Refusal, error) {
	var kind federation.Protocol
	if f.Kind < uint64(len(kindName)) {
		kind = kindName[f.Kind]
	}
	h := in.m.cfg.Handlers[kind]
	if h == nil {
		in.count.refused.Inc()
		return &Refusal{codeUnknownKind, "this gateway does not carry that kind of item"}, nil
	}
	if !in.peer.Policy.Allow[kind] {
		in.count.refused.Inc()
		return &Refusal{codeNotAllowed, "the policy of this grid does not allow " + string(kind) + " from yours"}, nil
	}
	it := Item{ID: f.ID, Kind: kind, Conv: f.Conv, Body: f.Body}
	if f.Expires != 0 {
		it.Expires = time.UnixMilli(f.Expires)
	}
	in.count.items.Inc()
	in.count.bytes.Add(float64(len(f.Body)))
	err := h.Deliver(ctx, in.peer, it)
	if err == nil {
		return nil, nil
	}
	var no *Refusal
	if errors.As(err, &no) {
		in.count.refused.Inc()
		return no, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err() // nobody is left to tell
	}
	// A fault of ours: the sender learns that, and no more than that.
	in.log.Error("deliver failed", "proto", kind, "err", err)
	in.count.refused.Inc()
	return &Refusal{codeInternal, "the item could not be delivered"}, nil
}

func (in *inbound) writeAcks(stream io.Writer) error {
	var buf bytes.Buffer
	for {
		a, ok := in.acks.take()
		if !ok {
			return nil
		}
		buf.Reset()
		if err := appendMessage(&buf, &a); err != nil {
			return fmt.Errorf("encode ack: %w", err)
		}
		if _, err := stream.Write(buf.Bytes()); err != nil {
			return fmt.Errorf("write acks: %w", err)
		}
	}
}

// ackQueue merges acknowledgements while the last is being written. It never
// holds more than one ack.
type ackQueue struct {
	wake chan struct{} // one token: there is an ack, or finish was called
	room chan struct{} // one token: take emptied a full list of refusals

	mu       sync.Mutex
	pending  ack
	taken    uint64
	finished bool
}

func newAckQueue() *ackQueue {
	return &ackQueue{wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// add acknowledges seq. It blocks while the ack that waits is full of refusals.
func (q *ackQueue) add(ctx context.Context, seq uint64, no *Refusal) error {
	q.mu.Lock()
	for no != nil && len(q.pending.Refused) == maxRefused {
		q.mu.Unlock()
		select {
		case <-q.room:
		case <-ctx.Done():
			return ctx.Err()
		}
		q.mu.Lock()
	}
	q.pending.Seq = seq
	if no != nil {
		q.pending.Refused = append(q.pending.Refused, refused{seq, clip(no.Code, maxCode), clip(no.Text, maxText)})
	}
	q.mu.Unlock()
	signal(q.wake)
	return nil
}

// take waits for the next ack; false means that there will be none.
func (q *ackQueue) take() (ack, bool) {
	for {
		q.mu.Lock()
		a := q.pending
		if a.Seq > q.taken {
			q.taken = a.Seq
			q.pending = ack{Seq: a.Seq}
			q.mu.Unlock()
			signal(q.room)
			return a, true
		}
		finished := q.finished
		q.mu.Unlock()
		if finished {
			return ack{}, false
		}
		<-q.wake
	}
}

// finish lets take end once it has given out everything.
func (q *ackQueue) finish() {
	q.mu.Lock()
	q.finished = true
	q.mu.Unlock()
	signal(q.wake)
}

// signal leaves one token in a channel of capacity one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
