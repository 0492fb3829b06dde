package xmpp

import (
	"context"
	"errors"
	"log/slog"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Rules that a stanza from a peer can break, as metrics and the log name them.
const (
	ruleFraming  = "framing"       // not one stanza within the limits
	ruleAddress  = "address"       // no usable from or to
	ruleSender   = "sender_domain" // from-domain is not an active claim of the peer
	ruleRelay    = "relay"         // to-domain is not this grid's
	ruleInactive = "inactive"      // the peer or the protocol is not allowed now
)

// Deliver implements lane.Handler: it checks a stanza from a peer that passes and
// queues it for the local server. It is refused with a condition of RFC 6120 §8.3.3.
func (a *Adapter) Deliver(ctx context.Context, from *federation.Peer, it lane.Item) error {
	now := a.cfg.Directory.Now()
	p := a.peerOf(from)
	in, rule, no := a.admit(now, from, it.Body)
	if no != nil {
		p.refused(from, rule, in, no)
		return no
	}
	p.counters(from).in[in.top.Kind].Inc()
	if in.top.Kind == frame.Presence {
		if it.Conv != "" {
			p.handed.await(ctx, pair{in.sender, in.addressee}, marksAfter(it.Conv))
		}
		p.ending.wait(ctx)
	}
	if err := a.local.Send(ctx, in.sender, in.addressee, it.Body); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.log(from).Debug("the local server does not take stanzas", "domain", in.addressee, "err", err)
		if in.top.Kind == frame.Presence {
			p.missedIn(readPresence(&in.top, it.Body))
		}
		c := causeLocal(in.addressee)
		a.metrics.bounced.WithLabelValues(p.label(from), "in", c.condition).Inc()
		return &lane.Refusal{Code: c.condition, Text: c.text}
	}
	if in.top.Kind == frame.Presence {
		p.noteIn(readPresence(&in.top, it.Body), it.Body)
		if a.cfg.Directory.Now() != now {
			signal(a.late) // not by ourselves: the link may end before all is said
		}
	}
	return nil
}

// incoming is a stanza from a peer that may pass.
type incoming struct {
	top       frame.Top
	sender    string // domains, normalised
	addressee string
}

// admit decides whether a stanza from a peer may pass to the local server. It
// trusts nothing that the peer's gateway should have done.
func (a *Adapter) admit(now *federation.Snapshot, from *federation.Peer, stanza []byte) (in incoming, rule string, no *lane.Refusal) {
	if err := frame.Check(stanza, a.cfg.Limits); err != nil {
		return in, ruleFraming, refuseFraming(err)
	}
	var err error
	if in.top, err = frame.ParseTop(stanza); err != nil {
		return in, ruleFraming, refuseFraming(err)
	}
	if in.top.Kind == frame.Other {
		return in, ruleFraming, &lane.Refusal{Code: "bad-request", Text: "neither message, presence nor iq"}
	}
	sender, addressee := a.domainOfAddress(now, in.top.From), a.domainOfAddress(now, in.top.To)
	in.sender, in.addressee = sender.name, addressee.name
	switch {
	case sender.name == "" || addressee.name == "":
		return in, ruleAddress, &lane.Refusal{Code: "jid-malformed", Text: "'from' or 'to' is missing or no XMPP address"}
	case sender.owner == nil || sender.owner.ID != from.ID:
		return in, ruleSender, &lane.Refusal{Code: "forbidden", Text: "the sender's domain is not one that your grid holds here"}
	case sender.owner.State != federation.StateActive || !sender.owner.Policy.Allow[federation.XMPP]:
		return in, ruleInactive, &lane.Refusal{Code: "forbidden", Text: "this grid does not take XMPP from yours now"}
	case !addressee.own:
		return in, ruleRelay, &lane.Refusal{Code: "not-allowed", Text: "the addressee's domain is not of this grid, which does not relay"}
	}
	return in, "", nil
}

func refuseFraming(err error) *lane.Refusal {
	var e *frame.Error
	if errors.As(err, &e) && e.Condition == frame.PolicyViolation {
		return &lane.Refusal{Code: "policy-violation", Text: e.Text}
	}
	return &lane.Refusal{Code: "bad-request", Text: err.Error()}
}

// refused counts a refusal and logs it, at a bounded rate: a peer decides how
// often it is refused.
func (p *peer) refused(from *federation.Peer, rule string, in incoming, no *lane.Refusal) {
	p.a.metrics.refused.WithLabelValues(p.label(from), rule).Inc()
	if !p.audit.Allow() {
		p.unlogged.Add(1)
		return
	}
	domain := in.sender
	if rule == ruleRelay {
		domain = in.addressee
	}
	attrs := []any{"dir", "in", "domain", domain, "rule", rule, "code", no.Code}
	if n := p.unlogged.Swap(0); n > 0 {
		attrs = append(attrs, slog.Int64("unlogged", n))
	}
	p.log(from).Warn("stanza refused", attrs...)
}
