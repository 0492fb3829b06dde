package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation/lane/journal"
	"github.com/yggate/yggate/store"
)

const (
	// pageItems and pageBytes are what is read from the outbox at once.
	pageItems = 256
	pageBytes = 1 << 20
)

// setUp tells the lane of its link.
func (l *outLane) setUp(up bool) {
	l.mu.Lock()
	l.up = up
	l.mu.Unlock()
	signal(l.linkUp)
}

func (l *outLane) isUp() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.up
}

// streams keeps a stream to the peer while the link is up, until ctx is done.
func (l *outLane) streams(ctx context.Context) error {
	wait := reopenMin
	for ctx.Err() == nil {
		if !l.isUp() {
			wait = reopenMin
			select {
			case <-l.linkUp:
			case <-ctx.Done():
			}
			continue
		}
		started := time.Now()
		err := l.stream(ctx)
		if ctx.Err() != nil {
			return nil
		}
		l.log().Info("lane stream ended", "err", err)
		if time.Since(started) > reopenMax {
			wait = reopenMin
		}
		select {
		case <-ctx.Done():
		case <-l.linkUp: // the link is down, or another
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
		wait = min(2*wait, reopenMax)
	}
	return nil
}

// stream opens a stream and works it until it ends.
func (l *outLane) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the group does it only where something runs in it
	stream, err := l.d.cfg.Streams.OpenLane(ctx, l.key.peer, string(l.key.name))
	if err != nil {
		return fmt.Errorf("open lane: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { stream.Close() }) // wakes a blocked Read or Write
	defer stop()
	defer stream.Close()
	acks := newReader(stream, maxAck)
	s, err := l.begin(stream, acks)
	if err != nil {
		return err
	}
	defer l.end()
	g.Go(func() error { return s.write(ctx, stream) })
	g.Go(func() error { return s.readAcks(acks) })
	return g.Wait()
}

// sending is one stream of an outLane.
type sending struct {
	l      *outLane
	out    *journal.Out // Safe alone counts here; Last is commits' own
	flight *journal.Flight
	count  durableCounters
	// One sample at a time measures how long an acknowledgement takes.
	samplePos journal.Pos
	sampleAt  time.Time
}

// begin says which life of the gateway this is and hears where the peer stands.
func (l *outLane) begin(stream io.Writer, acks *reader) (*sending, error) {
	var buf bytes.Buffer
	if err := appendMessage(&buf, &frame{Epoch: l.d.cfg.Epoch}); err != nil {
		return nil, fmt.Errorf("encode the beginning: %w", err)
	}
	if _, err := stream.Write(buf.Bytes()); err != nil {
		return nil, fmt.Errorf("write to the peer: %w", err)
	}
	var a ack
	if err := acks.next(&a); err != nil {
		return nil, fmt.Errorf("read where the peer stands: %w", err)
	}
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	out := &journal.Out{Last: journal.Pos(l.row.Last), Safe: journal.Pos(l.row.Safe)}
	l.mu.Unlock()
	flight, lost, err := out.Begin(l.d.cfg.Epoch, a.journal())
	if err != nil {
		return nil, err
	}
	if lost {
		l.log().Error("the peer has lost what it had acknowledged: its gateway came back with an older copy of its database",
			"stands", flight.Cursor(), "acknowledged", out.Safe)
	}
	l.flight, l.reached = flight, flight.Cursor()
	l.mu.Lock()
	l.tail.keep = true
	l.tail.clear(journal.Pos(l.row.Last))
	l.mu.Unlock()
	l.cutUpTo(out.Safe)
	return &sending{l: l, out: out, flight: flight, count: l.d.metrics.lane(l.d.peerName(l.key.peer), l.key.name)}, nil
}

// end forgets the stream.
func (l *outLane) end() {
	l.sending.Lock()
	defer l.sending.Unlock()
	l.reached, l.flight = l.flight.Cursor(), nil
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail.keep = false
	l.tail.clear(journal.Pos(l.row.Last))
}

// cutUpTo lets commits delete what the peer has made safe.
func (l *outLane) cutUpTo(pos journal.Pos) {
	l.mu.Lock()
	news := pos.After(l.cut) && pos.After(journal.Pos(l.row.Safe))
	if news {
		l.cut = pos
	}
	l.mu.Unlock()
	if news {
		signal(l.toCommit)
	}
}

// write sends what is on disk, and waits for more.
func (s *sending) write(ctx context.Context, stream io.Writer) error {
	var buf bytes.Buffer
	for {
		items, frames, err := s.next(ctx)
		if err != nil {
			return err
		}
		if len(items) == 0 {
			select {
			case <-s.l.toSend:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for i := range items {
			if err := appendMessage(&buf, frameOf(&items[i], frames[i])); err != nil {
				return fmt.Errorf("encode item: %w", err)
			}
			if buf.Len() >= writeBytes || i == len(items)-1 {
				n, err := stream.Write(buf.Bytes())
				s.count.bytesOut.Add(float64(n))
				if err != nil {
					return fmt.Errorf("write to the peer: %w", err)
				}
				if buf.Cap() > 4*writeBytes { // a large item went through; do not keep its room
					buf = bytes.Buffer{}
				}
				buf.Reset()
			}
		}
		s.count.out.Add(float64(len(items)))
	}
}

// next takes the next items for the stream: from memory when it keeps up, else
// from disk. From here on they are on their way.
func (s *sending) next(ctx context.Context) (items []store.LaneItem, frames []journal.Frame, err error) {
	l := s.l
	l.sending.Lock()
	defer l.sending.Unlock()
	l.mu.Lock()
	items, ok := l.tail.after(s.flight.Sent(), pageItems)
	id, end := l.row.ID, journal.Pos(l.row.Last)
	l.mu.Unlock()
	if !ok {
		if items, err = l.d.cfg.Store.OutItems(ctx, id, store.Pos(s.flight.Sent()), pageItems, pageBytes); err != nil {
			return nil, nil, fmt.Errorf("read the outbox: %w", err)
		}
	}
	frames = make([]journal.Frame, len(items))
	for i := range items {
		frames[i] = s.flight.Next(journal.Pos(items[i].Pos))
	}
	if len(items) == 0 && !ok {
		// Nothing on disk behind what was sent: from now on the tail has it all.
		l.mu.Lock()
		defer l.mu.Unlock()
		l.tail.caughtUp(s.flight.Sent(), end)
	}
	if len(items) > 0 && s.sampleAt.IsZero() {
		s.samplePos, s.sampleAt = s.flight.Sent(), time.Now()
	}
	return items, frames, nil
}

func frameOf(it *store.LaneItem, at journal.Frame) *frame {
	f := &frame{
		Epoch: at.Pos.Epoch, Seq: at.Pos.Seq, PrevEpoch: at.Prev.Epoch, PrevSeq: at.Prev.Seq,
		ID: it.ID, Kind: uint64(it.Kind), Conv: it.Conv, Body: it.Body, At: it.At.UnixMilli(),
	}
	if !it.Expires.IsZero() {
		f.Expires = it.Expires.UnixMilli()
	}
	return f
}

func (s *sending) readAcks(r *reader) error {
	for {
		var a ack
		if err := r.next(&a); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("closed by the peer")
			}
			return fmt.Errorf("read acks: %w", err)
		}
		s.l.sending.Lock()
		err := s.flight.Ack(a.journal())
		safe, cursor := s.out.Safe, s.flight.Cursor()
		s.l.reached = cursor
		if !s.sampleAt.IsZero() && !s.samplePos.After(cursor) {
			s.count.latency.Observe(time.Since(s.sampleAt).Seconds())
			s.sampleAt = time.Time{}
		}
		s.l.sending.Unlock()
		if err != nil {
			return err
		}
		s.l.cutUpTo(safe)
	}
}

// journal reads an ack as the rules have it.
func (a *ack) journal() journal.Ack {
	return journal.Ack{
		Cursor: journal.Pos{Epoch: a.Epoch, Seq: a.Seq},
		Safe:   journal.Pos{Epoch: a.SafeEpoch, Seq: a.SafeSeq},
	}
}
