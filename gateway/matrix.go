package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/federation/matrix"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

// newMatrix builds the Matrix part of an edge.
func (e *edge) newMatrix(conf *config.Config) error {
	m := conf.Matrix
	server, err := url.Parse(m.Server)
	if err != nil {
		return fmt.Errorf("matrix.server: %w", err)
	}
	var upstream *url.URL
	if m.UpstreamProxy != "" {
		if upstream, err = url.Parse(m.UpstreamProxy); err != nil {
			return fmt.Errorf("matrix.upstream_proxy: %w", err)
		}
	}
	allow := make([]netip.Prefix, len(m.AllowFrom))
	for i, p := range m.AllowFrom {
		allow[i] = p.Prefix
	}
	if e.matrix, err = matrix.New(matrix.Config{
		Directory: e.g.registry.Directory(), Links: e.links, Store: e.g.store, CA: e.g.ca,
		Server: server, Proxy: m.Proxy, Listen: m.Listen, AllowFrom: allow, UpstreamProxy: upstream,
		MaxBody: int64(m.MaxBody), Link: e.linkState, Log: e.g.log, Metrics: e.registry,
	}); err != nil {
		return err
	}
	e.explain[federation.Matrix] = func(address string) []federation.Hop { return e.matrix.Explain("", address) }
	e.links.Handle(matrix.Endpoint, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.matrix.ServePeer(w, r, link.PeerFrom(r.Context()))
	}))
	return nil
}

// matrixStatus is what there is to see of Matrix.
func (g *gateway) matrixStatus(a *matrix.Adapter) *admin.Matrix {
	out := &admin.Matrix{Server: g.conf.Load().Matrix.Server, Keys: []admin.MatrixKeys{}, Wakes: []admin.MatrixWake{}}
	for _, k := range a.Keys() {
		out.Keys = append(out.Keys, admin.MatrixKeys{
			Peer: g.peerName(k.Peer), Server: k.Server, Keys: k.Keys, Fetched: k.Fetched, ValidUntil: k.ValidUntil,
			Changed: k.Changed, Before: k.Before, Problem: k.Problem,
		})
	}
	for _, w := range a.Wakes() {
		out.Wakes = append(out.Wakes, admin.MatrixWake{Peer: w.Peer, Server: w.Server, Reached: w.Reached, Problem: w.Problem})
	}
	return out
}
