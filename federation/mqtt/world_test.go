package mqtt

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/topic"
	"github.com/yggate/yggate/store"
)

// patience is for what must happen; nothing is decided by how long it takes.
const patience = 20 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// world is some grids: a broker and an adapter each, and what stands for the lanes.
type world struct {
	t     *testing.T
	ctx   context.Context
	grids map[string]*grid
}

type grid struct {
	w       *world
	name    string
	id      federation.GridID
	dir     *federation.Directory
	adapter *Adapter
	broker  *broker
	wire    *wire
	policy  map[string]federation.Policy
}

func gridID(name string) federation.GridID {
	sum := sha256.Sum256([]byte(name))
	return federation.NewGridID(sum[:])
}

// allow is a policy that lets the given topics cross.
func allow(m federation.MQTTPolicy) federation.Policy {
	return federation.Policy{Allow: map[federation.Protocol]bool{federation.MQTT: true}, Limits: federation.DefaultLimits(), MQTT: m}
}

func rule(filter, as string) federation.MQTTRule {
	return federation.MQTTRule{Filter: filter, As: as, QoS: 2, Retain: true}
}

// newWorld starts grids; policy says what each may do with each other one, nil: they
// are no peers.
func newWorld(t *testing.T, names []string, policy func(self, peer string) *federation.MQTTPolicy) *world {
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, ctx: ctx, grids: map[string]*grid{}}
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for _, name := range names {
		s, err := store.Open(ctx, store.Options{Path: filepath.Join(t.TempDir(), name+".db")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { running.Wait(); s.Close() })
		g := &grid{w: w, name: name, id: gridID(name), dir: federation.NewDirectory(), policy: map[string]federation.Policy{}}
		g.broker = &broker{g: g, retained: map[string]*session.Message{}, info: session.Info{Version: session.V5, MaxQoS: 2, Retain: true}}
		g.wire = newWire(g)
		if g.adapter, err = New(Config{Directory: g.dir, Self: g.id, Store: s, Settle: 5 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		g.adapter.Connect(g.wire, g.wire, g.broker)
		w.grids[name] = g
	}
	for _, g := range w.grids {
		for _, other := range names {
			if p := policy(g.name, other); other != g.name && p != nil {
				g.policy[other] = allow(*p)
			}
		}
		g.publishPolicy()
		running.Go(func() {
			if err := g.adapter.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for _, g := range w.grids {
		g.ready()
		g.adapter.Up(g.broker.info)
		g.adapter.Subscribed(nil)
		for other := range g.policy {
			running.Go(func() { g.wire.carry(ctx, w.grids[other]) })
			w.link(g.name, other, true)
		}
	}
	return w
}

// publishPolicy makes what stands in g.policy the policy of now.
func (g *grid) publishPolicy() {
	var peers []*federation.Peer
	for _, name := range slices.Sorted(maps.Keys(g.policy)) {
		peers = append(peers, g.peerOf(name))
	}
	g.dir.Publish(federation.NewSnapshot(peers, nil, nil))
}

func (g *grid) peerOf(name string) *federation.Peer {
	return &federation.Peer{ID: gridID(name), Name: name, State: federation.StateActive, Policy: g.policy[name], Key: gridID(name).Key()}
}

// ready waits until the adapter goes by the policy of now.
func (g *grid) ready() {
	g.w.t.Helper()
	eventually(g.w.t, g.name+" follows its policy", func() bool {
		r := g.adapter.rules.Load()
		for name, p := range g.policy {
			pr := r.peers[gridID(name)]
			if pr == nil || !pr.sameExports(&peerRules{policy: p.MQTT}) || !pr.sameImports(&peerRules{policy: p.MQTT}) || pr.policy.Overflow != p.MQTT.Overflow {
				return false
			}
		}
		return len(r.peers) == len(g.policy) && g.broker.subscribed(r.subscriptions(""))
	})
}

func (w *world) link(a, b string, up bool) {
	w.grids[a].wire.set(gridID(b), up)
}

// broker is a broker in memory. What is published is given to the adapter at once.
type broker struct {
	g    *grid
	info session.Info

	order sync.Mutex // of publications
	mu    sync.Mutex
	uid   int
	subs  []session.Subscription
	// log is all that was published, but for the adapter's own topics.
	log      []*session.Message
	retained map[string]*session.Message
	// snapshots counts how often it was asked for what it retains.
	snapshots int
	hidden    string // a filter that Snapshot is refused
	slow2     bool   // messages at QoS 2 go after those that are sent a moment later
	refuse    func(*session.Message) error
	invalid   func(*session.Message) error // what Send itself says
	acked     int
	nacked    int
	given     int // to the adapter, to be acknowledged
}

func (b *broker) subscribed(subs []session.Subscription) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Equal(b.subs, subs)
}

func (b *broker) SetSubscriptions(subs []session.Subscription) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs = subs
	return nil
}

func (b *broker) Begun(string) bool { return false }

func (b *broker) Send(_ context.Context, _ string, m *session.Message, done func(error)) error {
	b.mu.Lock()
	refuse, slow, invalid := b.refuse, b.slow2, b.invalid
	b.mu.Unlock()
	if invalid != nil {
		if err := invalid(m); err != nil {
			return err
		}
	}
	if slow && m.QoS == 2 { // it is written down before it is sent
		go func() {
			time.Sleep(5 * time.Millisecond)
			b.publish(m, true)
			done(nil)
		}()
		return nil
	}
	if refuse != nil {
		if err := refuse(m); err != nil {
			done(err)
			return nil
		}
	}
	b.publish(m, true)
	done(nil)
	return nil
}

func (b *broker) Snapshot(_ context.Context, filters []string, fn func(*session.Message) error) error {
	b.mu.Lock()
	b.snapshots++
	all, hidden := slices.Collect(maps.Values(b.retained)), b.hidden
	b.mu.Unlock()
	for _, m := range all {
		for _, f := range filters {
			if f != hidden && topic.Match(f, m.Topic) {
				c := *m
				if err := fn(&c); err != nil {
					return err
				}
			}
		}
	}
	if hidden != "" {
		return &session.Unread{Filters: []string{hidden}, Err: &session.Refused{What: "subscribe"}}
	}
	return nil
}

// publish is by a client (own: by the adapter).
func (b *broker) publish(m *session.Message, own bool) {
	b.order.Lock()
	defer b.order.Unlock()
	c := *m
	b.mu.Lock()
	if !topic.Reserved(m.Topic) {
		b.log = append(b.log, &c)
	}
	if m.Retain && len(m.Payload) == 0 {
		delete(b.retained, m.Topic)
	} else if m.Retain {
		b.retained[m.Topic] = &c
	}
	subs := b.subs
	b.mu.Unlock()
	for _, s := range subs {
		if !topic.Match(s.Filter, m.Topic) || own && s.NoLocal && b.info.Version == session.V5 {
			continue
		}
		give := *m
		give.QoS = min(m.QoS, s.QoS)
		b.mu.Lock()
		b.uid++
		b.given++
		give.UID = fmt.Appendf(nil, "%s-%d", b.g.name, b.uid)
		b.mu.Unlock()
		if b.info.Version == session.V311 {
			give.Properties, give.Retain = session.Properties{}, false
		}
		b.g.adapter.Arrive(context.Background(), &give, func(err error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			if err != nil {
				b.nacked++
			} else {
				b.acked++
			}
		})
	}
}

func (b *broker) client(name, payload string, qos byte, retain bool) {
	b.publish(&session.Message{Topic: name, Payload: []byte(payload), QoS: qos, Retain: retain}, false)
}

// got returns what was published to topics that a filter matches, as topic=payload.
func (b *broker) got(filter string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := []string{}
	for _, m := range b.log {
		if topic.Match(filter, m.Topic) {
			out = append(out, m.Topic+"="+string(m.Payload))
		}
	}
	return out
}

func (b *broker) messages(filter string) []*session.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.log), func(m *session.Message) bool { return !topic.Match(filter, m.Topic) })
}

