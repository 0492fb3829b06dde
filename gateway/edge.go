package gateway

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/federation/matrix"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// edge is what meets the outside: one life of it, in one epoch.
type edge struct {
	g     *gateway
	epoch uint64
	// registry holds the metrics of this life, which end with it.
	registry *prometheus.Registry

	mesh    *mesh
	links   *link.Links
	lanes   *lane.Memory
	durable *lane.Durable
	xmpp    *xmppEdge       // nil: this grid has no XMPP
	matrix  *matrix.Adapter // nil: this grid has no Matrix
	mqtt    *mqttEdge       // nil: this grid has no MQTT
	// explain has, for each protocol that runs, what says where an address of it
	// would go.
	explain map[federation.Protocol]func(address string) []federation.Hop
}

// newEdge builds the parts and joins them; nothing runs yet.
func newEdge(ctx context.Context, g *gateway, epoch uint64) (*edge, error) {
	e := &edge{
		g: g, epoch: epoch, registry: prometheus.NewRegistry(),
		explain: map[federation.Protocol]func(string) []federation.Hop{},
	}
	conf := g.conf.Load()
	var err error
	if e.mesh, err = newMesh(g, func() { e.wake() }); err != nil {
		return nil, err
	}
	if err := e.newLinks(conf); err != nil {
		return nil, err
	}
	handlers, recipients := map[federation.Protocol]lane.Handler{}, map[federation.Protocol]lane.Recipient{}
	if conf.XMPP != nil {
		if err := e.newXMPP(conf); err != nil {
			return nil, err
		}
		handlers[federation.XMPP], recipients[federation.XMPP] = e.xmpp.adapter, e.xmpp.adapter
	}
	if conf.Matrix != nil {
		if err := e.newMatrix(conf); err != nil {
			return nil, err
		}
		recipients[federation.Matrix] = e.matrix
	}
	if conf.MQTT != nil {
		if err := e.newMQTT(ctx, conf); err != nil {
			return nil, err
		}
		handlers[federation.MQTT], recipients[federation.MQTT] = e.mqtt.adapter, e.mqtt.adapter
	}
	e.lanes = lane.NewMemory(lane.MemoryConfig{
		Streams: e.links, Directory: g.registry.Directory(), Log: g.log, Metrics: e.registry,
		Handlers: handlers,
	})
	if e.durable, err = lane.NewDurable(ctx, lane.DurableConfig{
		Store: g.store, Streams: e.links, Directory: g.registry.Directory(), Epoch: epoch, Log: g.log, Metrics: e.registry,
		Recipients: recipients,
	}); err != nil {
		return nil, fmt.Errorf("durable lanes: %w", err)
	}
	if e.xmpp != nil {
		e.xmpp.adapter.Connect(e.lanes, e.durable, e.xmpp.streams)
	}
	if e.matrix != nil {
		e.matrix.Connect(e.durable)
	}
	if e.mqtt != nil {
		e.mqtt.adapter.Connect(e.lanes, e.durable, e.mqtt.session)
	}
	return e, nil
}

// lanesServed are the lanes that peers may open.
func lanesServed() []string {
	names := []string{string(lane.Eph)}
	for _, name := range lane.DurableLanes() {
		names = append(names, string(name))
	}
	return names
}

// serveLane works a stream that a peer opened.
func (e *edge) serveLane(ctx context.Context, peer *federation.Peer, name string, stream io.ReadWriteCloser) error {
	if name == string(lane.Eph) {
		return e.lanes.ServeStream(ctx, peer, name, stream)
	}
	return e.durable.ServeStream(ctx, peer, name, stream)
}

func (e *edge) newLinks(conf *config.Config) (err error) {
	e.links, err = link.New(link.Config{
		Directory: e.g.registry.Directory(), Leaf: e.g.identity.Leaf,
		Transports: map[string]transports.Transport{ygg.Network: e.mesh.node},
		Port:       conf.Mesh.Port, Epoch: e.epoch, Software: "yggate " + Version(),
		Lanes: lanesServed(), Unknown: e.g.pairing.Handler(), ServeLane: e.serveLane,
		OnState: e.linkChanged, Log: e.g.log, Metrics: e.registry,
	})
	return err
}

