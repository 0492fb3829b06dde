package gateway

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// mesh is this node in the Yggdrasil network: the peerings of the configuration
// and those that accepted invites brought, and who may knock.
type mesh struct {
	g    *gateway
	node *ygg.Node
	door door

	mu     sync.Mutex
	learnt []string             // peerings that are there because of an invite
	tried  map[string]time.Time // of invites that are being looked at, until when
}

func newMesh(g *gateway, changed func()) (*mesh, error) {
	m := &mesh{g: g, door: newDoor(), tried: map[string]time.Time{}}
	conf := g.conf.Load().Mesh
	var err error
	m.node, err = ygg.New(ygg.Config{
		Key: g.meshKey, Peers: conf.Peers, Listen: conf.Listen, Multicast: conf.Multicast,
		Accept: m.door.admit, Log: g.log, OnPeering: changed,
	})
	return m, err
}

// run keeps node, learnt peerings and the door in step with the registry.
func (m *mesh) run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return m.node.Run(ctx) })
	parts.Go(func() error {
		changed, cancel := m.g.registry.Directory().Subscribe()
		defer cancel()
		again := time.NewTicker(triedFor)
		defer again.Stop()
		for {
			m.door.know(m.g.registry.Directory().Now())
			if err := m.sync(ctx); err != nil && ctx.Err() == nil { // what the store cannot read ends nothing
				m.g.log.Error("peerings that invites brought stay as they are for now", "err", err)
			}
			select {
			case <-changed:
			case <-again.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return parts.Wait()
}

// sync adds the peerings that invites brought, and drops those of removed peers
// and of invites that nobody accepted.
func (m *mesh) sync(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	rows, err := store.Peerings(ctx, m.g.store.Read())
	if err != nil {
		return fmt.Errorf("read learnt peerings: %w", err)
	}
	// With other options a URI is no other peering, and who named it first has it: to
	// drop what an invite brought must not end what the configuration asks for.
	taken := map[string]bool{}
	for _, uri := range m.g.conf.Load().Mesh.Peers {
		taken[ygg.PeeringID(uri)] = true
	}
	var want []string
	add := func(uri string) {
		if id := ygg.PeeringID(uri); !taken[id] {
			taken[id] = true
			want = append(want, uri)
		}
	}
	var named []string // by invites
	for _, r := range rows {
		named = append(named, r.URI)
	}
	for uri, until := range m.tried {
		if time.Now().After(until) {
			delete(m.tried, uri)
			continue
		}
		named = append(named, uri)
	}
	for _, uri := range named {
		if slices.Contains(m.learnt, uri) { // what is there stays
			add(uri)
		}
	}
	for _, uri := range named {
		add(uri)
	}
	for _, uri := range m.learnt {
		if !slices.Contains(want, uri) {
			if err := m.node.RemovePeer(uri); err != nil {
				m.g.log.Warn("peering of a former peer not removed", "uri", uri, "err", err)
			}
		}
	}
	for _, uri := range want {
		if !slices.Contains(m.learnt, uri) {
			if err := m.node.AddPeer(uri); err != nil {
				m.g.log.Warn("peering from an invite not added", "uri", uri, "err", err)
			}
		}
	}
	m.learnt = want
	return nil
}

// triedFor is how long the peerings of an invite are kept while its operator makes
// up his mind. Taking them away sooner would cut a link that has just come up.
const triedFor = 10 * time.Minute

// try adds the peerings of an invite that is being looked at. Those of an invite
// that is then accepted are stored, and outlive triedFor.
func (m *mesh) try(ctx context.Context, uris []string) error {
	m.mu.Lock()
	for _, uri := range uris {
		m.tried[uri] = time.Now().Add(triedFor)
	}
	m.mu.Unlock()
	return m.sync(ctx)
}

// kept tells that an invite was accepted: the store holds its peerings now, and
// when the peer is removed they go at once.
func (m *mesh) kept(uris []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, uri := range uris {
		delete(m.tried, uri)
	}
}

// Strangers that may knock: an invite's acceptor and a peer's new node have keys
// that nobody here knows yet, and must reach /v1/pair and /v1/descriptor. Few of
// them come, so few are let in: each key for a while, and new keys slowly.
const (
	strangerFor   = time.Minute
	strangerEvery = 500 * time.Millisecond
	strangerBurst = 16
	maxStrangers  = 256
)

// door is the accept filter of the mesh. It works on full keys and is asked for
// every SYN. It only keeps load away; who may do what is decided by the link, on
// grid keys.
type door struct {
	known     *atomic.Pointer[map[string]struct{}] // node ids of peers
	limit     *rate.Limiter
	mu        *sync.Mutex
	strangers map[string]time.Time // until when
}

func newDoor() door {
	d := door{
		known: new(atomic.Pointer[map[string]struct{}]), mu: new(sync.Mutex),
		limit: rate.NewLimiter(rate.Every(strangerEvery), strangerBurst), strangers: map[string]time.Time{},
	}
	d.known.Store(&map[string]struct{}{})
	return d
}

// know takes the nodes of all peers that are not blocked or removed.
func (d *door) know(s *federation.Snapshot) {
	known := map[string]struct{}{}
	for _, p := range s.Peers() {
		if p.Descriptor == nil || p.State == federation.StateBlocked || p.State == federation.StateRemoved {
			continue
		}
		for _, a := range p.Descriptor.Addrs() {
			known[a.Node] = struct{}{}
		}
	}
	d.known.Store(&known)
}

func (d *door) admit(from transports.Addr) bool {
	if _, ok := (*d.known.Load())[from.Node]; ok {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if now.Before(d.strangers[from.Node]) {
		return true
	}
	if len(d.strangers) >= maxStrangers {
		for node, until := range d.strangers {
			if now.After(until) {
				delete(d.strangers, node)
			}
		}
	}
	if len(d.strangers) >= maxStrangers || !d.limit.Allow() {
		return false
	}
	d.strangers[from.Node] = now.Add(strangerFor)
	return true
}
