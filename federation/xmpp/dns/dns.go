// Package dns answers the local XMPP server's questions for the servers of peer
// domains (RFC 6120 §3.2.1): the SRV record of each leads to the gateway.
//
// The target is an IP literal. ejabberd asks the resolver of the system for the
// address of a target, not this responder, and both it and Prosody take a literal
// as it is. Direct TLS (_xmpps-server, XEP-0368) is not offered, because ejabberd
// does not fall back from it.
//
// Nothing else is answered, and nothing is asked of anyone, unless the operator
// names resolvers for the rest.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"
)

const (
	ioTimeout     = 5 * time.Second // of TCP clients, also between questions
	maxTCPClients = 64              // more wait to be accepted
	maxUDP        = 1232            // bytes, as DNS flag day 2020 advises
)

// Config says where to answer and what.
type Config struct {
	Listen netip.AddrPort // UDP and TCP
	// AllowFrom are the only sources that are answered; none means loopback.
	AllowFrom []netip.Prefix
	// Answer returns where servers that look for a domain shall connect to. The
	// domain is in lower case, without a final dot.
	Answer func(domain string) (target netip.AddrPort, ok bool)
	// Upstream are asked, in order, about every name that Answer does not know.
	// Without any, such names do not exist.
	Upstream []netip.AddrPort
	// UpstreamTimeout is how long each upstream has, by UDP and by TCP; 0: 2 s.
	UpstreamTimeout time.Duration
	Log             *slog.Logger // may be nil
}

// Responder answers DNS questions.
type Responder struct {
	cfg     Config
	forward *forwarder // nil without upstream
	strange rate.Sometimes
}

// New checks the configuration. It refuses to listen where others than this
// machine could ask, unless AllowFrom names some of them.
func New(cfg Config) (*Responder, error) {
	if len(cfg.AllowFrom) == 0 {
		cfg.AllowFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	onlyLoopback := !slices.ContainsFunc(cfg.AllowFrom, func(p netip.Prefix) bool { return !p.Addr().IsLoopback() })
	switch {
	case !cfg.Listen.IsValid() || cfg.Listen.Port() == 0 || cfg.Answer == nil:
		return nil, errors.New("dns responder: an address, a port and answers are required")
	case !cfg.Listen.Addr().IsLoopback() && onlyLoopback:
		return nil, fmt.Errorf("dns responder: %s is open to other machines, but only this one is allowed to ask: name them as allowed sources, or listen on a loopback address", cfg.Listen)
	case slices.Contains(cfg.Upstream, cfg.Listen):
		return nil, fmt.Errorf("dns responder: upstream %s is the responder itself", cfg.Listen)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Responder{cfg: cfg, strange: rate.Sometimes{First: 3, Interval: time.Minute}}
	if len(cfg.Upstream) > 0 {
		r.forward = newForwarder(cfg)
	}
	return r, nil
}

// Run answers over UDP and TCP until ctx is done and then returns nil.
func (r *Responder) Run(ctx context.Context) error {
	packets, err := net.ListenPacket("udp", r.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("dns responder: %w", err)
	}
	defer packets.Close()
	streams, err := net.Listen("tcp", r.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("dns responder: %w", err)
	}
	defer streams.Close()
	parts, ctx := errgroup.WithContext(ctx)
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { r.serve(ctx, w, q) })
	for _, s := range []*dns.Server{{
		PacketConn: packets, Handler: handler,
		DecorateReader: func(inner dns.Reader) dns.Reader { return allowedReader{inner, r.mayAsk} },
	}, {
		Listener: netutil.LimitListener(allowedListener{streams, r.mayAsk}, maxTCPClients), Handler: handler,
		ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, IdleTimeout: func() time.Duration { return ioTimeout },
	}} {
		parts.Go(func() error { return activate(ctx, s) })
	}
	if err := parts.Wait(); err != nil {
		return fmt.Errorf("dns responder: %w", err)
	}
	return nil
}

// activate serves until ctx is done and waits for what is being answered.
func activate(ctx context.Context, s *dns.Server) error {
	down := make(chan error, 1)
	stop := func() bool { return true }
	// Only a server that has started can be shut down, and it says so in here,
	// from within ActivateAndServe.
	s.NotifyStartedFunc = func() {
		stop = context.AfterFunc(ctx, func() { down <- s.Shutdown() })
	}
	err := s.ActivateAndServe()
	if !stop() {
		err = errors.Join(err, <-down)
	}
	return err
}

func (r *Responder) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	answer := r.answer(ctx, q)
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
	}
	if opt := q.IsEdns0(); opt != nil {
		answer.SetEdns0(maxUDP, opt.Do())
		size = max(size, min(int(opt.UDPSize()), maxUDP))
	}
	answer.Truncate(size)
	if err := w.WriteMsg(answer); err != nil {
		r.cfg.Log.Debug("dns answer not sent", "remote", w.RemoteAddr(), "err", err)
	}
}

func (r *Responder) mayAsk(from net.Addr) bool {
	addr, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return false
	}
	ip := addr.Addr().Unmap().WithZone("")
	if slices.ContainsFunc(r.cfg.AllowFrom, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return true
	}
	r.strange.Do(func() {
		r.cfg.Log.Warn("dns question dropped: its address is not one of the allowed sources (xmpp.allow_from)", "remote", from)
	})
	return false
}

// allowedReader reads packets of allowed sources: those of others are dropped
// unread, so that not even an error can be had from here under a false address.
type allowedReader struct {
	dns.Reader
	mayAsk func(net.Addr) bool
}

func (a allowedReader) ReadUDP(conn *net.UDPConn, timeout time.Duration) ([]byte, *dns.SessionUDP, error) {
	for {
		packet, session, err := a.Reader.ReadUDP(conn, timeout)
		if err != nil || a.mayAsk(session.RemoteAddr()) {
			return packet, session, err
		}
	}
}

// allowedListener accepts connections of allowed sources and closes others.
type allowedListener struct {
	net.Listener
	mayAsk func(net.Addr) bool
}

func (a allowedListener) Accept() (net.Conn, error) {
	for {
		conn, err := a.Listener.Accept()
		if err != nil || a.mayAsk(conn.RemoteAddr()) {
			return conn, err
		}
		conn.Close()
	}
}
