// Package xmpp carries XMPP between the operator's own servers and peer grids.
//
// The Adapter stands between the streams with the local servers (package s2s)
// and the lanes to the peers (package lane). It parses no more of a stanza than
// its first tag and those of a message's children, and decides on each one:
//
//   - outward, that the sender is of the stream's own domain and the addressee of
//     the peer domain that the stream is for;
//   - inward, that the sender is of a domain whose active claim is held by exactly
//     the peer it came from, and the addressee of a domain of this grid. There is
//     no relay: a third grid's domain is refused like any other;
//   - messages that are worth keeping (worth.go) go over the durable lanes, where
//     they wait for a peer that is away, and are handed to the local server until it
//     has them (hand.go). All else passes at once or not at all;
//   - what cannot be delivered goes back to its sender once, as an XMPP error with
//     a text that names the cause (bounce.go);
//   - presence that crosses is kept true while links and servers come and go
//     (upkeep.go).
package xmpp

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
)

// LocalServer is where stanzas from peers go: s2s.Streams.
type LocalServer interface {
	// Send queues stanzas, in order, on the stream from a peer domain to an own
	// domain. It takes all of them or none, and owns those it took. It may wait
	// for room in a bounded queue.
	Send(ctx context.Context, from, to string, stanzas ...[]byte) error
	// Hand gives stanzas to the local server in order with those of Send, and
	// returns when the server has them. n is how many, from the first, it surely
	// has, and err says why not all: it wraps s2s.ErrDown where no attempt was
	// made or the server could not be reached.
	Hand(ctx context.Context, from, to string, stanzas ...[]byte) (n int, err error)
}

// Config is what an Adapter decides by. Only Directory must be given.
type Config struct {
	Directory *federation.Directory
	// Link says for Explain whether the link to a peer is up, and in words
	// what is known of it. Nil: nothing is said of the link.
	Link func(federation.GridID) (up bool, detail string)
	// Servers are the own domains, normalised, of each local server: they die
	// together. A domain that is in none dies alone.
	Servers [][]string
	// Limits bound one stanza, in both directions, to lane.MaxBody at most. What
	// is larger goes back to its sender.
	Limits frame.Limits
	// Grace is how long a peer may be down before its users are shown as gone.
	// 0: DefaultGrace.
	Grace time.Duration
	// PresenceBytes bound the memory for the presence of one peer, per
	// direction. 0: DefaultPresenceBytes.
	PresenceBytes int
	Log           *slog.Logger
	Metrics       prometheus.Registerer // nil for none
}

// DefaultGrace is longer than what it takes a gateway to restart or a stream to
// be opened anew (1 to 3 seconds), so that a blip does not make everyone leave
// every room, and shorter than the 10 seconds in which people begin to wonder
// why nobody answers.
const DefaultGrace = 5 * time.Second

// DefaultPresenceBytes are enough for about 10,000 pairs of contacts.
const DefaultPresenceBytes = 8 << 20

// Adapter is the handler of both sides: of the s2s streams (s2s.Handler) and of
// the lanes (lane.Handler for what passes, lane.Recipient for what waits). Its methods may be called concurrently.
type Adapter struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	names   atomic.Pointer[names]

	lane   lane.Sender
	outbox lane.Outbox
	local  LocalServer
	back   comebacks // of local servers
	// late has a token when presence was noted that followClaims may not have seen.
	late chan struct{}

	mu    sync.RWMutex
	peers map[federation.GridID]*peer
	spawn func(*peer) // starts a peer's work; nil while Run is not running
}

var (
	_ lane.Handler   = (*Adapter)(nil)
	_ lane.Recipient = (*Adapter)(nil)
	_ s2s.Handler    = (*Adapter)(nil)
)

// New returns an Adapter. Connect it before anything is sent through it.
func New(cfg Config) (*Adapter, error) {
	if cfg.Directory == nil {
		return nil, errors.New("xmpp adapter: no directory")
	}
	if cfg.Grace <= 0 {
		cfg.Grace = DefaultGrace
	}
	if cfg.PresenceBytes <= 0 {
		cfg.PresenceBytes = DefaultPresenceBytes
	}
	if cfg.Limits.Stanza <= 0 {
		cfg.Limits.Stanza = frame.DefaultLimits().Stanza
	}
	// A single item that the lane will not carry would fail its whole batch.
	cfg.Limits.Stanza = min(cfg.Limits.Stanza, lane.MaxBody)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Adapter{
		cfg: cfg, log: cfg.Log.With("proto", string(federation.XMPP)),
		late: make(chan struct{}, 1), peers: map[federation.GridID]*peer{},
	}
	a.metrics = newMetrics(cfg.Metrics)
	return a, nil
}

// Connect gives the Adapter its two sides: the lanes to the peers, for what passes
// and for what waits, and the local servers. They need the Adapter to be made, so
// it cannot have them from New. Call it once, before Run and before either side
// is started.
func (a *Adapter) Connect(peers lane.Sender, outbox lane.Outbox, local LocalServer) {
	a.lane, a.outbox, a.local = peers, outbox, local
}

// Run carries bounces and keeps presence true until ctx is done, then returns
// nil.
func (a *Adapter) Run(ctx context.Context) error {
	if a.lane == nil || a.outbox == nil || a.local == nil {
		return errors.New("run xmpp adapter: not connected")
	}
	g, ctx := errgroup.WithContext(ctx)
	a.mu.Lock()
	// Under the lock, so that something runs in g as long as there is spawn: only then
	// may it be added to beside its Wait.
	g.Go(func() error {
		<-ctx.Done()
		a.mu.Lock()
		a.spawn = nil
		a.mu.Unlock()
		return nil
	})
	a.spawn = func(p *peer) {
		g.Go(func() error { return p.upkeep(ctx) })
		g.Go(func() error { return p.toLocal.drain(ctx, p.sendLocal) })
		g.Go(func() error { return p.toPeer.drain(ctx, p.sendPeer) })
	}
	for _, p := range a.peers {
		a.spawn(p)
	}
	a.mu.Unlock()
	g.Go(func() error { return a.followClaims(ctx) })
	return g.Wait()
}

// peer returns the working state for a peer, known by id. The empty id is for
// domains that nobody holds.
func (a *Adapter) peer(id federation.GridID) *peer {
	a.mu.RLock()
	p := a.peers[id]
	a.mu.RUnlock()
	if p != nil {
		return p
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.peers[id]; p != nil {
		return p
	}
	p = newPeer(a, id)
	a.peers[id] = p
	if a.spawn != nil {
		a.spawn(p)
	}
	return p
}

// followClaims ends the presence of domains and peers that lose their right to
// speak here, until ctx is done.
func (a *Adapter) followClaims(ctx context.Context) error {
	changed, cancel := a.cfg.Directory.Subscribe()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-a.late:
		}
		a.mu.RLock()
		peers := slices.Collect(maps.Values(a.peers))
		a.mu.RUnlock()
		for _, p := range peers {
			p.revoke(ctx)
		}
	}
}
