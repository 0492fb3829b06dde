package xmpp

import (
	"context"
	"time"

	"github.com/yggate/yggate/federation"
)

// Presence is state that servers remember and nobody repeats. A server tells a
// contact once that a user is there, and takes for granted that the word arrived
// (RFC 6121 §4.2); a room keeps an occupant until it hears that it left
// (XEP-0045 §7.14). Whoever stands between the servers must therefore make good
// what is lost there, or contact lists lie and rooms keep ghosts. The rules:
//
// 1. Each gateway answers for what it told its own server. When a peer has been
// down for Config.Grace, its users are ended towards the local server: every
// presence of theirs that crossed is followed by "unavailable", towards contacts
// and local rooms; a local user in a remote room gets the room's occupants and
// itself removed with status 333 (XEP-0045 §9.1.2), so that the client shows it
// and can enter anew. The peer's gateway does the same on its side of the cut,
// and neither needs to know what the other did. What the local server does not
// take of that is kept, and told when it is back or after askPause.
//
// 2. What the peer misses is owed to it. Presence of local users that changes
// while the peer cannot be reached, or may not have it, is kept, the newest of each
// pair, and sent when it is back: the peer's gateway may have restarted or not have noticed the
// cut, and nobody else can tell it. Where rule 1 told a local user that it is no
// longer in a remote room, or an attempt to enter failed, "unavailable" for that
// room is owed, so that it keeps no ghost; entering anew settles the debt.
//
// 3. Who ended presence asks for it. When the peer is back, a probe goes out from
// each local user to each contact there whose presence it is entitled to, and the
// contact's server answers with the present truth (RFC 6121 §4.3.2). One probe
// per pair of bare addresses is enough, because the answer covers all resources:
// what it does not confirm within answerWait is ended.
// That the user is entitled is known from what crossed before: presence from the
// contact to the user's bare address, which servers send to subscribers only, or
// a probe of the user's own server, which it sends at login for each contact with
// "to" or "both". No other pair is probed: to a probe that is not entitled,
// servers answer "unsubscribed", and that could undo a request still open.
//
// The probes of one side repair the view of that side. Both sides probe, so after
// a cut that both have seen, both are right. Probes are also due
//   - when the peer comes back in another epoch, however fast: its gateway has
//     restarted, and has lost what it owed us by rule 2;
//   - when a probe was lost: the user logged in while the peer was down;
//   - when the operator lets a domain speak again whose presence was ended;
//   - when the local server did not take presence of the peer's users.
//
// A gateway that has restarted also does not know any more whom it answers for by
// rule 1. So that it learns, its peers let their servers repeat the presence that
// reached its users, by probes to the local server in the name of those users.
// They are entitled, for that presence is in the table. Two things cannot be learned
// that way, and stay as they are until that user's next presence, a message that
// fails, or the next cut: who is in which room, and, where both gateways have died
// one after the other, who may see someone that was not there.
//
// After a blip shorter than Grace in one epoch there is nothing to ask: each
// gateway still has what it owes, and pays.
//
// 4. When the local server dies, its sessions and rooms are gone with it, and it
// will never say so. LocalLost ends them towards the peers: "unavailable" for each
// presence of its users and, from its rooms, for each occupant. If the
// server lives after all, probes in the name of the remote contacts, put to it at
// once and again when it is back, bring back what is true (only those contacts that
// its users' presence has reached are named, so they are entitled). It need not have
// died: it may have been cut off, with its users there all the while. One that did
// die has nothing to say to them; its users send presence again when they log in.
// Who was in which room cannot be asked for, and stays outside.
type upkeep struct {
	in, out  *table
	interest *interest // local users and remote contacts, for probes
	unheard  *interest // remote users and local contacts, whom the local server is to be asked for when it is back

	up     bool
	ended  bool      // rule 1 was applied since the peer was last up
	downAt time.Time // start of the grace; zero while up
	epoch  uint64
	remind bool      // the local server is to repeat its presence to the peer
	payAt  time.Time // when to send what is owed
	sayAt  time.Time // when to tell the local server what it did not take
	ask    bool      // probes are due
	askAt  time.Time // when to send them
	// sweepAt is when to end what no answer has confirmed; zero for never.
	sweepAt time.Time
	// revoked are the domains whose presence was ended because the operator said so.
	revoked map[string]struct{}
}

