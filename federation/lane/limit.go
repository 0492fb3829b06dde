package lane

import (
	"context"
	"errors"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/yggate/yggate/federation"
)

// budget is what one peer may send, over all of its streams and reconnections.
type budget struct {
	items, bytes *rate.Limiter

	mu     sync.Mutex
	cancel context.CancelCauseFunc // ends the stream that has the turn
	done   chan struct{}           // closed when that has ended
}

var errReplaced = errors.New("the peer has opened another stream for this lane")

// turn makes the caller's stream the only one of the peer: the one before is
// ended and waited for, so that items stay in order and what a peer can make
// this gateway hold is bounded. The caller works within the returned context
// and calls leave when it has ended.
func (b *budget) turn(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	b.mu.Lock()
	endLast, last := b.cancel, b.done
	b.cancel, b.done = cancel, done
	b.mu.Unlock()
	if last != nil {
		endLast(errReplaced)
		<-last
	}
	return ctx, func() { cancel(nil); close(done) }
}

// budget returns the peer's own budget, which outlives its streams so that
// reconnecting wins nothing.
func (m *Memory) budget(p *federation.Peer) *budget {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b := m.budgets[p.ID]; b != nil {
		return b
	}
	now := m.cfg.Directory.Now()
	for id := range m.budgets {
		if now.Peer(id) == nil {
			delete(m.budgets, id)
		}
	}
	b := &budget{items: rate.NewLimiter(0, 0), bytes: rate.NewLimiter(0, 0)}
	b.apply(&p.Policy.Limits)
	m.budgets[p.ID] = b
	return b
}

// wait blocks until the peer may send one more item of that many bytes.
func (b *budget) wait(ctx context.Context, l *federation.Limits, bytes int) error {
	b.apply(l)
	if err := b.items.Wait(ctx); err != nil {
		return err
	}
	return b.bytes.WaitN(ctx, bytes)
}

// apply makes the limiters follow the policy. What it leaves at zero has the
// default, so that no peer is without limit.
func (b *budget) apply(l *federation.Limits) {
	def := federation.DefaultLimits()
	perSecond, burst, bytes := l.MessagesPerSecond, l.Burst, l.BytesPerSecond
	if perSecond <= 0 {
		perSecond = def.MessagesPerSecond
	}
	if burst <= 0 {
		burst = def.Burst
	}
	if bytes <= 0 {
		bytes = def.BytesPerSecond
	}
	set(b.items, rate.Limit(perSecond), burst)
	// The burst holds the largest item, or that would never pass.
	set(b.bytes, rate.Limit(bytes), max(int(bytes), MaxBody))
}

func set(l *rate.Limiter, r rate.Limit, burst int) {
	if l.Limit() != r {
		l.SetLimit(r)
	}
	if l.Burst() != burst {
		l.SetBurst(burst)
	}
}

// clip shortens s to at most n bytes of valid UTF-8, which the wire demands.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for len(s) > n {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
