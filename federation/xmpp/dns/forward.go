package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

const (
	maxForwards     = 64              // clients that wait for upstream at a time
	upstreamTimeout = 2 * time.Second // unless Config says otherwise
)

// forwarder asks the resolvers that the operator names.
type forwarder struct {
	upstream []netip.AddrPort
	timeout  time.Duration // for each upstream and way to it
	log      *slog.Logger
	slots    *semaphore.Weighted
	// asked makes one question of those that are the same. It also breaks a
	// loop: a question that comes back waits for itself, and so once only.
	asked singleflight.Group
}

func newForwarder(cfg Config) *forwarder {
	return &forwarder{
		upstream: cfg.Upstream, timeout: cmp.Or(cfg.UpstreamTimeout, upstreamTimeout), log: cfg.Log,
		slots: semaphore.NewWeighted(maxForwards),
	}
}

// ask forwards a question and returns the reply, SERVFAIL if there is none.
func (f *forwarder) ask(ctx context.Context, q *dns.Msg) *dns.Msg {
	failed := new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	if !f.slots.TryAcquire(1) {
		return failed
	}
	defer f.slots.Release(1)
	question := q.Question[0]
	do := q.IsEdns0() != nil && q.IsEdns0().Do()
	key := fmt.Sprintf("%s %d %t %t", strings.ToLower(question.Name), question.Qtype, do, q.CheckingDisabled)
	reply, err, _ := f.asked.Do(key, func() (any, error) {
		out := new(dns.Msg).SetQuestion(question.Name, question.Qtype)
		out.CheckingDisabled = q.CheckingDisabled
		out.SetEdns0(maxUDP, do)
		return f.exchange(ctx, out)
	})
	if err != nil {
		return failed
	}
	return adopt(reply.(*dns.Msg), q)
}

// adopt makes of an upstream's reply the reply to q.
func adopt(from, q *dns.Msg) *dns.Msg {
	reply := from.Copy() // one reply may serve many
	reply.Id = q.Id
	reply.Question = q.Question // in the letters that the client chose
	reply.RecursionDesired = q.RecursionDesired
	reply.Authoritative = false
	reply.Compress = true
	extra := reply.Extra[:0]
	for _, rr := range reply.Extra {
		if _, opt := rr.(*dns.OPT); !opt { // it was between upstream and us
			extra = append(extra, rr)
		}
	}
	reply.Extra = extra
	return reply
}

// exchange asks one upstream after the other.
func (f *forwarder) exchange(ctx context.Context, q *dns.Msg) (*dns.Msg, error) {
	for _, upstream := range f.upstream {
		reply, err := f.exchangeWith(ctx, q, upstream.String())
		if err == nil {
			return reply, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		f.log.Warn("upstream resolver failed", "upstream", upstream, "err", err)
	}
	return nil, errors.New("no upstream resolver answered")
}

// exchangeWith asks by UDP, and by TCP if the answer does not fit.
func (f *forwarder) exchangeWith(ctx context.Context, q *dns.Msg, upstream string) (*dns.Msg, error) {
	reply, err := f.exchangeBy(ctx, "udp", q, upstream)
	if err == nil && reply.Truncated {
		reply, err = f.exchangeBy(ctx, "tcp", q, upstream)
	}
	if err != nil {
		return nil, err
	}
	if len(reply.Question) != 1 || !strings.EqualFold(reply.Question[0].Name, q.Question[0].Name) || reply.Question[0].Qtype != q.Question[0].Qtype {
		return nil, errors.New("the reply is to another question")
	}
	return reply, nil
}

func (f *forwarder) exchangeBy(ctx context.Context, network string, q *dns.Msg, upstream string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	c := dns.Client{Net: network, Timeout: f.timeout}
	conn, err := c.DialContext(ctx, upstream)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// The client knows deadlines only, and a shutdown is none.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	reply, _, err := c.ExchangeWithConnContext(ctx, q, conn)
	return reply, err
}