// run runs every part until ctx is done or one fails. What the local XMPP servers
// have on their way then is taken still, so that what it goes through, and what puts
// it on disk, ends when their streams have.
func (e *edge) run(ctx context.Context) error {
	e.g.log.Info("edge starts", "epoch", e.epoch, "grid", e.g.identity.ID().Short(), "node", e.mesh.node.Self().Node)
	parts, ctx := errgroup.WithContext(ctx)
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() error { return runPart(ctx, name, run) })
	}
	behind, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	partBehind := func(name string, run func(context.Context) error) {
		parts.Go(func() error { return runPart(behind, name, run) })
	}
	part("mesh", e.mesh.run)
	part("links", e.links.Run)
	part("lanes", e.lanes.Run)
	partBehind("durable lanes", e.durable.Run)
	part("pairing", func(ctx context.Context) error { return e.g.pairing.Run(ctx, e.links) })
	if e.xmpp != nil {
		partBehind("xmpp", e.xmpp.adapter.Run)
		part("xmpp streams", func(ctx context.Context) error {
			defer end()
			return e.xmpp.streams.Run(ctx)
		})
		if e.xmpp.dns != nil {
			part("dns", e.xmpp.dns.Run)
		}
	} else {
		defer context.AfterFunc(ctx, end)()
	}
	if e.matrix != nil {
		part("matrix", e.matrix.Run)
	}
	if e.mqtt != nil {
		part("mqtt", e.mqtt.run)
	}
	part("last heard", e.keepHeard)
	part("store", e.probeStore)
	return parts.Wait()
}

// linkChanged spreads the news of a link. Lanes are ready before an adapter is
// told that they are, and have given everything back before it is told that they
// are gone.
func (e *edge) linkChanged(ev link.Event) {
	if ev.Up {
		e.lanes.PeerUp(ev.Peer)
		e.durable.PeerUp(ev.Peer)
		if e.xmpp != nil {
			e.xmpp.adapter.PeerUp(ev.Peer, ev.Epoch)
		}
		if e.matrix != nil {
			e.matrix.PeerUp(ev.Peer)
		}
		if e.mqtt != nil {
			e.mqtt.adapter.PeerUp(ev.Peer)
		}
		e.g.pairing.Wake(ev.Peer)
		return
	}
	e.lanes.PeerDown(ev.Peer)
	e.durable.PeerDown(ev.Peer)
	if e.xmpp != nil {
		e.xmpp.adapter.PeerDown(ev.Peer)
	}
	if e.matrix != nil {
		e.matrix.PeerDown(ev.Peer)
	}
	if e.mqtt != nil {
		e.mqtt.adapter.PeerDown(ev.Peer)
	}
}

// wake has every link that is down dialled now: the mesh has changed.
func (e *edge) wake() {
	for _, p := range e.g.registry.Directory().Now().Peers() {
		if p.State == federation.StateActive {
			e.links.Wake(p.ID)
		}
	}
}

// linkState is what `yggate route` says of a link.
func (e *edge) linkState(id federation.GridID) (up bool, detail string) {
	for _, st := range e.links.Status() {
		if st.Peer != id {
			continue
		}
		if st.State == link.Up {
			return true, fmt.Sprintf("up over %s, last heard %s ago", st.Transport, time.Since(st.LastHeard).Round(time.Millisecond))
		}
		if st.LastError != "" {
			return false, string(st.State) + ": " + st.LastError
		}
		return false, string(st.State)
	}
	return false, "not dialled"
}

// heardEvery bounds how old the stored "last heard" may be after a crash.
const heardEvery = time.Minute

// keepHeard stores when each peer was last heard, for listings after a restart.
func (e *edge) keepHeard(ctx context.Context) error {
	tick := time.NewTicker(heardEvery)
	defer tick.Stop()
	stored := map[federation.GridID]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			e.noteHeard(ctx, e.links.Status(), stored)
		}
	}
}

// noteHeard stores what is newer than stored. Whatever keeps the store from that ends
// nothing: it is seen in the status of a gateway that runs.
func (e *edge) noteHeard(ctx context.Context, links []link.PeerStatus, stored map[federation.GridID]time.Time) {
	for _, st := range links {
		if !st.LastHeard.After(stored[st.Peer]) {
			continue
		}
		if err := e.g.registry.Heard(ctx, st.Peer, st.LastHeard); err != nil {
			if ctx.Err() == nil {
				e.g.log.Warn("when a peer was last heard is not stored", "err", err)
			}
			return
		}
		stored[st.Peer] = st.LastHeard
	}
}

// probeEvery is how soon it shows that a store takes writes again.
const probeEvery = 5 * time.Second

// probeStore tries a store that took no write, until it does: it says that it is well
// only after a write, and a quiet gateway has none for hours.
func (e *edge) probeStore(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch e.g.store.Health().State {
		case store.HealthOK, store.HealthDamaged: // which stays until a restart
			continue
		}
		if err := e.g.store.Probe(ctx); err == nil { // else its health tells of it
			e.g.log.Info("the store takes writes again")
		}
	}
}