// holds returns what is retained below a filter.
func (b *broker) holds(filter string) map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[string]string{}
	for name, m := range b.retained {
		if topic.Match(filter, name) {
			out[name] = string(m.Payload)
		}
	}
	return out
}

func (b *broker) unacked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.given - b.acked - b.nacked
}

// wire stands for the lanes from one grid: a queue to each peer that outlives the link.
type wire struct {
	g     *grid
	mu    sync.Mutex
	queue map[federation.GridID][]lane.Item
	up    map[federation.GridID]bool
	quota int
	seq   int
	ids   map[string]bool
	busy  map[federation.GridID]bool
	// early, when set, is given back before its Put is told that it is stored.
	early func(lane.Item) bool
	// broken, when set, is why nothing is stored.
	broken error
}

func newWire(g *grid) *wire {
	return &wire{g: g, queue: map[federation.GridID][]lane.Item{}, up: map[federation.GridID]bool{}, quota: 1 << 20, ids: map[string]bool{}, busy: map[federation.GridID]bool{}}
}

func (w *wire) set(peer federation.GridID, up bool) {
	w.mu.Lock()
	w.up[peer] = up
	w.mu.Unlock()
	if up {
		w.g.adapter.PeerUp(peer)
	} else {
		w.g.adapter.PeerDown(peer)
	}
}

