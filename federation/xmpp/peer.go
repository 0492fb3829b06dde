package xmpp

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// peer is what the adapter keeps for one peer while the process lives.
type peer struct {
	a     *Adapter
	id    federation.GridID
	count atomic.Pointer[counters]

	// What the gateway itself has to say, in each direction.
	toLocal, toPeer *queue
	ending          endings // that are in toLocal, or about to be

	// audit bounds the log of refused stanzas; unlogged counts the others.
	audit    *rate.Limiter
	unlogged atomic.Int64

	// order is held while outward presence is noted and sent, so that it arrives
	// in the order in which it is noted. It is taken before mu and never by what
	// comes from the peer: the lane may block whoever holds it.
	order sync.Mutex

	said   said   // durable, on its way to the peer
	handed handed // durable, that came from the peer

	trialMu sync.Mutex
	trials  map[pair]*trial

	wake chan struct{} // one token: upkeep has something to do
	mu   sync.Mutex
	keep upkeep
}

// A peer may have a few refusals logged at once and one more in ten seconds.
const (
	auditEvery = 10 * time.Second
	auditBurst = 5
)

func newPeer(a *Adapter, id federation.GridID) *peer {
	return &peer{
		a: a, id: id, toLocal: newQueue(), toPeer: newQueue(),
		audit: rate.NewLimiter(rate.Every(auditEvery), auditBurst),
		wake:  make(chan struct{}, 1), keep: newUpkeep(a.cfg.PresenceBytes),
		trials: map[pair]*trial{},
	}
}

// label is the peer's name in metrics.
func (p *peer) label(owner *federation.Peer) string {
	if owner == nil {
		return "none"
	}
	return owner.Name
}

// counters are the peer's metrics under its current name.
func (p *peer) counters(owner *federation.Peer) *counters {
	name := p.label(owner)
	if c := p.count.Load(); c != nil && c.name == name {
		return c
	}
	c := p.a.metrics.peer(name)
	p.count.Store(c)
	return c
}

func (p *peer) log(owner *federation.Peer) *slog.Logger {
	return p.a.log.With("peer", p.label(owner))
}

// current is the peer as the directory has it now, or nil.
func (p *peer) current() *federation.Peer { return p.a.cfg.Directory.Now().Peer(p.id) }

// sendPeer hands replies to the lane.
func (p *peer) sendPeer(ctx context.Context, batch []reply) {
	if err := p.a.lane.Send(ctx, p.id, lane.Eph, itemsOf(stanzasOf(batch))...); err != nil && ctx.Err() == nil {
		p.lost("replies to the peer: "+err.Error(), len(batch))
	}
}

// lost accounts for stanzas of the gateway's own that nobody will get.
func (p *peer) lost(what string, n int) {
	p.a.metrics.lost.Add(float64(n))
	p.log(p.current()).Debug("dropped", "what", what, "count", n)
}

func itemsOf(stanzas [][]byte) []lane.Item {
	items := make([]lane.Item, len(stanzas))
	for i, s := range stanzas {
		items[i] = lane.Item{Kind: federation.XMPP, Body: s}
	}
	return items
}
