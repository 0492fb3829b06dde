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
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

const (
	// ttl of answers, in seconds: a removed peer is gone in that time, and what
	// is asked costs little.
	ttl = 30
	// service is what an SRV question for an XMPP server begins with.
	service = "_xmpp-server._tcp."

	maxForwards    = 64              // questions to upstream at a time
	forwardTimeout = 2 * time.Second // for each upstream
	ioTimeout      = 5 * time.Second // of TCP clients
	maxUDP         = 1232            // bytes, as DNS flag day 2020 advises
)

// Config says where to answer and what.
type Config struct {
	Listen netip.AddrPort // UDP and TCP
	// AllowFrom are the sources that are answered; loopback always is.
	AllowFrom []netip.Prefix
	// Answer returns where servers that look for a domain shall connect to. The
	// domain is in lower case, without a final dot.
	Answer func(domain string) (target netip.AddrPort, ok bool)
	// Upstream are asked, in order, about every name that Answer does not know.
	// Without any, such names do not exist.
	Upstream []netip.AddrPort
	Log      *slog.Logger // may be nil
}

// Responder answers DNS questions.
type Responder struct {
	cfg     Config
	forward *semaphore.Weighted
}

// New checks the configuration.
func New(cfg Config) (*Responder, error) {
	switch {
	case !cfg.Listen.IsValid() || cfg.Answer == nil:
		return nil, errors.New("dns responder: an address and answers are required")
	case slices.Contains(cfg.Upstream, cfg.Listen):
		return nil, fmt.Errorf("dns responder: upstream %s is the responder itself", cfg.Listen)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Responder{cfg: cfg, forward: semaphore.NewWeighted(maxForwards)}, nil
}

// Run answers over UDP and TCP until ctx is done and then returns nil.
func (r *Responder) Run(ctx context.Context) error {
	packets, err := net.ListenPacket("udp", r.cfg.Listen.String())
	if err != nil {
		return fmt.Errorf("dns responder: %w", err)
	}
	// The same port for both, also where the operating system chooses it.
	addr := netip.AddrPortFrom(r.cfg.Listen.Addr(), packets.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	streams, err := net.Listen("tcp", addr.String())
	if err != nil {
		packets.Close()
		return fmt.Errorf("dns responder: %w", err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { r.serve(ctx, w, q) })
	servers := []*dns.Server{
		{PacketConn: packets, Handler: handler},
		{Listener: streams, Handler: handler, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, MaxTCPQueries: 128},
	}
	parts, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		parts.Go(s.ActivateAndServe)
		parts.Go(func() error {
			select {
			case <-started:
			case <-ctx.Done(): // the other failed, perhaps before this one began
				select {
				case <-started:
				case <-time.After(ioTimeout):
					return nil
				}
			}
			<-ctx.Done()
			return s.Shutdown()
		})
	}
	if err := parts.Wait(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("dns responder: %w", err)
	}
	return nil
}

func (r *Responder) serve(ctx context.Context, w dns.ResponseWriter, q *dns.Msg) {
	if !r.mayAsk(w.RemoteAddr()) {
		return
	}
	answer := r.answer(ctx, q)
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = min(max(int(o.UDPSize()), dns.MinMsgSize), maxUDP)
		}
		answer.Truncate(size)
	}
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
	return ip.IsLoopback() || slices.ContainsFunc(r.cfg.AllowFrom, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// answer is the reply to one message.
func (r *Responder) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return new(dns.Msg).SetRcodeFormatError(q)
	}
	question := q.Question[0]
	name := strings.ToLower(strings.TrimSuffix(question.Name, "."))
	domain, isService := strings.CutPrefix(name, service)
	target, ok := r.lookup(domain)
	switch {
	case !ok:
		return r.elsewhere(ctx, q)
	case isService && question.Qclass == dns.ClassINET && (question.Qtype == dns.TypeSRV || question.Qtype == dns.TypeANY):
		reply := authoritative(q)
		reply.Answer = append(reply.Answer, &dns.SRV{
			Hdr:    dns.RR_Header{Name: question.Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: ttl},
			Weight: 1, Port: target.Port(), Target: target.Addr().String() + ".",
		})
		return reply
	}
	// The name is a peer's: whatever else is asked of it has no record here, and
	// is nobody else's to know.
	return authoritative(q)
}

// lookup finds the peer domain that a name is, or lies below of as a service.
func (r *Responder) lookup(name string) (netip.AddrPort, bool) {
	for name != "" {
		if target, ok := r.cfg.Answer(name); ok {
			return target, true
		}
		if !strings.HasPrefix(name, "_") {
			break
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return netip.AddrPort{}, false
}

func authoritative(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.Authoritative = true
	reply.RecursionAvailable = true
	return reply
}

// elsewhere answers for a name that is no peer's.
func (r *Responder) elsewhere(ctx context.Context, q *dns.Msg) *dns.Msg {
	if len(r.cfg.Upstream) == 0 {
		reply := authoritative(q)
		reply.Rcode = dns.RcodeNameError
		return reply
	}
	if !r.forward.TryAcquire(1) {
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	defer r.forward.Release(1)
	for _, upstream := range r.cfg.Upstream {
		reply, err := ask(ctx, q, upstream.String())
		if err == nil {
			reply.Id = q.Id
			return reply
		}
		r.cfg.Log.Warn("upstream resolver failed", "upstream", upstream, "err", err)
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// ask forwards a question, by TCP if the answer does not fit UDP.
func ask(ctx context.Context, q *dns.Msg, upstream string) (*dns.Msg, error) {
	out := q.Copy()
	out.Id = dns.Id()
	out.RecursionDesired = true
	c := dns.Client{Timeout: forwardTimeout}
	reply, _, err := c.ExchangeContext(ctx, out, upstream)
	if err == nil && reply.Truncated {
		c.Net = "tcp"
		reply, _, err = c.ExchangeContext(ctx, out, upstream)
	}
	return reply, err
}
