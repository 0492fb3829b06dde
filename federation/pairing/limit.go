package pairing

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/yggate/yggate/federation"
)

// What grids that are no peers may ask, in requests: a handful at once is one
// operator pairing, anything steady is not.
const (
	perSource      = rate.Limit(1) // a second
	perSourceBurst = 4
	inAll          = rate.Limit(10)
	inAllBurst     = 20
	maxSources     = 4096
)

// What an active peer may ask: far more than one that tells of its changes does. A new
// descriptor is written and published, which at any rate would be felt by all others.
const (
	perPeer      = rate.Limit(1)
	perPeerBurst = 64
)

// limiter slows strangers down, each by its node and all of them together, and peers,
// each by its grid.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	all     *rate.Limiter
	sources allowances
	peers   allowances
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{
		now: now, all: rate.NewLimiter(inAll, inAllBurst),
		sources: newAllowances(perSource, perSourceBurst), peers: newAllowances(perPeer, perPeerBurst),
	}
}

// allow says whether a request of a stranger may be worked on. The source is asked
// first, so that one that floods does not use up what all share. Where there was no
// room for it, the common limit alone must do.
func (l *limiter) allow(source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	return l.sources.take(source, now) && l.all.AllowN(now, 1)
}

// allowPeer says so of an active peer.
func (l *limiter) allowPeer(id federation.GridID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.peers.take(string(id), l.now())
}

// allowances are those of many that are limited alike.
type allowances struct {
	rate   rate.Limit
	burst  int
	of     map[string]*rate.Limiter
	tidied time.Time // when the idle were last forgotten
}

func newAllowances(r rate.Limit, burst int) allowances {
	return allowances{rate: r, burst: burst, of: map[string]*rate.Limiter{}}
}

// take uses one of somebody's allowance, if there is any left.
func (a *allowances) take(who string, now time.Time) bool {
	l := a.of[who]
	if l == nil {
		l = rate.NewLimiter(a.rate, a.burst)
		// Nobody's allowance grows by much within a second, and to walk through all
		// for each newcomer would be work that a flood of them causes.
		if len(a.of) >= maxSources && now.Sub(a.tidied) >= time.Second {
			a.forgetIdle(now)
			a.tidied = now
		}
		if len(a.of) < maxSources {
			a.of[who] = l
		}
	}
	return l.AllowN(now, 1)
}

// forgetIdle drops those whose allowance is whole again: they are as new ones.
func (a *allowances) forgetIdle(now time.Time) {
	for who, l := range a.of {
		if l.TokensAt(now) >= float64(a.burst) {
			delete(a.of, who)
		}
	}
}