const (
	// payPause is how long upkeep waits when the lane does not take what is
	// owed although the link is up: the lane is opening its stream again.
	payPause = time.Second
	// askPause is how long it waits before it asks again for what the local
	// server did not take, or tells it again. It is not known when that is back;
	// until then it is lost again.
	askPause = 30 * time.Second
	// answerWait is how long the answers to probes may take. One that comes
	// later than that still tells the truth.
	answerWait = 10 * time.Second
)

func newUpkeep(limit int) upkeep {
	return upkeep{in: newTable(limit), out: newTable(limit), interest: newInterest(limit / 4), unheard: newInterest(limit / 4), revoked: map[string]struct{}{}}
}

// PeerUp says that the link to a peer is up, and the epoch of the peer's gateway.
// Lanes must be ready before. It does not block.
func (a *Adapter) PeerUp(id federation.GridID, epoch uint64) {
	p := a.peer(id)
	p.mu.Lock()
	k := &p.keep
	if k.epoch != 0 && k.epoch != epoch {
		k.ask, k.remind = true, true
	}
	k.up, k.ended, k.epoch = true, false, epoch
	k.downAt, k.payAt, k.askAt = time.Time{}, time.Now(), time.Now()
	p.mu.Unlock()
	signal(p.wake)
}

// PeerDown says that the link to a peer went down. It does not block.
func (a *Adapter) PeerDown(id federation.GridID) {
	p := a.peer(id)
	p.mu.Lock()
	p.keep.down()
	p.mu.Unlock()
	signal(p.wake)
}

func (k *upkeep) down() {
	if k.up || k.downAt.IsZero() {
		k.up, k.ended, k.downAt = false, false, time.Now()
	}
}