func (w *wire) Put(ctx context.Context, peer federation.GridID, name lane.Name, stored func(error), items ...lane.Item) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case name != lane.MQTT:
		return lane.ErrUnknownLane
	case w.broken != nil:
		stored(w.broken)
		return nil
	case len(w.queue[peer])+len(items) > w.quota:
		stored(lane.ErrFull)
		return nil
	}
	for _, it := range items {
		if id := string(peer) + string(it.ID); len(it.ID) > 0 {
			if w.ids[id] {
				continue
			}
			w.ids[id] = true
		}
		w.seq++
		it.Source, it.At = fmt.Sprintf("1.%d", w.seq), time.Now()
		if w.early != nil && w.early(it) {
			if err := w.giveBack(ctx, peer, []lane.Item{it}, lane.ErrExpired); err != nil {
				return err
			}
			continue
		}
		w.queue[peer] = append(w.queue[peer], it)
	}
	stored(nil)
	return nil
}

func (w *wire) DropOldest(ctx context.Context, peer federation.GridID, _ lane.Name, n int) (int, error) {
	w.mu.Lock()
	n = min(n, len(w.queue[peer]))
	dropped := w.queue[peer][:n]
	w.queue[peer] = w.queue[peer][n:]
	w.mu.Unlock()
	return n, w.giveBack(ctx, peer, dropped, lane.ErrDropped)
}

func (w *wire) giveBack(ctx context.Context, peer federation.GridID, items []lane.Item, why error) error {
	for _, it := range items {
		if err := w.g.adapter.GiveBack(ctx, w.g.dir.Now().Peer(peer), it, why); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) waiting(peer federation.GridID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.queue[peer])
	if w.busy[peer] {
		n++
	}
	return n
}

func (w *wire) Send(ctx context.Context, peer federation.GridID, _ lane.Name, items ...lane.Item) error {
	w.mu.Lock()
	up := w.up[peer]
	w.mu.Unlock()
	if !up {
		return federation.ErrPeerDown
	}
	for _, to := range w.g.w.grids {
		if to.id != peer {
			continue
		}
		for _, it := range items {
			if err := to.adapter.Deliver(ctx, to.dir.Now().Peer(w.g.id), it); err != nil {
				var no *lane.Refusal
				if !errors.As(err, &no) {
					return err
				}
			}
		}
	}
	return nil
}

// hand is Hand of items from a peer, and the wait for its end.
func (g *grid) hand(ctx context.Context, from *federation.Peer, items []lane.Item) (settled int, err error) {
	ended := make(chan struct{})
	g.adapter.Hand(ctx, from, items, func(n int, failed error) {
		settled, err = n, failed
		close(ended)
	})
	select {
	case <-ended:
		return settled, err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// carry hands what waits to a peer while the link is up.
func (w *wire) carry(ctx context.Context, to *grid) {
	for ctx.Err() == nil {
		w.mu.Lock()
		var items []lane.Item
		if q := w.queue[to.id]; w.up[to.id] && len(q) > 0 {
			n := 1
			for n < len(q) && n < 64 && q[n].Conv == q[0].Conv {
				n++
			}
			items = slices.Clone(q[:n])
			w.queue[to.id] = q[n:]
			w.busy[to.id] = true
		}
		w.mu.Unlock()
		if items == nil {
			time.Sleep(200 * time.Microsecond)
			continue
		}
		for len(items) > 0 && ctx.Err() == nil {
			n, err := to.hand(ctx, to.dir.Now().Peer(w.g.id), items)
			if items = items[n:]; err != nil {
				time.Sleep(time.Millisecond)
			}
		}
		w.mu.Lock()
		w.busy[to.id] = false
		w.mu.Unlock()
	}
}

// quiet waits until nothing is on its way anywhere.
func (w *world) quiet() {
	w.t.Helper()
	eventually(w.t, "nothing is on its way", func() bool {
		for _, g := range w.grids {
			if g.broker.unacked() > 0 {
				return false
			}
			for _, to := range w.grids {
				if g.wire.waiting(to.id) > 0 {
					return false
				}
			}
		}
		return true
	})
}
