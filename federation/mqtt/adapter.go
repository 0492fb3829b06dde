// Package mqtt carries topics between the operator's own MQTT broker and those of
// peer grids.
//
// The Adapter stands between the session with the broker (package session) and the
// lanes to the peers (package lane):
//
//   - what the broker has is exported by the rules of each peer (export.go), and waits
//     on the durable lane lane.MQTT while the peer is away (queue.go); the broker gets
//     its acknowledgement when all of that is on disk. QoS 0 without retain passes at
//     once, over lane.Eph, or not at all;
//   - what a peer sends is imported by the rules for that peer (hand.go). Nothing
//     crosses that both operators have not named. There is no relay: what came from
//     another grid goes on only by an export that says "transit";
//   - retained messages are compared with what the peer was told when a link or the
//     broker comes up, so that changes and clears of the meantime arrive (retained.go);
//   - whether a peer can be reached stands in a retained topic (state.go);
//   - response topics lead back to the grid of the request (reply.go);
//   - nothing runs in circles (path.go).
package mqtt

import (
	"context"
	"errors"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/store"
)

// Broker is the session with the operator's broker; session.Session is one.
type Broker interface {
	// Send queues a message; done is called once it is with the broker, or why it will
	// not be.
	Send(ctx context.Context, key string, m *session.Message, done func(error)) error
	// Begun says whether the message of a key may be with the broker in part.
	Begun(key string) bool
	// SetSubscriptions sets what is subscribed to.
	SetSubscriptions(subs []session.Subscription) error
	// Snapshot gives fn each retained message that matches a filter.
	Snapshot(ctx context.Context, filters []string, fn func(*session.Message) error) error
}

// Outbox takes what waits for peers; lane.Durable is one.
type Outbox interface {
	lane.Outbox
	// DropOldest gives up to n items of a lane back that have waited longest and are
	// not on their way, and returns how many.
	DropOldest(ctx context.Context, peer federation.GridID, name lane.Name, n int) (int, error)
}

// Config is what an Adapter works with. Fields without a remark are required.
type Config struct {
	Directory *federation.Directory
	// Self is the own grid.
	Self federation.GridID
	// Store remembers the retained messages that peers were told of.
	Store *store.Store
	// Share is the group of shared subscriptions; empty: they are not shared.
	Share string
	// State is the beginning of the topics that tell whether peers can be reached; it
	// ends in "/". Empty: DefaultState.
	State string
	// Settle is how long a retained message that a snapshot shows is left to come by
	// itself, as one that was published just now. 0: DefaultSettle.
	Settle time.Duration
	// Link says for Explain whether the link to a peer is up, and in words what is
	// known of it. Nil: nothing is said of the link.
	Link    func(federation.GridID) (up bool, detail string)
	Log     *slog.Logger          // may be nil
	Metrics prometheus.Registerer // may be nil
}

// DefaultSettle is longer than what a broker takes to give a message to all who have
// subscribed, when it is not far behind.
const DefaultSettle = 2 * time.Second

// Adapter is the handler of both sides: of the session with the broker
// (session.Handler) and of the lanes (lane.Handler for what passes, lane.Recipient for
// what waits). Its methods may be called concurrently.
type Adapter struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	broker Broker
	eph    lane.Sender
	outbox Outbox

	rules atomic.Pointer[rules]
	// info is of the last connection with the broker, connected whether it lasts.
	info      atomic.Pointer[session.Info]
	connected atomic.Bool
	// refused are the subscriptions that the broker last refused, and why.
	refused atomic.Pointer[map[string]error]
	cameUp  chan struct{} // has a token when it has come up
	// seen has, by its origin, a hash of the way by which a message came first.
	seen *recent[[originLen]byte, uint64]
	way  maphash.Seed
	// order is that of messages on their way to the broker.
	order order

	mu    sync.Mutex
	peers map[federation.GridID]*peer
	// spawn starts work of Run; nil while it does not run.
	spawn func(func(context.Context))
}

var (
	_ lane.Handler    = (*Adapter)(nil)
	_ lane.Recipient  = (*Adapter)(nil)
	_ session.Handler = (*Adapter)(nil)
)

// seenMessages bounds what is remembered to tell a message that came by two ways.
const seenMessages = 32 << 10

