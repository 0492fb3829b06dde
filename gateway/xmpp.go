package gateway

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/xmpp"
	"github.com/yggate/yggate/federation/xmpp/dns"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
	"github.com/yggate/yggate/gateway/config"
)

// xmppEdge is what of an edge is XMPP's.
type xmppEdge struct {
	adapter *xmpp.Adapter
	streams *s2s.Streams
	dns     *dns.Responder // nil in hosts mode
}

// newXMPP builds the XMPP part of an edge.
func (e *edge) newXMPP(conf *config.Config) (err error) {
	x, out := conf.XMPP, &xmppEdge{}
	own := conf.Own()[federation.XMPP]
	limits := frame.DefaultLimits()
	limits.Stanza = int(x.MaxStanza)
	if out.adapter, err = xmpp.New(xmpp.Config{
		Directory: e.g.registry.Directory(), Link: e.linkState, Servers: [][]string{own},
		Limits: limits, Log: e.g.log, Metrics: e.registry,
	}); err != nil {
		return err
	}
	server := s2s.Server{Addr: x.Server, Domains: own}
	if x.ServerCA != "" {
		if server.Roots, err = readRoots(x.ServerCA); err != nil {
			return fmt.Errorf("xmpp.server_ca: %w", err)
		}
	}
	streamLimits := s2s.DefaultLimits()
	streamLimits.Stanza = max(limits.Stanza, streamLimits.Stanza)
	allow := make([]netip.Prefix, len(x.AllowFrom))
	for i, p := range x.AllowFrom {
		allow[i] = p.Prefix
	}
	if out.streams, err = s2s.New(s2s.Config{
		Listen: x.Listen.String(), CA: e.g.ca, Servers: []s2s.Server{server}, Handler: out.adapter,
		AllowFrom: allow, Limits: streamLimits, Log: e.g.log, Metrics: e.registry,
	}); err != nil {
		return err
	}
	e.xmpp = out
	e.explain[federation.XMPP] = func(address string) []federation.Hop { return out.adapter.Explain("", address) }
	if x.DNS == nil {
		return nil
	}
	out.dns, err = dns.New(dns.Config{
		Listen: x.DNS.Listen, Upstream: x.DNS.Upstream, AllowFrom: allow, Log: e.g.log,
		Answer: func(domain string) (netip.AddrPort, bool) { return x.Listen, out.adapter.Answer(domain) },
	})
	return err
}

func readRoots(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return pool, nil
}
