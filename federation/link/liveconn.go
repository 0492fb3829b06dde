package link

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/yggate/yggate/federation"
)

// liveName in the server name indication says that a connection is for live
// requests.
const liveName = "live." + authority

var errIdle = errors.New("the connection for live requests was idle")

// liveConn is the connection for live requests that belongs to a session. It is
// not the session's own, because bodies fill what lies between the two gateways:
// with eight of them on a way of 100 KB/s a hello waits for more than 10 s, which
// would be the end of the link. It is dialled when it is first needed.
type liveConn struct {
	*pinned
	*places
	ctx    context.Context // done with the session, or when the connection is
	cancel context.CancelCauseFunc
	idle   *time.Timer
	rest   time.Duration // how long it may be idle
}

// liveDial is an attempt to have a liveConn, and what came of it.
type liveDial struct {
	done chan struct{}
	conn *liveConn
	err  error
}

// over says that the attempt is done, and that it has not or no longer a connection.
func (d *liveDial) over() bool {
	select {
	case <-d.done:
		return d.err != nil || d.conn.ctx.Err() != nil
	default:
		return false
	}
}

// close ends the connection, if there is one. An attempt under way ends with the
// context of the session.
func (d *liveDial) close() {
	if d == nil {
		return
	}
	select {
	case <-d.done:
		if d.conn != nil {
			d.conn.close()
		}
	default:
	}
}

// place waits for a place for one more live request until ctx or the session is
// done.
func (s *session) place(ctx context.Context) (*liveConn, error) {
	defer s.asking.Add(-1)
	if s.asking.Add(1) > maxWaiting {
		return nil, fmt.Errorf("%w: %d wait already", ErrBusy, maxWaiting)
	}
	for {
		c, err := s.liveConn(ctx)
		if err != nil {
			return nil, err
		}
		err = c.enter(ctx, c.ctx)
		if err == nil {
			return c, nil
		}
		if context.Cause(c.ctx) != errIdle {
			return nil, err
		}
	}
}

// liveConn returns the connection for live requests. Whoever comes first makes one
// be dialled, also for those who come later and wait longer.
func (s *session) liveConn(ctx context.Context) (*liveConn, error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return nil, federation.ErrPeerDown
	}
	d := s.live
	if d == nil || d.over() {
		d = &liveDial{done: make(chan struct{})}
		s.live = d
		go func() {
			d.conn, d.err = s.dialLive()
			close(d.done)
		}()
	}
	s.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.ctx.Done():
		return nil, fmt.Errorf("%w: %w", federation.ErrPeerDown, context.Cause(s.ctx))
	}
}

func (s *session) dialLive() (*liveConn, error) {
	p, err := s.l.dial(s.ctx, s.addr, s.proof.Key, liveName)
	if err == nil && p.proof.Node != s.proof.Node {
		p.close()
		err = errors.New("another node has answered")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: connection for live requests: %w", federation.ErrPeerDown, err)
	}
	c := &liveConn{pinned: p, places: newPlaces(p.cc, s.hello.Limits.Streams), rest: s.l.cfg.Timing.LiveIdle}
	c.ctx, c.cancel = context.WithCancelCause(s.ctx)
	c.idle = time.AfterFunc(c.rest, func() {
		if c.retire() {
			c.cancel(errIdle)
		}
	})
	context.AfterFunc(c.ctx, func() {
		c.idle.Stop()
		c.close()
	})
	c.cc.SetStateHook(func(cc *http.ClientConn) {
		if err := cc.Err(); err != nil {
			c.cancel(fmt.Errorf("%w: %w", errLost, err))
		}
		c.signal() // a stream may have gone
	})
	return c, nil
}

// leave gives a place back.
func (c *liveConn) leave() {
	c.places.leave()
	if c.used.Load() == 0 {
		c.idle.Reset(c.rest)
	}
}
