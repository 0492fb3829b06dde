package mqtt

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// pace keeps to the rate that a peer may be sent messages at.
type pace struct{ *rate.Limiter }

func newPace() *pace { return &pace{rate.NewLimiter(rate.Inf, 1)} }

// allow says whether one more message may go now.
func (l *pace) allow(r *peerRules) bool {
	if r == nil || r.policy.Rate <= 0 {
		l.SetLimit(rate.Inf)
		return true
	}
	if want := rate.Limit(r.policy.Rate); l.Limit() != want {
		l.SetBurst(max(int(r.policy.Rate), 1))
		l.SetLimit(want)
	}
	return l.Allow()
}

// pause waits, or until ctx is done, and says whether it waited in full.
func pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