// New returns an Adapter. Connect it before anything is sent through it.
func New(cfg Config) (*Adapter, error) {
	if cfg.Directory == nil || cfg.Store == nil || cfg.Self == "" {
		return nil, errors.New("mqtt adapter: a directory, a store and the own grid are required")
	}
	if cfg.Settle <= 0 {
		cfg.Settle = DefaultSettle
	}
	if cfg.State == "" {
		cfg.State = DefaultState
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("proto", string(federation.MQTT))
	a := &Adapter{
		cfg: cfg, log: cfg.Log, metrics: newMetrics(cfg.Metrics), seen: newRecent[[originLen]byte, uint64](seenMessages), way: maphash.MakeSeed(), cameUp: make(chan struct{}, 1),
		peers: map[federation.GridID]*peer{}, order: order{topics: map[topicOf]*underWay{}},
	}
	a.rules.Store(newRules(cfg.Directory.Now(), cfg.State))
	return a, nil
}

// Connect gives the Adapter its sides: the lanes to the peers, for what passes and for
// what waits, and the session with the broker. They need the Adapter to be made. Call
// it once, before Run and before any of them is started.
func (a *Adapter) Connect(eph lane.Sender, outbox Outbox, broker Broker) {
	a.eph, a.outbox, a.broker = eph, outbox, broker
}

// Run works until ctx is done, then returns nil. The session has to run meanwhile, and
// a moment longer (see Farewell).
func (a *Adapter) Run(ctx context.Context) error {
	if a.eph == nil || a.outbox == nil || a.broker == nil {
		return errors.New("run mqtt adapter: not connected")
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
	a.spawn = func(work func(context.Context)) { g.Go(func() error { work(ctx); return nil }) }
	for _, p := range a.peers {
		p.start()
	}
	a.mu.Unlock()
	g.Go(func() error { return a.followRules(ctx) })
	g.Go(func() error { return a.tellSelf(ctx) })
	return g.Wait()
}

// peer returns the working state for a peer.
func (a *Adapter) peer(id federation.GridID) *peer {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.peers[id]
	if p == nil {
		p = newPeer(a, id)
		a.peers[id] = p
		if a.spawn != nil {
			p.start()
		}
	}
	return p
}

// work starts something while Run runs.
func (a *Adapter) work(do func(context.Context)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.spawn != nil {
		a.spawn(do)
	}
}

// followRules keeps subscriptions, retained messages and states those of the policy of
// now, until ctx is done.
func (a *Adapter) followRules(ctx context.Context) error {
	changed, cancel := a.cfg.Directory.Subscribe()
	defer cancel()
	for first := true; ; first = false {
		was, now := a.rules.Load(), newRules(a.cfg.Directory.Now(), a.cfg.State)
		a.rules.Store(now)
		if err := a.broker.SetSubscriptions(now.subscriptions(a.cfg.Share)); err != nil {
			// The filters were checked when the configuration was read.
			a.log.Error("the subscriptions cannot be set", "err", err)
		}
		for id, r := range now.peers {
			if old := was.peers[id]; !first && (old == nil || !old.sameExports(r)) {
				a.peer(id).reconcile()
			}
			if old := was.peers[id]; !first && (old == nil || !old.sameImports(r)) {
				a.peer(id).tellImports()
			}
			a.peer(id).tellState()
		}
		a.forgetGone(ctx)
		a.work(func(ctx context.Context) { a.tellGone(ctx, was, now) })
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// forgetGone ends the work for grids that are no peers any more.
func (a *Adapter) forgetGone(ctx context.Context) {
	now := a.cfg.Directory.Now()
	a.mu.Lock()
	var gone []*peer
	for id, p := range a.peers {
		if owner := now.Peer(id); owner == nil || owner.State == federation.StateBlocked || owner.State == federation.StateRemoved {
			gone = append(gone, p)
			delete(a.peers, id)
		}
	}
	a.mu.Unlock()
	for _, p := range gone {
		p.stop()
		if err := a.forgetRetained(ctx, p.id); err != nil && ctx.Err() == nil {
			a.log.Warn("what a grid that is no peer any more was told is not forgotten", "peer", p.name(), "err", err)
		}
	}
}

// name is what the operator calls a grid.
func (a *Adapter) name(id federation.GridID) string {
	if p := a.cfg.Directory.Now().Peer(id); p != nil {
		return p.Name
	}
	return id.Short()
}

// v311 says whether the broker has no MQTT 5: no user properties, and no sign of what
// was published with retain.
func (a *Adapter) v311() bool {
	info := a.info.Load()
	return info != nil && info.Version == session.V311
}

// Up implements session.Handler.
func (a *Adapter) Up(info session.Info) {
	a.info.Store(&info)
	a.connected.Store(true)
	for id := range a.rules.Load().peers {
		p := a.peer(id)
		p.tellState()
		p.tellImports()
	}
	signal(a.cameUp)
}

// Down implements session.Handler.
func (a *Adapter) Down(error) { a.connected.Store(false) }

// Subscribed implements session.Handler. Not before it are retained messages compared:
// one that was published between comparison and subscription would be missed.
func (a *Adapter) Subscribed(refused map[string]error) {
	a.refused.Store(&refused)
	for id := range a.rules.Load().peers {
		a.peer(id).reconcile()
	}
}

// PeerUp says that the link to a peer is up.
func (a *Adapter) PeerUp(id federation.GridID) {
	p := a.peer(id)
	p.setUp(true)
	p.tellState()
	p.tellImports()
	p.reconcile()
}

// PeerDown says that the link to a peer went down.
func (a *Adapter) PeerDown(id federation.GridID) {
	p := a.peer(id)
	p.setUp(false)
	p.tellState()
}
