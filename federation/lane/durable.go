package lane

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

// DurableConfig is what a Durable works with. All but Log and Metrics must be given.
type DurableConfig struct {
	Store *store.Store
	// Streams opens the streams to peers.
	Streams Streams
	// Recipients read what peers send and take back what they do not get.
	Recipients map[federation.Protocol]Recipient
	// Directory says which peers there are, and their limits.
	Directory *federation.Directory
	// Epoch is that of this life of the gateway: higher than any before.
	Epoch   uint64
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Durable carries items on the lanes whose items wait on disk, by the rules of
// package journal. The way of an item:
//
//	Put -> outbox on disk (outlane.go) -> stream (transmit.go) ... (receive.go)
//	-> the peer's inLane -> Recipient.Hand (handing.go)
//
// The peer acknowledges what its disk has, and the outbox forgets it. What the
// peer does not get in time goes to the dead letters in the same transaction that
// takes it from the outbox, and from there to Recipient.GiveBack (giveback.go).
type Durable struct {
	cfg     DurableConfig
	metrics *durableMetrics
	// untold has a token when there are new dead letters.
	untold chan struct{}
	// told are dead letters whose senders know, which the disk does not know yet. It is
	// giveBack's own.
	told map[letter]bool

	mu      sync.Mutex
	running context.Context // of Run; nil before and after
	work    *errgroup.Group
	out     map[laneKey]*outLane
	in      map[laneKey]*inLane
	up      map[federation.GridID]bool
	budgets map[federation.GridID]*budget
}

// laneKey is one lane of one peer.
type laneKey struct {
	peer federation.GridID
	name Name
}

var _ Outbox = (*Durable)(nil)

// NewDurable reads where the lanes stand. Nothing moves before Run.
func NewDurable(ctx context.Context, cfg DurableConfig) (*Durable, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	d := &Durable{
		cfg: cfg, untold: make(chan struct{}, 1), told: map[letter]bool{},
		out: map[laneKey]*outLane{}, in: map[laneKey]*inLane{},
		up: map[federation.GridID]bool{}, budgets: map[federation.GridID]*budget{},
	}
	d.metrics = newDurableMetrics(cfg.Metrics, d)
	outs, err := cfg.Store.OutLanes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the lanes to peers: %w", err)
	}
	for _, row := range outs {
		key := laneKey{federation.GridID(row.Peer), Name(row.Lane)}
		d.out[key] = newOutLane(d, key, row)
	}
	ins, err := cfg.Store.InLanes(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the lanes from peers: %w", err)
	}
	for _, row := range ins {
		key := laneKey{federation.GridID(row.Peer), Name(row.Lane)}
		if d.in[key], err = newInLane(ctx, d, key, row); err != nil {
			return nil, fmt.Errorf("read the inbox of lane %s: %w", key.name, err)
		}
	}
	return d, nil
}

// Run works until ctx is done; what Put has taken is then on disk or has been
// answered. It returns nil.
func (d *Durable) Run(ctx context.Context) error {
	work, ctx := errgroup.WithContext(ctx)
	d.mu.Lock()
	// Under the lock, so that something runs in work as long as others may add to it:
	// only then may they do so beside its Wait.
	work.Go(func() error {
		<-ctx.Done()
		d.mu.Lock() // from here on nobody adds work
		d.running = nil
		d.mu.Unlock()
		return nil
	})
	d.running, d.work = ctx, work
	for _, l := range d.out {
		d.startOut(l)
	}
	for _, l := range d.in {
		work.Go(func() error { return l.run(ctx) })
	}
	d.mu.Unlock()
	work.Go(func() error { return d.giveBack(ctx) })
	work.Go(func() error { return d.followPeers(ctx) })
	work.Go(func() error { return d.sweep(ctx) })
	return work.Wait()
}

// startOut starts the work of an outLane. It needs d.mu and a running Run.
func (d *Durable) startOut(l *outLane) {
	ctx := d.running
	d.work.Go(func() error { return l.commits(ctx) })
	d.work.Go(func() error { return l.streams(ctx) })
}

// PeerUp says that the link to a peer is up. It does not wait for the streams.
func (d *Durable) PeerUp(peer federation.GridID) { d.setUp(peer, true) }

// PeerDown says that the link to a peer went down; its streams end of themselves.
func (d *Durable) PeerDown(peer federation.GridID) { d.setUp(peer, false) }

func (d *Durable) setUp(peer federation.GridID, up bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.up[peer] = up
	for key, l := range d.out {
		if key.peer == peer {
			l.setUp(up)
		}
	}
}

// Put implements Outbox.
func (d *Durable) Put(ctx context.Context, peer federation.GridID, lane Name, stored func(error), items ...Item) error {
	if len(items) == 0 {
		stored(nil)
		return nil
	}
	p := d.cfg.Directory.Now().Peer(peer)
	if p == nil || p.State != federation.StateActive && p.State != federation.StatePaused {
		return federation.ErrPeerNotActive
	}
	for i := range items {
		if err := d.check(&items[i]); err != nil {
			return fmt.Errorf("put on lane %q: %w", lane, err)
		}
	}
	l, err := d.outLane(laneKey{peer, lane})
	if err != nil {
		return fmt.Errorf("put on lane %q: %w", lane, err)
	}
	return l.put(ctx, p.Policy.Limits, stored, items)
}

func (d *Durable) check(it *Item) error {
	if d.cfg.Recipients[it.Kind] == nil {
		return fmt.Errorf("%w: nobody takes back items of kind %q", ErrItem, it.Kind)
	}
	return checkItem(it)
}

// outLane returns the lane to a peer, made where it is not there yet.
func (d *Durable) outLane(key laneKey) (*outLane, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.out[key]; l != nil {
		return l, nil
	}
	if !isDurable(key.name) {
		return nil, ErrUnknownLane
	}
	if d.running == nil {
		return nil, errNotRunning
	}
	l := newOutLane(d, key, store.OutLane{Peer: string(key.peer), Lane: string(key.name)})
	l.setUp(d.up[key.peer])
	d.out[key] = l
	d.startOut(l)
	return l, nil
}

// DurableLanes are the names of the lanes that a Durable has.
func DurableLanes() []Name { return []Name{Chat, Room, Bulk, MQTT} }

func isDurable(name Name) bool { return slices.Contains(DurableLanes(), name) }

func (d *Durable) outLanes() []*outLane {
	d.mu.Lock()
	defer d.mu.Unlock()
	return inOrder(d.out)
}

func (d *Durable) inLanes() []*inLane {
	d.mu.Lock()
	defer d.mu.Unlock()
	return inOrder(d.in)
}

// inOrder returns lanes in an order that stays the same.
func inOrder[L any](lanes map[laneKey]L) []L {
	keys := slices.SortedFunc(maps.Keys(lanes), func(a, b laneKey) int {
		return cmp.Or(cmp.Compare(a.peer, b.peer), cmp.Compare(a.name, b.name))
	})
	sorted := make([]L, len(keys))
	for i, key := range keys {
		sorted[i] = lanes[key]
	}
	return sorted
}

// logFor is the logger of one lane, with the peer's name as it is now.
func (d *Durable) logFor(key laneKey) *slog.Logger {
	return d.cfg.Log.With("peer", d.peerName(key.peer), "lane", string(key.name))
}

// peerName is what the operator calls a peer, or the short id of one that is gone.
func (d *Durable) peerName(id federation.GridID) string {
	if p := d.cfg.Directory.Now().Peer(id); p != nil {
		return p.Name
	}
	return id.Short()
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
