package link

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/yggate/yggate/federation"
)

// maxWaiting is how many live requests may wait for a place, per peer.
const maxWaiting = 256

// ErrBusy says that as many live requests to the peer as may be are under way.
var ErrBusy = errors.New("too many requests to the peer are under way")

// places holds live requests back, so that the connection's receive window holds
// the windows of all streams, and none is refused by the peer.
type places struct {
	h2    *http.ClientConn
	most  int
	used  atomic.Int32
	turn  chan struct{} // held by the one that takes the next place
	freed chan struct{} // one token: look again
}

// streamCheck is how often it is looked whether streams that were given up are gone.
// net/http tells of that, but not of one that goes while it tells of another, if a new
// one has been opened in between.
const streamCheck = 100 * time.Millisecond

// newPlaces gives as many places as the peer has granted streams and this side
// has windows for.
func newPlaces(cc *http.ClientConn, granted int) *places {
	return &places{
		h2: cc, most: max(1, min(granted, maxClientStreams)),
		turn: make(chan struct{}, 1), freed: make(chan struct{}, 1),
	}
}

// enter waits for a place until ctx or the connection is done. Who came first is
// let in first. What enters must leave.
func (p *places) enter(ctx, conn context.Context) error {
	wait := func(ready <-chan struct{}, soon <-chan time.Time, turn chan<- struct{}) error {
		select {
		case <-ready:
		case <-soon:
		case turn <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrBusy, ctx.Err())
		case <-conn.Done():
			return fmt.Errorf("%w: %w", federation.ErrPeerDown, context.Cause(conn))
		}
		return nil
	}
	if err := wait(nil, nil, p.turn); err != nil {
		return err
	}
	defer func() { <-p.turn }()
	for !p.take() {
		var soon <-chan time.Time
		if int(p.used.Load()) < p.most {
			soon = time.After(streamCheck)
		}
		if err := wait(p.freed, soon, nil); err != nil {
			return err
		}
	}
	return nil
}

// take is called by the holder of the turn only. It goes by what HTTP/2 counts
// too: a request that was given up keeps its stream until a peer that is slow to
// read has been told, and those must not pile up.
func (p *places) take() bool {
	for {
		n := p.used.Load()
		if int(n) >= p.most || p.h2.InFlight() >= p.most {
			return false
		}
		if !p.used.CompareAndSwap(n, n+1) {
			continue
		}
		if p.h2.Reserve() != nil {
			p.used.Add(-1)
			return false
		}
		return true
	}
}

// retire lets nobody in any more, if nobody is.
func (p *places) retire() bool { return p.used.CompareAndSwap(0, retired) }

const retired = 1 << 30

func (p *places) leave() {
	p.used.Add(-1)
	p.signal()
}

func (p *places) signal() {
	select {
	case p.freed <- struct{}{}:
	default:
	}
}
