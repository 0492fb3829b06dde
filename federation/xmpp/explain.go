package xmpp

import (
	"fmt"
	"time"

	"github.com/yggate/yggate/federation"
)

// Explain says what would happen to a stanza between two addresses or domains,
// without sending one. It stops at the first hop that is not OK. An empty from
// leaves the sender out.
func (a *Adapter) Explain(from, to string) []federation.Hop {
	e := explanation{
		Explanation: federation.Explanation{Protocol: federation.XMPP, Now: a.cfg.Directory.Now(), Away: waiting},
		a:           a,
	}
	if from == "" || e.sender(from) {
		e.addressee(to)
	}
	return e.Hops
}

type explanation struct {
	federation.Explanation
	a *Adapter
}

func (e *explanation) sender(from string) bool {
	h := federation.Hop{Step: federation.StepSender}
	name, err := normalDomain([]byte(from))
	switch {
	case err != nil:
		h.Problem, h.Remedy = err.Error(), "give an address such as alice@a.grid"
	case !e.Now.Own(federation.XMPP, name):
		h.Value, h.Problem = name, "this grid has no such XMPP domain"
		h.Remedy = "add it to the XMPP domains in the configuration, if it is yours"
	default:
		h.Value = name
	}
	return e.Add(h)
}

func (e *explanation) addressee(to string) {
	h := federation.Hop{Step: federation.StepDomain}
	var err error
	if h.Value, err = normalDomain([]byte(to)); err != nil {
		h.Problem, h.Remedy = err.Error(), "give an address such as bob@b.grid"
	}
	if !e.Add(h) {
		return
	}
	if e.Now.Own(federation.XMPP, h.Value) {
		e.Add(federation.Hop{Step: federation.StepDeliver, Value: "own server"})
		return
	}
	peer := e.Peer(h.Value)
	if peer == nil || !e.link(peer) {
		return
	}
	e.Add(federation.Hop{Step: federation.StepDeliver, Value: "gateway of " + peer.Name, Grid: peer.ID})
}

func (e *explanation) link(peer *federation.Peer) bool {
	if e.a.cfg.Link == nil {
		return true
	}
	up, detail := e.a.cfg.Link(peer.ID)
	return e.Link(peer, up, detail)
}

// waiting says what becomes of stanzas for a peer that cannot be reached.
func waiting(peer *federation.Peer) string {
	return "messages wait for it, for " + inWords(ttlOf(peer)) + " at most (group chats " + inWords(roomTTLOf(peer)) + "); all else fails at once"
}

// inWords writes a time in days or hours where it is a number of them.
func inWords(d time.Duration) string {
	switch {
	case d >= 48*time.Hour && d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	case d >= 2*time.Hour && d%time.Hour == 0:
		return fmt.Sprintf("%d hours", d/time.Hour)
	}
	return d.String()
}

// Answer says whether the DNS responder sends servers that look for a domain to
// this gateway: whether a peer holds it. What the operator has decided about the
// peer and whether it can be reached do not matter: from the gateway users get an
// error that says what is wrong, from DNS only that a server was not found.
func (a *Adapter) Answer(name string) bool {
	name, err := federation.NormalizeDomain(name)
	return err == nil && a.cfg.Directory.Now().Owner(federation.XMPP, name) != nil
}