// LocalLost implements s2s.Handler: the local server of a domain died, or cannot be
// reached. The domain is normalised. It does not block.
func (a *Adapter) LocalLost(domain string) {
	lost := map[string]bool{}
	for _, d := range a.domainsWith(domain) {
		lost[d] = true
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, p := range a.peers {
		p.localLost(lost)
	}
}

// noteOut records presence of a local user on its way to the peer.
func (p *peer) noteOut(pr presence, stanza []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	switch {
	case pr.kind == probe:
		k.interest.add(pair{bareOf(pr.from), bareOf(pr.to)})
	case pr.kind == unsubscribe:
		k.interest.remove(pair{bareOf(pr.from), bareOf(pr.to)})
	}
	if !k.out.note(&pr, stanza) {
		p.a.metrics.untracked.WithLabelValues(p.label(p.current()), "out").Inc()
	}
	k.in.follow(&pr)
}

// oweOut takes back presence of a local user that the peer did not get.
func (p *peer) oweOut(pr presence, stanza []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	if pr.kind == probe {
		k.ask = true
	} else if !k.out.owe(&pr, stanza) {
		p.a.metrics.untracked.WithLabelValues(p.label(p.current()), "out").Inc()
	}
	if !k.up {
		return // PeerUp sees to it
	}
	if !time.Now().Before(k.payAt) {
		k.payAt, k.askAt = time.Now().Add(payPause), time.Now().Add(payPause)
	}
	signal(p.wake) // also where it is not time yet: nothing may have been owed before
}

// oweIn keeps the end of presence of a user of the peer that the local server did not
// take: no answer to a probe would bring it.
func (p *peer) oweIn(pr presence, stanza []byte) {
	if pr.kind != unavailable {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	if !k.in.owe(&pr, stanza) {
		p.a.metrics.untracked.WithLabelValues(p.label(p.current()), "in").Inc()
	}
	if k.in.owing > 0 && !k.sayAt.After(time.Now()) {
		k.sayAt = time.Now().Add(askPause)
		signal(p.wake)
	}
}

// missedIn says that presence from the peer did not reach the local server.
func (p *peer) missedIn(pr presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	if pr.kind == probe {
		k.unheard.add(pair{bareOf(pr.from), bareOf(pr.to)})
	}
	if k.ask && k.askAt.After(time.Now()) {
		return // it will be asked for
	}
	k.ask, k.askAt = true, time.Now().Add(askPause)
	signal(p.wake)
}

// noteIn records presence from the peer that went to the local server.
func (p *peer) noteIn(pr presence, stanza []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	switch {
	case pr.kind == available && !pr.occupant && bareOf(pr.to) == pr.to:
		k.interest.add(pair{pr.to, bareOf(pr.from)})
	case pr.kind == unsubscribed:
		k.interest.remove(pair{bareOf(pr.to), bareOf(pr.from)})
	}
	if !k.in.note(&pr, stanza) {
		p.a.metrics.untracked.WithLabelValues(p.label(p.current()), "in").Inc()
	}
	k.out.follow(&pr)
	if !k.up && (k.ended || k.downAt.IsZero()) {
		// The peer sends before its link counts as up, or had sent before it
		// went down. It gets another grace, and then rule 1 again.
		k.ended, k.downAt = false, time.Now()
		signal(p.wake)
	}
}

// follow takes from what a room tells an occupant about itself, in the other
// direction, whether it is in the room.
func (t *table) follow(pr *presence) {
	switch {
	case !pr.self || pr.renamed:
	case pr.kind == available:
		t.enter(pr.to, pr.from)
	case pr.kind == unavailable:
		t.leave(pr.to, bareOf(pr.from))
	}
}

// upkeep does what is due until ctx is done, then returns nil.
func (p *peer) upkeep(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
		if wait := p.step(ctx); wait >= 0 {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// never is how long step and due say there is nothing to do until it is woken.
const never = time.Duration(-1)

// step does what is due now and returns how long nothing will be.
func (p *peer) step(ctx context.Context) time.Duration {
	now := time.Now()
	p.sayAgain(ctx, now)
	p.mu.Lock()
	k := &p.keep
	if !k.up {
		wait := never
		var endings [][]byte
		if !k.ended && !k.downAt.IsZero() {
			if wait = k.downAt.Add(p.a.cfg.Grace).Sub(now); wait <= 0 {
				wait, endings = never, k.endPeer()
			}
		}
		if k.in.owing > 0 {
			if d := max(k.sayAt.Sub(now), 0); wait == never || d < wait {
				wait = d
			}
		}
		p.ending.add(len(endings))
		p.mu.Unlock()
		p.tellLocal(ctx, endings, "the peer is down")
		return wait
	}
	var endings [][]byte
	if !k.sweepAt.IsZero() && !now.Before(k.sweepAt) {
		endings = k.sweep()
		p.ending.add(len(endings))
	}
	var reminders []reply
	if k.remind {
		k.remind = false
		reminders = k.reminders(func(string) bool { return true })
	}
	p.mu.Unlock()
	p.tellLocal(ctx, endings, "the contact is gone")
	for _, r := range reminders {
		if p.toLocal.put(ctx, r) != nil {
			return never // shutting down
		}
	}
	may := p.mayHave() // else revoke wakes us when it may
	if may {
		p.pay(ctx, now)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return k.next(time.Now(), may)
}

// mayHave says whether the operator lets the peer have anything now.
func (p *peer) mayHave() bool {
	owner := p.current()
	return owner != nil && owner.State == federation.StateActive && owner.Policy.Allow[federation.XMPP]
}

// owes says whether something is to be sent to the peer now.
func (k *upkeep) owes(now time.Time) bool {
	return (k.out.owing > 0 && !k.payAt.After(now)) || (k.ask && !k.askAt.After(now))
}

// next returns how long it is until the first thing is due while the peer is up.
// may says whether it may have what is owed.
func (k *upkeep) next(now time.Time, may bool) time.Duration {
	wait := never
	consider := func(due bool, at time.Time) {
		if d := max(at.Sub(now), 0); due && (wait == never || d < wait) {
			wait = d
		}
	}
	consider(may && k.out.owing > 0, k.payAt)
	consider(may && k.ask, k.askAt)
	consider(!k.sweepAt.IsZero(), k.sweepAt)
	consider(k.in.owing > 0, k.sayAt)
	return wait
}
