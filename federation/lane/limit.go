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
	turns        turnstile // of the lane Eph
}

// turnstile lets one stream at a time through.
type turnstile struct {
	mu     sync.Mutex
	cancel context.CancelCauseFunc // ends the stream that has the turn
	done   chan struct{}           // closed when that has ended
}

var errReplaced = errors.New("the peer has opened another stream for this lane")

// enter makes the caller's stream the only one: the one before is ended and
// waited for, so that items stay in order and what a peer can make this gateway
// hold is bounded. The caller works within the returned context and calls leave
// when it has ended.
func (t *turnstile) enter(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	t.mu.Lock()
	endLast, last := t.cancel, t.done
	t.cancel, t.done = cancel, done
	t.mu.Unlock()
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
	return budgetOf(m.budgets, p, m.cfg.Directory.Now())
}

// budget is shared by the lanes of the peer.
func (d *Durable) budget(p *federation.Peer) *budget {
	d.mu.Lock()
	defer d.mu.Unlock()
	return budgetOf(d.budgets, p, d.cfg.Directory.Now())
}

// budgetOf finds or makes a peer's budget, and forgets those of peers that are gone.
func budgetOf(budgets map[federation.GridID]*budget, p *federation.Peer, now *federation.Snapshot) *budget {
	if b := budgets[p.ID]; b != nil {
		return b
	}
	for id := range budgets {
		if now.Peer(id) == nil {
			delete(budgets, id)
		}
	}
	// A limiter begins with its burst only if it is made with it.
	items, bytes := rates(&p.Policy.Limits)
	b := &budget{items: rate.NewLimiter(items.limit, items.burst), bytes: rate.NewLimiter(bytes.limit, bytes.burst)}
	budgets[p.ID] = b
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

// apply makes the limiters follow the policy.
func (b *budget) apply(l *federation.Limits) {
	items, bytes := rates(l)
	items.set(b.items)
	bytes.set(b.bytes)
}

type pace struct {
	limit rate.Limit // per second
	burst int
}

// rates reads limits. What they leave at zero has the default, so that no peer
// is without limit.
func rates(l *federation.Limits) (items, bytes pace) {
	def := federation.DefaultLimits()
	items = pace{rate.Limit(l.MessagesPerSecond), l.Burst}
	if items.limit <= 0 {
		items.limit = rate.Limit(def.MessagesPerSecond)
	}
	if items.burst <= 0 {
		items.burst = def.Burst
	}
	perSecond := l.BytesPerSecond
	if perSecond <= 0 {
		perSecond = def.BytesPerSecond
	}
	// The burst holds the largest item, or that would never pass.
	return items, pace{rate.Limit(perSecond), max(int(perSecond), MaxBody)}
}

func (p pace) set(l *rate.Limiter) {
	if l.Limit() != p.limit {
		l.SetLimit(p.limit)
	}
	if l.Burst() != p.burst {
		l.SetBurst(p.burst)
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
