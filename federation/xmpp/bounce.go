package xmpp

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Returned implements lane.Handler: what a peer did not take goes back to the
// local server. It does not block.
func (a *Adapter) Returned(owner *federation.Peer, it lane.Item, why error) {
	p := a.peerOf(owner)
	_ = a.undelivered(p, it.Body, owner, why, func(r reply) error {
		if !p.toLocal.offer(r) {
			p.lost("bounce to the local server: too many wait", 1)
		}
		return nil
	})
}

// undelivered deals with a stanza of the local server that did not reach the
// peer: presence is owed while the peer is only out of reach, and the sender of
// what can be answered gets an error by way of put, whose error is returned.
func (a *Adapter) undelivered(p *peer, stanza []byte, owner *federation.Peer, why error, put func(reply) error) error {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		return nil // it was parsed before it was sent
	}
	if top.Kind == frame.Presence && owed(owner, why) {
		p.oweOut(readPresence(&top, stanza), stanza)
	}
	return a.bounce(p, &top, stanza, owner, why, put)
}

// later says whether a peer that did not get a stanza may yet ask for what it
// missed.
func later(owner *federation.Peer, why error) bool {
	return errors.Is(why, federation.ErrPeerDown) ||
		errors.Is(why, federation.ErrPeerNotActive) && owner != nil && owner.State == federation.StatePaused
}

// owed says whether presence that a peer did not get is kept for it: also while it
// may not have it, which the operator may think better of with the link up.
func owed(owner *federation.Peer, why error) bool {
	return later(owner, why) || errors.Is(why, federation.ErrNotAllowed) && owner != nil
}

// bounce tells the sender of an outward stanza why it was not delivered, if it is
// of a kind that may be answered.
func (a *Adapter) bounce(p *peer, top *frame.Top, stanza []byte, owner *federation.Peer, why error, put func(reply) error) error {
	if !worthAnswer(top, stanza) {
		return nil
	}
	return a.answer(p, top, stanza, owner, why, put)
}

// answer does the same whatever the stanza is worth: where it is itself to blame, only
// its sender can mend it, and would else not learn why nobody sees it. Of the stanza
// the first tag is enough.
func (a *Adapter) answer(p *peer, top *frame.Top, stanza []byte, owner *federation.Peer, why error, put func(reply) error) error {
	from, err := normalDomain(top.From)
	if err != nil {
		return nil // no domain of ours: it passed sameDomain on its way out
	}
	to, err := normalDomain(top.To)
	if err != nil {
		return nil
	}
	c := causeOutward(to, owner, why)
	answer, ok := frame.ErrorReply(stanza, c.condition, c.kind, c.text, "")
	if !ok {
		return nil
	}
	if err := put(reply{from: to, to: from, stanza: answer}); err != nil {
		return err
	}
	a.metrics.bounced.WithLabelValues(p.label(owner), "out", c.condition).Inc()
	return nil
}

// Failed implements s2s.Handler: what the local server could not be given goes
// back to the peer. It does not block.
func (a *Adapter) Failed(from, to string, stanzas [][]byte, err error) {
	owner := a.cfg.Directory.Now().Owner(federation.XMPP, from)
	if owner == nil {
		return // the claim is gone, and with it the way back
	}
	p := a.peerOf(owner)
	c := causeLocal(to)
	p.log(owner).Debug("the local server did not take stanzas", "domain", to, "count", len(stanzas), "err", err)
	for _, stanza := range stanzas {
		top, err := frame.ParseTop(stanza)
		if err != nil {
			continue
		}
		if top.Kind == frame.Presence {
			pr := readPresence(&top, stanza)
			p.oweIn(pr, stanza)
			p.missedIn(pr)
		}
		if !worthAnswer(&top, stanza) {
			continue
		}
		answer, ok := frame.ErrorReply(stanza, c.condition, c.kind, c.text, "")
		if !ok {
			continue
		}
		a.metrics.bounced.WithLabelValues(p.label(owner), "in", c.condition).Inc()
		if !p.toPeer.offer(reply{from: to, to: from, stanza: answer}) {
			p.lost("bounce to the peer: too many wait", 1)
		}
	}
}

// worthAnswer says whether somebody waits for an answer to a stanza, beyond what
// frame.ErrorReply knows must not be answered (RFC 6120 §8.3.1). Of presence that
// is a room that is being entered, and a subscription asked for; for the rest an
// error would only be noise in a contact list, and what it tells comes with
// "unavailable".
//
// Of messages it is all but chat states: nobody was promised that "is typing"
// arrives.
func worthAnswer(top *frame.Top, stanza []byte) bool {
	if top.Kind == frame.Message {
		return worthOf(top, stanza) != worthNothing
	}
	if top.Kind != frame.Presence || string(top.Type) == "subscribe" {
		return true
	}
	return string(top.Type) == "" && readPresence(top, stanza).join
}

const (
	// localPause is how long a local server that cannot be reached is left alone,
	// unless it comes back before.
	localPause = time.Second
	// tellFor is how long the gateway tries to give the local server an error that
	// a sender counts on.
	tellFor = 30 * time.Second
)

// sendLocal hands replies to the local server: one batch of a stream. Those that
// somebody counts on are handed over for sure, or tried for tellFor.
func (p *peer) sendLocal(ctx context.Context, batch []reply) {
	a := p.a
	counts := slices.ContainsFunc(batch, func(r reply) bool { return r.told != nil })
	from, to, stanzas := batch[0].from, batch[0].to, stanzasOf(batch)
	var err error
	if !counts {
		if err = a.local.Send(ctx, from, to, stanzas...); err == nil {
			return
		}
	}
	for until := time.Now().Add(tellFor); counts && len(stanzas) > 0; {
		var n int
		n, err = a.local.Hand(ctx, from, to, stanzas...)
		stanzas = stanzas[n:]
		if err != nil && (!time.Now().Before(until) || !a.back.wait(ctx, to, localPause)) {
			break
		}
	}
	if ctx.Err() != nil {
		return // what is not told now is not settled either
	}
	for _, r := range batch {
		if r.told != nil {
			r.told()
		}
	}
	if len(stanzas) > 0 {
		p.sayLater(stanzas)
		a.metrics.lost.Add(float64(len(stanzas)))
		a.log.Debug("the local server did not take replies", "domain", to, "count", len(stanzas), "err", err)
	}
}
