package xmpp

import (
	"context"
	"errors"
	"fmt"
	"time"

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
// stream to the peer that holds the domain to. Messages worth keeping go to the
// durable lanes, all else to lane.Eph; order is kept on each of them, and by
// farewell.go between a message and the "unavailable" behind it. It blocks while a
// lane is full, or while the local server does not take the errors for what could
// not be sent; it does not wait for the disk.
//
// What cannot be sent goes back to the local server as stanza errors; the error
// returned is for the stream, where an address is not of the stream's domains
// (RFC 6120 §4.9.3.7 and §4.9.3.9), or says that ctx is done. Then settled is not
// called: the batch was not dealt with to its end.
func (a *Adapter) Stanzas(ctx context.Context, from, to string, batch [][]byte, settled func()) error {
	out := a.outgoing(from, to, settled)
	var fault error
	for i, stanza := range batch {
		if fault = out.add(ctx, stanza, len(batch)-i); fault != nil {
			break
		}
	}
	if err := out.send(ctx); err != nil {
		return fmt.Errorf("stanzas from %s to %s: %w", from, to, err)
	}
	if fault == nil {
		out.account.release()
	}
	return fault
}

// Skipped implements s2s.Handler: the sender of a stanza of which nothing is left but
// its first tag gets it back. Errors are those of Stanzas.
func (a *Adapter) Skipped(ctx context.Context, from, to string, stanza *frame.Skipped, settled func()) error {
	out := a.outgoing(from, to, settled)
	top, err := out.check(stanza.Tag)
	if err != nil {
		return err
	}
	if err := a.answer(out.p, &top, stanza.Tag, out.owner, out.beyond(stanza), out.putter(ctx)); err != nil {
		return fmt.Errorf("stanza from %s to %s: %w", from, to, err)
	}
	out.account.release()
	return nil
}

// beyond says which limit a stanza is beyond: its size where that alone would do, for
// this is what a peer takes.
func (o *outgoing) beyond(s *frame.Skipped) error {
	if s.Size > o.a.cfg.Limits.Stanza {
		return o.tooLarge(s.Size)
	}
	return fmt.Errorf("%w: %s", errBeyond, s.Limit.Text)
}

func (o *outgoing) tooLarge(size int) error {
	return fmt.Errorf("%w: %d bytes, at most %d go to %s", errTooLarge, size, o.a.cfg.Limits.Stanza, o.to)
}

// roomMessageTTL is how long a message of a group chat waits at most. Who was away
// for longer reads the room's history.
const roomMessageTTL = 24 * time.Hour

func roomTTLOf(p *federation.Peer) time.Duration { return min(roomMessageTTL, ttlOf(p)) }

// outgoing is one batch of the local server on its way to a peer.
type outgoing struct {
	a          *Adapter
	p          *peer
	owner      *federation.Peer
	unroutable error // why there is no way to the peer now
	from, to   string
	account    *account
	now        time.Time // of the batch; zero until somebody asked

	conv            string // of the durable items
	eph, chat, room []lane.Item
	presence        []int // which of eph are presence
}

func (a *Adapter) outgoing(from, to string, settled func()) *outgoing {
	owner, unroutable := a.cfg.Directory.Now().Route(federation.XMPP, to)
	return &outgoing{
		a: a, p: a.peerOf(owner), owner: owner, unroutable: unroutable,
		from: from, to: to, account: newAccount(settled),
	}
}

// time is when the batch came.
func (o *outgoing) time() time.Time {
	if o.now.IsZero() {
		o.now = time.Now()
	}
	return o.now
}

// check reads the first tag of a stanza, checks it against the stream it came on and
// counts it. An error is for the stream.
func (o *outgoing) check(stanza []byte) (frame.Top, error) {
	top, err := frame.ParseTop(stanza)
	switch {
	case err != nil:
		return top, err
	case top.Kind == frame.Other:
		return top, refuseStream("unsupported-stanza-type", "neither message, presence nor iq")
	case len(top.From) == 0 || len(top.To) == 0:
		return top, refuseStream("improper-addressing", "a stanza without 'from' or 'to'")
	case !sameDomain(top.From, o.from):
		return top, refuseStream("invalid-from", "a stanza from another domain than the stream's, "+o.from)
	case !sameDomain(top.To, o.to):
		return top, refuseStream("improper-addressing", "a stanza to another domain than the stream's, "+o.to)
	}
	o.p.counters(o.owner).out[top.Kind].Inc()
	return top, nil
}

// add checks a stanza and sorts it by lane. left is how many of the batch there are
// with it. An error is for the stream.
func (o *outgoing) add(ctx context.Context, stanza []byte, left int) error {
	top, err := o.check(stanza)
	if err != nil {
		return err
	}
	if len(stanza) > o.a.cfg.Limits.Stanza {
		return o.a.answer(o.p, &top, stanza, o.owner, o.tooLarge(len(stanza)), o.putter(ctx))
	}
	switch laneOf(&top, stanza) {
	case lane.Chat:
		o.chat = o.keep(o.chat, stanza, time.Time{}, left)
	case lane.Room:
		o.room = o.keep(o.room, stanza, o.time().Add(roomTTLOf(o.owner)), left)
	default:
		o.pass(&top, stanza, left)
	}
	return nil
}

// pass adds an item for lane.Eph.
func (o *outgoing) pass(top *frame.Top, stanza []byte, left int) {
	it := lane.Item{Kind: federation.XMPP, Body: stanza}
	if top.Kind == frame.Presence {
		o.presence = append(o.presence, len(o.eph))
		if string(top.Type) == "unavailable" {
			o.saySaid()
			it.Conv = o.p.said.after(pair{o.from, o.to}, o.time())
		}
	}
	o.eph = appendItem(o.eph, it, left)
}

// keep adds an item for a durable lane. Its conversation is the stream, in which
// the local server orders everything, and in which the peer's will be given it.
//
// It has no ID by which the peer could drop repeats: that of a stanza is its
// client's, which may give the same one twice or none (RFC 6120 §8.1.3), and
// servers do not send again what was not acknowledged to them, but tell the sender.
func (o *outgoing) keep(items []lane.Item, stanza []byte, expires time.Time, left int) []lane.Item {
	if o.conv == "" {
		o.conv = convOf(o.from, o.to)
	}
	return appendItem(items, lane.Item{Kind: federation.XMPP, Conv: o.conv, Expires: expires, Body: stanza}, left)
}

// saySaid notes the durable messages of the batch so far.
func (o *outgoing) saySaid() {
	if n := len(o.chat); n > 0 {
		o.p.said.note(pair{o.from, o.to}, lane.Chat, o.chat[n-1].Body, o.time())
	}
	if n := len(o.room); n > 0 {
		o.p.said.note(pair{o.from, o.to}, lane.Room, o.room[n-1].Body, o.time())
	}
}

// appendItem makes room for all that may follow with the first item.
func appendItem(items []lane.Item, it lane.Item, left int) []lane.Item {
	if items == nil {
		items = make([]lane.Item, 0, left)
	}
	return append(items, it)
}

// convOf is Item.Conv for what is to go over the stream of a pair of domains.
func convOf(from, to string) string { return from + " " + to }

// send hands the batch to the lanes, or back if the peer cannot have it.
func (o *outgoing) send(ctx context.Context) error {
	o.saySaid()
	if err := o.put(ctx, lane.Chat, o.chat); err != nil {
		return err
	}
	if err := o.put(ctx, lane.Room, o.room); err != nil {
		return err
	}
	return o.sendEph(ctx)
}

// put hands items to a durable lane, also while the peer is down or paused. What
// cannot be stored goes back as soon as that is known. The errors for that wait in
// memory without a bound of their own: there are no more of them than stanzas that
// Put lets wait for the disk, because none is put while the queue is full.
func (o *outgoing) put(ctx context.Context, on lane.Name, items []lane.Item) error {
	if len(items) == 0 {
		return nil
	}
	if why := o.unkept(); why != nil {
		return o.back(ctx, items, why)
	}
	if err := o.p.toLocal.ready(ctx); err != nil {
		return err
	}
	a, p, account := o.a, o.p, o.account
	account.hold()
	err := a.outbox.Put(ctx, p.id, on, func(err error) {
		if err != nil {
			a.notStored(p, items, err, account)
		}
		account.release()
	}, items...)
	if err == nil {
		return nil
	}
	account.release()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return o.back(ctx, items, unstored(err))
}

// unkept says why a message may not wait for the peer, or nil.
func (o *outgoing) unkept() error {
	switch {
	case o.unroutable == nil:
		return nil
	case !later(o.owner, o.unroutable):
		return o.unroutable
	case !o.owner.Policy.Allow[federation.XMPP]:
		return federation.ErrNotAllowed
	}
	return nil
}

// notStored gives items back that the outbox could not keep after all. It does not
// block.
func (a *Adapter) notStored(p *peer, items []lane.Item, why error, account *account) {
	owner := p.current()
	for i := range items {
		_ = a.undelivered(p, items[i].Body, owner, unstored(why), func(r reply) error {
			account.hold()
			r.told = account.release
			p.toLocal.force(r)
			return nil
		})
	}
}

// unstored makes of an error of the outbox one that causeOutward knows.
func unstored(err error) error {
	if errors.Is(err, lane.ErrFull) || errors.Is(err, federation.ErrPeerNotActive) {
		return err
	}
	return fmt.Errorf("%w: %w", errNotStored, err)
}

// sendEph hands what passes to its lane in one go. A batch with presence takes its
// turn behind other presence to the same peer, so that what the table holds as
// newest is what the peer gets last.
func (o *outgoing) sendEph(ctx context.Context) error {
	if len(o.eph) == 0 {
		return nil
	}
	if len(o.presence) > 0 && (o.unroutable == nil || owed(o.owner, o.unroutable)) {
		o.p.order.Lock()
		defer o.p.order.Unlock()
		o.note()
	}
	if o.unroutable != nil {
		return o.back(ctx, o.eph, o.unroutable)
	}
	if err := o.a.lane.Send(ctx, o.p.id, lane.Eph, o.eph...); err != nil {
		return o.back(ctx, o.eph, err)
	}
	return nil
}

// note records the presence of the batch before it is sent.
func (o *outgoing) note() {
	for _, i := range o.presence {
		if top, err := frame.ParseTop(o.eph[i].Body); err == nil { // it parsed in add
			o.p.noteOut(readPresence(&top, o.eph[i].Body), o.eph[i].Body)
		}
	}
}

// back gives items back to their senders.
func (o *outgoing) back(ctx context.Context, items []lane.Item, why error) error {
	put := o.putter(ctx)
	for i := range items {
		if err := o.a.undelivered(o.p, items[i].Body, o.owner, why, put); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// putter queues replies to the local server and waits for room: the server that
// sends faster than it takes the errors is held up. The batch is settled when they
// have reached it.
func (o *outgoing) putter(ctx context.Context) func(reply) error {
	return func(r reply) error {
		o.account.hold()
		r.told = o.account.release
		return o.p.toLocal.put(ctx, r)
	}
}

// peerOf is the working state for a peer, or for nobody.
func (a *Adapter) peerOf(owner *federation.Peer) *peer {
	if owner == nil {
		return a.peer("")
	}
	return a.peer(owner.ID)
}
