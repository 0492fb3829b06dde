package gateway

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/transports"
)

// status is the gateway at this moment.
func (g *gateway) status(ctx context.Context) admin.Status {
	c := g.conf.Load()
	st := admin.Status{
		Version: Version(), Grid: string(g.identity.ID()), Name: c.Name, Started: g.started, Role: "standby",
		Domains: map[string][]string{}, Transports: []transports.Status{}, Streams: []admin.Stream{}, Leaves: []admin.Leaf{},
		Peers:     g.peers(ctx),
		Store:     g.storeStatus(),
		Conflicts: g.claims(func(c federation.Claim) bool { return c.Status != federation.ClaimActive }),
		Warnings:  slices.Clone(c.Warnings),
	}
	for proto, domains := range c.Own() {
		st.Domains[string(proto)] = domains
	}
	if e := g.edge.Load(); e != nil {
		st.Role, st.Edge, st.Epoch = "primary", true, e.epoch
		st.Transports = append(st.Transports, e.mesh.node.Status())
		if len(st.Transports[0].Peerings) > 0 {
			st.Warnings = slices.DeleteFunc(st.Warnings, func(w string) bool { return w == config.NoPeerings })
		}
		if e.xmpp != nil {
			for _, s := range e.xmpp.streams.Status() {
				st.Streams = append(st.Streams, admin.Stream{Dir: s.Dir, From: s.From, To: s.To, State: s.State, Since: s.Since, LastError: s.Err})
			}
		}
		if e.matrix != nil {
			st.Matrix = g.matrixStatus(e.matrix)
		}
		if e.mqtt != nil {
			st.MQTT = g.mqttStatus(e.mqtt)
		}
	}
	if leaf, err := g.identity.Leaf(g.meshAddr()); err != nil {
		st.Warnings = append(st.Warnings, fmt.Sprintf("the certificate of this node cannot be issued: %v", err))
	} else {
		st.Leaves = append(st.Leaves, admin.Leaf{Address: g.meshAddr().ID(), Expires: leaf.Leaf.NotAfter})
	}
	g.warn(ctx, &st)
	return st
}

// peers lists every known grid by name.
func (g *gateway) peers(ctx context.Context) []admin.Peer {
	links := map[federation.GridID]link.PeerStatus{}
	var lanes []admin.Lane
	if e := g.edge.Load(); e != nil {
		lanes = g.lanes(ctx, e)
		for _, st := range e.links.Status() {
			links[st.Peer] = st
		}
	}
	out := []admin.Peer{}
	for _, p := range g.registry.Directory().Now().Peers() {
		d := g.describe(p, links)
		d.Lanes = lanesOf(lanes, p.Name)
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b admin.Peer) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// peer shows the peer of that name.
func (g *gateway) peer(ctx context.Context, name string) (admin.Peer, error) {
	for _, p := range g.peers(ctx) {
		if p.Name == name {
			return p, nil
		}
	}
	return admin.Peer{}, fmt.Errorf("peer %q: %w; `yggate peer list` shows all", name, admin.ErrNotFound)
}

func (g *gateway) describe(p *federation.Peer, links map[federation.GridID]link.PeerStatus) admin.Peer {
	out := admin.Peer{
		Name: p.Name, Grid: string(p.ID), Fingerprint: p.ID.Fingerprint(), State: string(p.State),
		Created: p.Created, LastHeard: p.LastHeard, Allow: []string{},
		Domains: g.claims(func(c federation.Claim) bool { return c.Grid == p.ID }),
	}
	for proto, ok := range p.Policy.Allow {
		if ok {
			out.Allow = append(out.Allow, string(proto))
		}
	}
	slices.Sort(out.Allow)
	if m := &p.Policy.Matrix; p.Policy.Allow[federation.Matrix] {
		out.Matrix = &admin.MatrixPolicy{
			Servers: slices.Sorted(maps.Keys(m.Servers)), DenyServers: slices.Sorted(maps.Keys(m.DenyServers)),
			DenyRooms: slices.Sorted(maps.Keys(m.DenyRooms)), Custody: m.Custody,
		}
	}
	if p.Policy.Allow[federation.MQTT] {
		out.MQTT = describeMQTT(&p.Policy.MQTT)
	}
	if d := p.Descriptor; d != nil {
		out.Title, out.Stale = d.Name, d.Stale(time.Now())
		for _, a := range d.Addrs() {
			out.Nodes = append(out.Nodes, a.ID())
		}
	}
	st, ok := links[p.ID]
	if !ok {
		return out
	}
	out.Up, out.Link, out.RTT = st.State == link.Up, string(st.State), st.RTT
	out.Transport, out.Address, out.LastError = st.Transport, st.Address, st.LastError
	if !st.LastHeard.IsZero() { // what is stored is older, whatever the clock said then
		out.LastHeard = st.LastHeard
	}
	return out
}
