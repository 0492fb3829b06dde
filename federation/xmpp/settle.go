package xmpp

import (
	"context"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// endPeer applies rule 1 of upkeep: it returns what the local server must hear,
// and owes the peer what follows from it.
func (k *upkeep) endPeer() [][]byte {
	k.ended, k.ask = true, true
	endings := k.in.endAll(func(*group) bool { return true })
	for _, g := range k.out.groups {
		switch g.kind {
		case joined:
			k.out.oweEnds(g)
		case occupant:
			k.out.keepEnds(g)
		}
	}
	return endings
}

// endAll forgets the groups that end and returns the presence that ends them.
func (t *table) endAll(ends func(*group) bool) [][]byte {
	var out [][]byte
	for _, g := range t.groups {
		if ends(g) {
			out = append(out, g.endings()...)
			t.drop(g)
		}
	}
	return out
}

// oweEnds owes the end of all presence of a group, an occupant's own last.
func (t *table) oweEnds(g *group) {
	for _, last := range []bool{false, true} {
		for _, e := range g.entries {
			if e.self == last {
				t.oweEnd(e)
			}
		}
	}
}

// keepEnds forgets what a room owes an occupant whose gateway tells it that it is
// out, but for the word that it is: that gateway may not have noticed.
func (t *table) keepEnds(g *group) {
	for resource, e := range g.entries {
		if !e.gone || !e.self {
			t.remove(g, resource)
		}
	}
}

// enter remembers that a user is in a room, as the room says, unless something
// newer is known. A gateway that has restarted, or was told of an earlier stay's
// end after the user entered again, learns it that way.
func (t *table) enter(user, at string) {
	from, resource := split(user)
	if g := t.groups[pair{from, bareOf(at)}]; g != nil && g.kind == joined && g.entries[resource] != nil {
		return
	}
	if g := t.groups[pair{from, at}]; g != nil && g.entries[resource] != nil && g.entries[resource].gone {
		return // it has left, and that is owed
	}
	t.add(&presence{from: user, to: at, kind: available, join: true}, from, resource)
}

// oweLeave owes a room that a user who was told to be out of it is.
func (t *table) oweLeave(user, room string) {
	from, resource := split(user)
	if g := t.groups[pair{from, room}]; g != nil && g.kind == joined && g.entries[resource] != nil {
		t.oweEnd(g.entries[resource])
	}
}

// leave forgets that a user is in a room.
func (t *table) leave(user, room string) {
	from, resource := split(user)
	if g := t.groups[pair{from, room}]; g != nil && g.kind == joined {
		t.remove(g, resource)
	}
}

// endings counts what the local server has yet to be told of presence that has ended.
// New presence of the same users must not overtake it, or would be undone by it.
type endings struct {
	mu   sync.Mutex
	left int
	none chan struct{} // closed when left is 0 again; nil while it is
}

func (e *endings) add(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left == 0 && n > 0 {
		e.none = make(chan struct{})
	}
	e.left += n
}

func (e *endings) done() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left--; e.left == 0 {
		close(e.none)
		e.none = nil
	}
}

// endingsWait is how long new presence waits for a local server that is slow to be told.
const endingsWait = 10 * time.Second

