package pairing

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
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

// limiter slows strangers down, each by its node and all of them together.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex
	all     *rate.Limiter
	sources map[string]*rate.Limiter
	tidied  time.Time // when the idle were last forgotten
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, all: rate.NewLimiter(inAll, inAllBurst), sources: map[string]*rate.Limiter{}}
}

// allow says whether a request of the source may be worked on. The source is asked
// first, so that one that floods does not use up what all share.
func (l *limiter) allow(source string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	s := l.sources[source]
	if s == nil {
		s = rate.NewLimiter(perSource, perSourceBurst)
		// Nobody's allowance grows by much within a second, and to walk through all
		// for each newcomer would be work that a flood of them causes.
		if len(l.sources) >= maxSources && now.Sub(l.tidied) >= time.Second {
			l.forgetIdle(now)
			l.tidied = now
		}
		// With no room left even so, the common limit alone must do.
		if len(l.sources) < maxSources {
			l.sources[source] = s
		}
	}
	return s.AllowN(now, 1) && l.all.AllowN(now, 1)
}

// forgetIdle drops sources whose allowance is whole again: they are as new ones.
func (l *limiter) forgetIdle(now time.Time) {
	for source, s := range l.sources {
		if s.TokensAt(now) >= perSourceBurst {
			delete(l.sources, source)
		}
	}
}
