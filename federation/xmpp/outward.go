package xmpp

import (
	"context"
	"fmt"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Open implements s2s.Handler. A stream is for a domain of this grid and one that
// a peer holds. That the peer may not be reached, or is paused, does not matter
// here: a stream error would only make the server say that the far server timed
// out, whereas the stanza errors of Stanzas tell the user why.
func (a *Adapter) Open(from, to string) error {
	now := a.cfg.Directory.Now()
	if !now.Own(federation.XMPP, from) {
		return refuseStream("not-authorized", fmt.Sprintf("%s is no XMPP domain of this grid; add it to xmpp.domains", from))
	}
	if now.Owner(federation.XMPP, to) == nil {
		return fmt.Errorf("open stream to %s: %w", to, federation.ErrUnknownDomain)
	}
	return nil
}

// Stanzas implements s2s.Handler: it sends what the local server said on one
// stream to the peer that holds the domain to. It blocks while the lane is full.
// What cannot be sent goes back to the local server as stanza errors; the error
// returned is for the stream, where an address is not of the stream's domains
// (RFC 6120 §4.9.3.7 and §4.9.3.9).
func (a *Adapter) Stanzas(ctx context.Context, from, to string, batch [][]byte, settled func()) error {
	defer settled()
	owner, unroutable := a.cfg.Directory.Now().Route(federation.XMPP, to)
	p := a.peerOf(owner)
	out := outgoing{a: a, p: p, from: from, to: to, owner: owner, items: make([]lane.Item, 0, len(batch))}
	var fault error
	for _, stanza := range batch {
		if fault = out.add(ctx, stanza); fault != nil {
			break
		}
	}
	if err := out.send(ctx, unroutable); err != nil {
		return fmt.Errorf("stanzas from %s to %s: %w", from, to, err)
	}
	return fault
}

// outgoing is one batch of the local server on its way to a peer.
type outgoing struct {
	a        *Adapter
	p        *peer
	owner    *federation.Peer
	from, to string
	items    []lane.Item
	presence []int // which of items are presence
}

// add checks a stanza against the stream it came on. An error is for the stream.
func (o *outgoing) add(ctx context.Context, stanza []byte) error {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		return err
	}
	switch {
	case top.Kind == frame.Other:
		return refuseStream("unsupported-stanza-type", "neither message, presence nor iq")
	case len(top.From) == 0 || len(top.To) == 0:
		return refuseStream("improper-addressing", "a stanza without 'from' or 'to'")
	case !sameDomain(top.From, o.from):
		return refuseStream("invalid-from", "a stanza from another domain than the stream's, "+o.from)
	case !sameDomain(top.To, o.to):
		return refuseStream("improper-addressing", "a stanza to another domain than the stream's, "+o.to)
	}
	o.p.counters(o.owner).out[top.Kind].Inc()
	if limit := o.a.cfg.Limits.Stanza; len(stanza) > limit {
		err := fmt.Errorf("%w: %d bytes, at most %d go to %s", errTooLarge, len(stanza), limit, o.to)
		return o.a.bounce(o.p, &top, stanza, o.owner, err, o.putter(ctx))
	}
	if top.Kind == frame.Presence {
		o.presence = append(o.presence, len(o.items))
	}
	o.items = append(o.items, lane.Item{Kind: federation.XMPP, Body: stanza})
	return nil
}

// send hands the batch to the lane in one go, or back if the peer cannot have it.
// A batch with presence takes its turn behind other presence to the same peer, so
// that what the table holds as newest is what the peer gets last.
func (o *outgoing) send(ctx context.Context, unroutable error) error {
	if len(o.items) == 0 {
		return nil
	}
	if len(o.presence) > 0 && (unroutable == nil || later(o.owner, unroutable)) {
		o.p.order.Lock()
		defer o.p.order.Unlock()
		o.note()
	}
	if unroutable != nil {
		return o.back(ctx, unroutable)
	}
	if err := o.a.lane.Send(ctx, o.p.id, lane.Eph, o.items...); err != nil {
		return o.back(ctx, err)
	}
	return nil
}

// note records the presence of the batch before it is sent.
func (o *outgoing) note() {
	for _, i := range o.presence {
		if top, err := frame.ParseTop(o.items[i].Body); err == nil { // it parsed in add
			o.p.noteOut(readPresence(&top, o.items[i].Body), o.items[i].Body)
		}
	}
}

// back gives the whole batch back to its senders.
func (o *outgoing) back(ctx context.Context, why error) error {
	put := o.putter(ctx)
	for i := range o.items {
		if err := o.a.undelivered(o.p, o.items[i].Body, o.owner, why, put); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// putter queues replies to the local server and waits for room: the server that
// sends faster than it takes the errors is held up.
func (o *outgoing) putter(ctx context.Context) func(reply) error {
	return func(r reply) error { return o.p.toLocal.put(ctx, r) }
}

// peerOf is the working state for a peer, or for nobody.
func (a *Adapter) peerOf(owner *federation.Peer) *peer {
	if owner == nil {
		return a.peer("")
	}
	return a.peer(owner.ID)
}
