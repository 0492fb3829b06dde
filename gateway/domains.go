package gateway

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt"
	"github.com/yggate/yggate/gateway/admin"
)

// assign decides who holds a domain. A request without a protocol means the one in
// which the peer's claim on the domain is open.
func (g *gateway) assign(ctx context.Context, in admin.DomainRequest) (admin.Done, error) {
	proto := federation.Protocol(in.Protocol)
	if proto == "" {
		var err error
		if proto, err = g.openClaim(in.Domain, in.Peer); err != nil {
			return admin.Done{}, err
		}
	}
	domain, err := federation.NormalizeClaim(proto, in.Domain)
	if err != nil {
		return admin.Done{}, err
	}
	if err := g.registry.AssignDomain(ctx, proto, domain, in.Peer); err != nil {
		return admin.Done{}, err
	}
	g.log.Info("operator assigned a domain", "peer", in.Peer, "proto", proto, "domain", domain)
	return admin.Done{Done: fmt.Sprintf("%s %s is %s's now.", proto, domain, in.Peer), Next: routeCommand(proto, domain)}, nil
}

// openClaim finds for which protocol a peer claims a domain: the one for which that
// is undecided, else the only one. Where it is none, XMPP is as good as any: the
// registry says what is wrong.
func (g *gateway) openClaim(domain, petname string) (federation.Protocol, error) {
	now := g.registry.Directory().Now()
	var open, all []federation.Protocol
	for _, c := range now.Claims() {
		name, err := federation.NormalizeClaim(c.Protocol, domain)
		if p := now.Peer(c.Grid); err != nil || c.Domain != name || p == nil || p.Name != petname {
			continue
		}
		all = append(all, c.Protocol)
		if c.Status != federation.ClaimActive {
			open = append(open, c.Protocol)
		}
	}
	if len(open) == 0 {
		open = all
	}
	switch len(open) {
	case 0:
		if strings.Contains(domain, ":") { // only a server name has a port
			return federation.Matrix, nil
		}
		return federation.XMPP, nil
	case 1:
		return open[0], nil
	}
	slices.Sort(open)
	return "", fmt.Errorf("%s claims %s for %s and %s; say which, with --protocol", petname, domain, open[0], open[1])
}

// routeCommand is the command that shows who has a domain now.
func routeCommand(proto federation.Protocol, domain string) string {
	if proto == federation.XMPP {
		return "yggate route " + domain
	}
	return "yggate route " + domain + " --protocol " + string(proto)
}

// route explains what would become of traffic to an address.
func (g *gateway) route(in admin.RouteRequest) (admin.Route, error) {
	e := g.edge.Load()
	if e == nil {
		return admin.Route{}, errStandby
	}
	proto := federation.Protocol(in.Protocol)
	if proto == "" {
		proto = protocolOf(in.Address, func(p federation.Protocol) bool { return e.explain[p] != nil })
	}
	explain := e.explain[proto]
	if explain == nil {
		if proto != federation.XMPP && proto != federation.Matrix && proto != federation.MQTT {
			return admin.Route{}, fmt.Errorf("protocol %q is not known; want %s, %s or %s", proto, federation.XMPP, federation.Matrix, federation.MQTT)
		}
		return admin.Route{}, fmt.Errorf("%q is an address of %s, which this gateway does not run; a section %s in the configuration and a restart change that", in.Address, proto, proto)
	}
	out := admin.Route{Address: in.Address, OK: true}
	for _, h := range explain(in.Address) {
		text := h.Value
		if !h.OK {
			text = h.Problem
		}
		out.Hops = append(out.Hops, admin.Hop{Step: string(h.Step), OK: h.OK, Text: text, Fix: h.Remedy})
		out.OK = out.OK && h.OK
	}
	return out, nil
}

// protocolOf tells by its form which protocol an address is of. A name alone may be
// of any: it is taken for XMPP's where that runs. A topic looks like an address of XMPP,
// and says "mqtt:" before it, where not MQTT alone runs.
func protocolOf(address string, runs func(federation.Protocol) bool) federation.Protocol {
	bare := !strings.ContainsAny(address, "@/")
	switch {
	case strings.HasPrefix(address, mqtt.Prefix), !runs(federation.XMPP) && !runs(federation.Matrix) && runs(federation.MQTT):
		return federation.MQTT
	case address != "" && strings.ContainsAny(address[:1], "@#!"): // user, alias, room
		return federation.Matrix
	case bare && strings.Contains(address, ":"): // server name with a port
		return federation.Matrix
	case bare && !runs(federation.XMPP) && runs(federation.Matrix):
		return federation.Matrix
	}
	return federation.XMPP
}

// domains lists this grid's own domains and every claim.
func (g *gateway) domains() []admin.Domain {
	out := []admin.Domain{}
	own := g.conf.Load().Own()
	for _, proto := range g.conf.Load().Protocols() {
		for _, d := range own[proto] {
			out = append(out, admin.Domain{Protocol: string(proto), Domain: d, Peer: "(own)", Grid: string(g.identity.ID()), Status: string(federation.ClaimActive)})
		}
	}
	return append(out, g.claims(func(federation.Claim) bool { return true })...)
}

// claims lists the claims of peers for which keep is true, by domain.
func (g *gateway) claims(keep func(federation.Claim) bool) []admin.Domain {
	now := g.registry.Directory().Now()
	var out []admin.Domain
	for _, c := range now.Claims() {
		if !keep(c) {
			continue
		}
		d := admin.Domain{Protocol: string(c.Protocol), Domain: c.Domain, Grid: string(c.Grid), Status: string(c.Status)}
		if p := now.Peer(c.Grid); p != nil {
			d.Peer = p.Name
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b admin.Domain) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Peer, b.Peer))
	})
	return out
}
