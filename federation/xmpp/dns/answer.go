package dns

import (
	"context"
	"strings"

	"github.com/miekg/dns"
)

const (
	// ttl of answers, in seconds: a removed peer is gone in that time, and what
	// is asked costs little.
	ttl = 30
	// negativeTTL is how long a new peer may seem not to exist.
	negativeTTL = 5
	// service is what a question for an XMPP server begins with.
	service = "_xmpp-server._tcp"
)

// answer is the reply to one message.
func (r *Responder) answer(ctx context.Context, q *dns.Msg) *dns.Msg {
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return new(dns.Msg).SetRcodeFormatError(q)
	}
	switch question := q.Question[0]; {
	case question.Qclass != dns.ClassINET,
		question.Qtype == dns.TypeAXFR, question.Qtype == dns.TypeIXFR:
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	name := strings.ToLower(strings.TrimSuffix(q.Question[0].Name, "."))
	// What stands before the domain is labels that no host has (RFC 8552), so a
	// peer's services are found to be a peer's whatever service is meant.
	prefix, domain := cutUnderscored(name)
	if target, ok := r.cfg.Answer(domain); ok && domain != "" {
		return peerAnswer(q, prefix, domain, &dns.SRV{
			Hdr:    dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeSRV, Class: dns.ClassINET, Ttl: ttl},
			Weight: 1, Port: target.Port(), Target: target.Addr().String() + ".",
		})
	}
	if r.forward == nil {
		return negative(q, dns.RcodeNameError, ".")
	}
	return r.forward.ask(ctx, q)
}

// cutUnderscored splits a name before the first label without an underscore.
func cutUnderscored(name string) (prefix, rest string) {
	rest = name
	for strings.HasPrefix(rest, "_") {
		_, rest, _ = strings.Cut(rest, ".")
	}
	return strings.TrimSuffix(strings.TrimSuffix(name, rest), "."), rest
}

// peerAnswer answers for a name of a peer's domain: the one record it has, or
// that there is no other. Nobody else is asked about such names, so that no
// record of the public DNS can lead past the gateway.
func peerAnswer(q *dns.Msg, prefix, domain string, srv *dns.SRV) *dns.Msg {
	zone := dns.Fqdn(domain)
	switch qtype := q.Question[0].Qtype; {
	case prefix == service && (qtype == dns.TypeSRV || qtype == dns.TypeANY):
		reply := authoritative(q)
		reply.Answer = []dns.RR{srv}
		return reply
	case prefix == "", prefix == "_tcp", prefix == service:
		return negative(q, dns.RcodeSuccess, zone) // the name is there, without that type
	}
	return negative(q, dns.RcodeNameError, zone)
}

// negative says that there is nothing, and for how long that may be believed
// (RFC 2308 §3).
func negative(q *dns.Msg, rcode int, zone string) *dns.Msg {
	reply := authoritative(q)
	reply.Rcode = rcode
	reply.Ns = []dns.RR{&dns.SOA{
		Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  "localhost.", Mbox: "nobody.localhost.", Serial: 1, Refresh: ttl, Retry: ttl, Expire: ttl, Minttl: negativeTTL,
	}}
	return reply
}

// authoritative begins a reply. Stub resolvers want to see recursion offered.
func authoritative(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(q)
	reply.Authoritative = true
	reply.RecursionAvailable = true
	return reply
}
