package peertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Resolver is a DNS server for servers that meet without yggate: it answers
// _xmpp-server._tcp SRV questions with IP literals and knows nothing else.
type Resolver struct {
	// Addr is where it answers, over UDP.
	Addr netip.AddrPort

	server *dns.Server
	done   chan error
}

// NewResolver starts a resolver that leads each domain, and every name below
// it, to an s2s address. Port 0 of addr takes a free one.
func NewResolver(addr netip.AddrPort, domains map[string]netip.AddrPort) (*Resolver, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("start resolver: %w", err)
	}
	bound, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start resolver: %w", err)
	}
	r := &Resolver{Addr: bound, done: make(chan error, 1)}
	started := make(chan struct{})
	r.server = &dns.Server{PacketConn: conn, NotifyStartedFunc: func() { close(started) },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			// A lost answer is asked for again.
			_ = w.WriteMsg(answer(q, domains))
		})}
	go func() { r.done <- r.server.ActivateAndServe() }()
	select {
	case <-started:
		return r, nil
	case err := <-r.done:
		return nil, fmt.Errorf("start resolver: %w", errors.Join(err, conn.Close()))
	}
}

// Close stops the resolver.
func (r *Resolver) Close() error {
	err := r.server.ShutdownContext(context.Background())
	return errors.Join(err, <-r.done)
}

func answer(q *dns.Msg, domains map[string]netip.AddrPort) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	m.Rcode = dns.RcodeNameError
	if len(q.Question) != 1 || q.Question[0].Qtype != dns.TypeSRV {
		return m
	}
	name, ok := strings.CutPrefix(strings.ToLower(q.Question[0].Name), "_xmpp-server._tcp.")
	name = strings.TrimSuffix(name, ".")
	for domain, addr := range domains {
		if !ok || name != domain && !strings.HasSuffix(name, "."+domain) {
			continue
		}
		m.Rcode = dns.RcodeSuccess
		m.Answer = []dns.RR{&dns.SRV{
			Hdr:  dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: 5},
			Port: addr.Port(), Target: addr.Addr().String() + ".",
		}}
	}
	return m
}
