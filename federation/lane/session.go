package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
)

const (
	// A write carries what waits, up to about this much, which is a few TLS
	// records and one wake-up of the far side.
	writeBytes = 64 << 10
	takeItems  = 256
	// While the link lives, a stream that fails is opened again soon.
	reopenMin = 200 * time.Millisecond
	reopenMax = 10 * time.Second
)

// session is the sending side of the lane to one peer while its link is up.
type session struct {
	m      *Memory
	peer   atomic.Pointer[federation.Peer]
	log    *slog.Logger
	count  sendCounters
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	// window is nil while there is no stream and none is being opened.
	window atomic.Pointer[window]
}

func newSession(m *Memory, p *federation.Peer) *session {
	s := &session{
		m: m, log: m.cfg.Log.With("peer", p.Name, "dir", "out"),
		count: m.metrics.sender(p.Name), done: make(chan struct{}),
	}
	s.peer.Store(p)
	s.ctx, s.cancel = context.WithCancel(m.ctx)
	s.window.Store(newWindow(m.cfg.Window))
	return s
}

// run keeps a stream open until the session is cancelled.
func (s *session) run() {
	defer close(s.done)
	defer s.cancel()
	pause := reopenMin
	for {
		w := s.window.Load()
		started := time.Now()
		err := s.serve(w)
		s.window.Store(nil)
		s.giveBack(w, err)
		if s.ctx.Err() != nil {
			return
		}
		s.log.Info("lane stream ended", "lane", Eph, "err", err)
		if time.Since(started) > reopenMax {
			pause = reopenMin
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, reopenMax)
		s.window.Store(newWindow(s.m.cfg.Window))
	}
}

// serve opens a stream and works it until it or the session ends.
func (s *session) serve(w *window) error {
	stream, err := s.m.cfg.Streams.OpenLane(s.ctx, s.peer.Load().ID, string(Eph))
	if err != nil {
		return fmt.Errorf("open lane: %w", err)
	}
	g, ctx := errgroup.WithContext(s.ctx)
	// Closing is what wakes a blocked Read or Write.
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	defer stop()
	g.Go(func() error { return s.write(ctx, w, stream) })
	g.Go(func() error { return s.readAcks(w, stream) })
	err = g.Wait()
	stream.Close()
	return err
}

// write sends what is put into the window. It flushes whenever nothing more
// waits, so that an item is never held back for the next.
func (s *session) write(ctx context.Context, w *window, stream io.Writer) error {
	var (
		batch = make([]Item, takeItems)
		buf   bytes.Buffer
		f     frame
	)
	for {
		n, seq := w.take(batch)
		if n == 0 {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		for i := range batch[:n] {
			it := &batch[i]
			f = frame{Seq: seq + uint64(i), ID: it.ID, Kind: kindNumber[it.Kind], Conv: it.Conv, Body: it.Body}
			if !it.Expires.IsZero() {
				f.Expires = it.Expires.UnixMilli()
			}
			if err := appendMessage(&buf, &f); err != nil {
				return fmt.Errorf("encode item: %w", err)
			}
			*it = Item{}
			if buf.Len() >= writeBytes || i == n-1 {
				if err := s.flush(stream, &buf); err != nil {
					return err
				}
			}
		}
		s.count.items.Add(float64(n))
	}
}

func (s *session) flush(stream io.Writer, buf *bytes.Buffer) error {
	n, err := stream.Write(buf.Bytes())
	s.count.bytes.Add(float64(n))
	if buf.Cap() > 4*writeBytes { // a large item went through; do not keep its room
		*buf = bytes.Buffer{}
	}
	buf.Reset()
	if err != nil {
		return fmt.Errorf("write to the peer: %w", err)
	}
	return nil
}

func (s *session) readAcks(w *window, stream io.Reader) error {
	r := newReader(stream, maxAck)
	var a ack
	for {
		a = ack{}
		if err := r.next(&a); err != nil {
			if errors.Is(err, io.EOF) {
				return errors.New("closed by the peer")
			}
			return fmt.Errorf("read acks: %w", err)
		}
		if err := a.check(); err != nil {
			return err
		}
		done, err := w.ack(&a)
		s.count.acked.Add(float64(done.items - len(done.refused)))
		s.count.refused.Add(float64(len(done.refused)))
		if done.latency > 0 {
			s.count.latency.Observe(done.latency.Seconds())
		}
		s.refresh()
		for _, r := range done.refused {
			s.m.cfg.Handlers[r.item.Kind].Returned(s.peer.Load(), r.item, r.why)
		}
		if err != nil {
			return err
		}
	}
}

// giveBack returns every item that the peer did not acknowledge.
func (s *session) giveBack(w *window, cause error) {
	left := w.drain()
	if len(left) == 0 {
		return
	}
	why := federation.ErrPeerDown
	if cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, why) {
		why = fmt.Errorf("%w: %w", why, cause)
	}
	s.refresh()
	s.count.returned.Add(float64(len(left)))
	for _, it := range left {
		s.m.cfg.Handlers[it.Kind].Returned(s.peer.Load(), it, why)
	}
}

// refresh takes the peer's newest form from the directory; one that was removed
// keeps its last.
func (s *session) refresh() {
	if p := s.m.cfg.Directory.Now().Peer(s.peer.Load().ID); p != nil {
		s.peer.Store(p)
	}
}