// wait returns when nothing is left, or it is no use to wait any longer.
func (e *endings) wait(ctx context.Context) {
	e.mu.Lock()
	none := e.none
	e.mu.Unlock()
	if none == nil {
		return
	}
	timer := time.NewTimer(endingsWait)
	defer timer.Stop()
	select {
	case <-none:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// tellLocal sends endings to the local server. They were added to p.ending with the mu
// under which they left the table.
func (p *peer) tellLocal(ctx context.Context, endings [][]byte, why string) {
	if len(endings) == 0 {
		return
	}
	owner := p.current()
	p.a.metrics.ended.WithLabelValues(p.label(owner)).Add(float64(len(endings)))
	p.log(owner).Info("presence ended", "why", why, "count", len(endings))
	p.queueEndings(ctx, endings)
}

// sayAgain tells the local server of the endings that it did not take, when it is time.
func (p *peer) sayAgain(ctx context.Context, now time.Time) {
	p.mu.Lock()
	k := &p.keep
	if k.in.owing == 0 || k.sayAt.After(now) {
		p.mu.Unlock()
		return
	}
	var endings [][]byte
	for _, d := range k.in.owed() {
		endings = append(endings, d.stanza)
		k.in.paid(d) // what is not taken now is owed anew
	}
	p.ending.add(len(endings))
	p.mu.Unlock()
	p.queueEndings(ctx, endings)
}

func (p *peer) queueEndings(ctx context.Context, endings [][]byte) {
	for _, stanza := range endings {
		r, ok := replyWith(stanza)
		if !ok {
			p.ending.done()
			continue
		}
		r.gone = p.ending.done
		if p.toLocal.put(ctx, r) != nil {
			return // shutting down: the streams go, too
		}
	}
}

// replyWith finds the stream that a stanza belongs on. An address that no longer
// has a domain passed the policy once, but is of no use.
func replyWith(stanza []byte) (reply, bool) {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		return reply{}, false
	}
	from, err := normalDomain(top.From)
	if err != nil {
		return reply{}, false
	}
	to, err := normalDomain(top.To)
	return reply{from: from, to: to, stanza: stanza}, err == nil
}

// pay sends the peer what is owed to it and the probes that are due. What the lane
// does not take is put off.
func (p *peer) pay(ctx context.Context, now time.Time) {
	p.order.Lock()
	defer p.order.Unlock()
	k := &p.keep
	p.mu.Lock()
	if !k.owes(now) {
		p.mu.Unlock()
		return
	}
	debts := k.out.owed()
	var probes [][]byte
	if k.ask && !k.askAt.After(now) {
		probes = k.interest.probes(p.speaksFor)
		k.ask = false
		k.asked(now) // before an answer can come
	}
	p.mu.Unlock()
	owed := len(debts)
	for len(debts) > 0 {
		chunk := debts[:min(len(debts), sendBatch)]
		if !p.sendDebts(ctx, chunk) {
			p.putOff(probes != nil)
			return
		}
		debts = debts[len(chunk):]
	}
	for rest := probes; len(rest) > 0; {
		chunk := rest[:min(len(rest), sendBatch)]
		if p.a.lane.Send(ctx, p.id, lane.Eph, itemsOf(chunk)...) != nil {
			p.putOff(true)
			return
		}
		rest = rest[len(chunk):]
	}
	if owed+len(probes) > 0 {
		p.log(p.current()).Info("presence brought up to date", "owed", owed, "probes", len(probes))
	}
}

// speaksFor says whether what is for a JID may go to this peer now.
func (p *peer) speaksFor(jid string) bool {
	owner, err := p.routeOf(jid)
	return err == nil && owner.ID == p.id
}

// routeOf returns the peer that holds the domain of a JID, if any, and why nothing
// may go there now.
func (p *peer) routeOf(jid string) (*federation.Peer, error) {
	d, err := normalDomain([]byte(jid))
	if err != nil {
		return nil, err
	}
	return p.a.cfg.Directory.Now().Route(federation.XMPP, d)
}

// sendDebts sends some of what is owed and settles it. An item that comes back
// before that is a newer debt, which paid leaves alone.
func (p *peer) sendDebts(ctx context.Context, debts []debt) bool {
	items := make([]lane.Item, 0, len(debts))
	for _, d := range debts {
		owner, err := p.routeOf(d.group.to)
		switch {
		case owner == nil || owner.ID != p.id: // the domain was taken away, and the debt with it
		case err != nil: // the peer may not have it now
			return false
		default:
			items = append(items, lane.Item{Kind: federation.XMPP, Body: d.stanza})
		}
	}
	if len(items) > 0 && p.a.lane.Send(ctx, p.id, lane.Eph, items...) != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range debts {
		p.keep.out.paid(d)
	}
	return true
}

// putOff waits a moment with what the lane did not take.
func (p *peer) putOff(ask bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	k.payAt = time.Now().Add(payPause)
	if ask {
		k.ask, k.askAt, k.sweepAt = true, k.payAt, time.Time{}
	}
}

// asked marks the presence of the contacts that were asked for, so that what the
// answers do not confirm can be ended.
func (k *upkeep) asked(now time.Time) {
	for pr := range k.interest.pairs {
		if g := k.in.groups[pair{pr.to, pr.from}]; g != nil && g.kind == contact {
			for _, e := range g.entries {
				e.old = true
			}
		}
	}
	k.sweepAt = now.Add(answerWait)
}

// sweep ends the presence that the answers have not confirmed.
func (k *upkeep) sweep() [][]byte {
	k.sweepAt = time.Time{}
	var out [][]byte
	for _, g := range k.in.groups {
		for resource, e := range g.entries {
			if e.old {
				out = append(out, g.unavailable(resource, e))
				k.in.remove(g, resource)
			}
		}
	}
	return out
}

// reminders ask the local server, in the name of contacts at the peer, for the
// presence of the local users that it has shown them.
func (k *upkeep) reminders(whose func(user string) bool) []reply {
	var out []reply
	for _, g := range k.out.groups {
		if g.kind != contact || bareOf(g.to) != g.to || !whose(g.from) {
			continue
		}
		if r, ok := replyWith(probeFor(g.to, g.from)); ok {
			out = append(out, r)
		}
	}
	return out
}

// localLost applies rule 4 of upkeep for the own domains that are lost.
func (p *peer) localLost(lost map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	is := func(jid string) bool {
		d, err := normalDomain([]byte(jid))
		return err == nil && lost[d]
	}
	for _, r := range k.reminders(is) {
		if top, err := frame.ParseTop(r.stanza); err == nil { // replyWith parsed it
			k.unheard.add(pair{string(top.From), string(top.To)})
		}
		_ = p.toLocal.offer(r) // for one that lives; it is asked again when it is back
	}
	for _, g := range k.out.groups {
		if is(g.from) {
			k.out.oweEnds(g)
		}
	}
	for _, g := range k.in.groups {
		// Contacts stay: the server will ask for them when their users log in.
		if g.kind != contact && is(g.to) {
			k.in.drop(g)
		}
	}
	signal(p.wake)
}

// revoke ends the presence of domains that the peer no longer holds here, or may
// no longer speak for, without a grace: the operator has said so. It is asked for
// when the operator has thought again, with the link up all the while or not.
func (p *peer) revoke(ctx context.Context) {
	p.mu.Lock()
	k := &p.keep
	endings := k.in.endAll(func(g *group) bool {
		ends := !p.speaksFor(g.from)
		if d, err := normalDomain([]byte(g.from)); ends && err == nil {
			k.revoked[d] = struct{}{}
		}
		if ends && g.kind == occupant {
			k.out.oweLeave(g.to, g.from)
		}
		return ends
	})
	p.ending.add(len(endings))
	for d := range k.revoked {
		if p.speaksFor(d) {
			delete(k.revoked, d)
			k.ask = true
		}
	}
	signal(p.wake) // what was kept while the peer might not have it may be due
	p.mu.Unlock()
	p.tellLocal(ctx, endings, "the domain may no longer speak here")
}

// interest is the pairs of a local user and a remote contact whose presence the
// user is entitled to.
type interest struct {
	limit, bytes int
	pairs        map[pair]struct{}
}

func newInterest(limit int) *interest {
	return &interest{limit: limit, pairs: map[pair]struct{}{}}
}

// pairBytes are charged for a pair beside its text.
const pairBytes = 64

// add remembers a pair; when there is no room another one is forgotten, which
// then is not asked about after a cut.
func (i *interest) add(p pair) {
	cost := pairBytes + len(p.from) + len(p.to)
	if _, ok := i.pairs[p]; ok || cost > i.limit {
		return
	}
	for old := range i.pairs {
		if i.bytes+cost <= i.limit {
			break
		}
		i.remove(old)
	}
	i.pairs[p] = struct{}{}
	i.bytes += cost
}

func (i *interest) remove(p pair) {
	if _, ok := i.pairs[p]; ok {
		delete(i.pairs, p)
		i.bytes -= pairBytes + len(p.from) + len(p.to)
	}
}

// probes asks for the contacts that may be asked for now.
func (i *interest) probes(may func(contact string) bool) [][]byte {
	out := make([][]byte, 0, len(i.pairs))
	for p := range i.pairs {
		if may(p.to) {
			out = append(out, probeFor(p.from, p.to))
		}
	}
	return out
}
