package matrix

import (
	"cmp"
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
)

const (
	// placePatience is how long a request waits for those of the same peer before
	// it, and then, for as long again, for their bodies.
	placePatience = 5 * time.Second
	// bodiesAtOnce is how many bodies of the largest allowed size a peer may have
	// here at the same time; those of bodyFree are not counted.
	bodiesAtOnce = 2
	bodyFree     = 64 << 10
)

// limits is what peers may ask of the homeserver.
type limits struct {
	maxBody  int64
	patience time.Duration // placePatience

	mu    sync.Mutex
	peers map[federation.GridID]*quota
}

// quota is that of one peer. It outlives its links, so that reconnecting wins
// nothing.
type quota struct {
	requests, bytes *rate.Limiter
	bodies          *semaphore.Weighted
	patience        time.Duration

	mu     sync.Mutex
	places *semaphore.Weighted
	size   int64 // of places

	// audit bounds the log of refusals; unlogged counts the others.
	audit    *rate.Limiter
	unlogged atomic.Int64
}

// A peer may have a few refusals logged at once and one more in ten seconds.
const (
	auditEvery = 10 * time.Second
	auditBurst = 5
)

// of finds or makes the quota of a peer as its policy is now.
func (l *limits) of(p *federation.Peer, now *federation.Snapshot) *quota {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.peers[p.ID]
	if q == nil {
		for id := range l.peers {
			if now.Peer(id) == nil {
				delete(l.peers, id)
			}
		}
		// A limiter begins with its burst only if it is made with it.
		q = &quota{
			requests: rate.NewLimiter(1, burstOf(&p.Policy.Limits)), bytes: rate.NewLimiter(1, l.burstBytes(&p.Policy.Limits)),
			bodies: semaphore.NewWeighted(bodiesAtOnce * l.maxBody), patience: l.patience,
			audit: rate.NewLimiter(rate.Every(auditEvery), auditBurst),
		}
		l.peers[p.ID] = q
	}
	q.apply(l, &p.Policy.Limits)
	return q
}

var defaultLimits = federation.DefaultLimits()

func burstOf(l *federation.Limits) int {
	if l.Burst > 0 {
		return l.Burst
	}
	return defaultLimits.Burst
}

// burstBytes holds the largest body, or that would never pass.
func (l *limits) burstBytes(limits *federation.Limits) int {
	return int(max(limits.BytesPerSecond, l.maxBody, 1))
}

// apply makes a quota follow the policy. What that leaves at zero has the default,
// so that no peer is without limit.
func (q *quota) apply(l *limits, limits *federation.Limits) {
	perSecond, bytes := limits.MessagesPerSecond, limits.BytesPerSecond
	if perSecond <= 0 {
		perSecond = defaultLimits.MessagesPerSecond
	}
	if bytes <= 0 {
		bytes = defaultLimits.BytesPerSecond
	}
	set(q.requests, rate.Limit(perSecond), burstOf(limits))
	set(q.bytes, rate.Limit(bytes), l.burstBytes(limits))
	q.mu.Lock()
	defer q.mu.Unlock()
	if size := placesOf(limits); size != q.size {
		q.places, q.size = semaphore.NewWeighted(size), size // those inside leave the old one
	}
}

func set(l *rate.Limiter, limit rate.Limit, burst int) {
	if l.Limit() != limit {
		l.SetLimit(limit)
	}
	if l.Burst() != burst {
		l.SetBurst(burst)
	}
}

// placesOf is how many requests of a peer are worked on at once. A quarter of the
// link's streams, and 8 at least, stays for the lanes and for what is not Matrix.
func placesOf(l *federation.Limits) int64 {
	streams := int64(cmp.Or(max(l.Streams, 0), defaultLimits.Streams))
	return max(1, streams-max(8, streams/4))
}

// enter takes a place for one request, waiting a moment if need be.
func (q *quota) enter(ctx context.Context) (leave func(), _ *mautrix.RespError) {
	if after := delay(q.requests, 1); after > 0 {
		e := tooMany(after, "your grid sends more requests a second than this one allows (messages_per_second)")
		return nil, &e
	}
	if debt := -q.bytes.Tokens(); debt > 0 {
		e := tooMany(time.Duration(debt/float64(q.bytes.Limit())*float64(time.Second)), "your grid sends more bytes a second than this one allows (bytes_per_second)")
		return nil, &e
	}
	q.mu.Lock()
	places := q.places
	q.mu.Unlock()
	if e := q.acquire(ctx, places, 1, "too many requests of your grid are under way"); e != nil {
		return nil, e
	}
	return func() { places.Release(1) }, nil
}

// delay takes n from a limiter, or takes nothing and says when there will be n.
func delay(l *rate.Limiter, n int) time.Duration {
	now := time.Now()
	r := l.ReserveN(now, n)
	after := r.DelayFrom(now)
	if after > 0 {
		r.CancelAt(now)
	}
	return after
}

// acquire takes n of what a semaphore has, waiting a moment if need be.
func (q *quota) acquire(ctx context.Context, s *semaphore.Weighted, n int64, text string) *mautrix.RespError {
	if s.TryAcquire(n) {
		return nil // Acquire may find that the moment is over, and not look
	}
	ctx, cancel := context.WithTimeout(ctx, q.patience)
	defer cancel()
	if s.Acquire(ctx, n) != nil {
		e := tooMany(q.patience, text)
		return &e
	}
	return nil
}

// charge takes bytes that have arrived. They may leave a debt, with which nothing
// more is let in until it is paid.
func (q *quota) charge(bytes int) {
	q.bytes.ReserveN(time.Now(), min(bytes, q.bytes.Burst()))
}
