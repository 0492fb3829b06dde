package xmpp

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/yggate/yggate/federation"
)

// Step names what a Hop is about.
type Step string

// The steps of a stanza's way, in order.
const (
	StepSender  Step = "sender"  // the domain of the sender is this grid's
	StepDomain  Step = "domain"  // the address has a domain
	StepOwner   Step = "owner"   // a grid holds the domain
	StepState   Step = "state"   // the operator's decision about that grid
	StepPolicy  Step = "policy"  // what that grid may do
	StepLink    Step = "link"    // whether it can be reached now
	StepDeliver Step = "deliver" // where the stanza then goes
)

// Hop is one thing that is decided about a stanza on its way.
type Hop struct {
	Step Step `json:"step"`
	OK   bool `json:"ok"`
	// Value is what was found: a domain, a peer's name, a state.
	Value string `json:"value,omitempty"`
	// Grid is the id of the grid concerned, where there is one.
	Grid federation.GridID `json:"grid,omitempty"`
	// Problem says what is wrong, and Remedy what to do. Both empty when OK.
	Problem string `json:"problem,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// Explain says what would happen to a stanza between two addresses or domains,
// without sending one. It stops at the first hop that is not OK. An empty from
// leaves the sender out.
func (a *Adapter) Explain(from, to string) []Hop {
	e := explanation{a: a, now: a.cfg.Directory.Now()}
	if from != "" && !e.sender(from) {
		return e.hops
	}
	e.addressee(to)
	return e.hops
}

type explanation struct {
	a    *Adapter
	now  *federation.Snapshot
	hops []Hop
}

func (e *explanation) add(h Hop) bool {
	h.OK = h.Problem == ""
	e.hops = append(e.hops, h)
	return h.OK
}

func (e *explanation) sender(from string) bool {
	h := Hop{Step: StepSender}
	name, err := normalDomain([]byte(from))
	switch {
	case err != nil:
		h.Problem, h.Remedy = err.Error(), "give an address such as alice@a.grid"
	case !e.now.Own(federation.XMPP, name):
		h.Value, h.Problem = name, "this grid has no such XMPP domain"
		h.Remedy = "add it to the XMPP domains in the configuration, if it is yours"
	default:
		h.Value = name
	}
	return e.add(h)
}

func (e *explanation) addressee(to string) {
	h := Hop{Step: StepDomain}
	var err error
	if h.Value, err = normalDomain([]byte(to)); err != nil {
		h.Problem, h.Remedy = err.Error(), "give an address such as bob@b.grid"
	}
	if !e.add(h) {
		return
	}
	if e.now.Own(federation.XMPP, h.Value) {
		e.add(Hop{Step: StepDeliver, Value: "own server"})
		return
	}
	peer, err := e.now.Route(federation.XMPP, h.Value)
	if !e.owner(h.Value, peer) || !e.state(peer) || !e.policy(peer, err) || !e.link(peer) {
		return
	}
	e.add(Hop{Step: StepDeliver, Value: "gateway of " + peer.Name, Grid: peer.ID})
}

func (e *explanation) owner(name string, peer *federation.Peer) bool {
	if peer != nil {
		return e.add(Hop{Step: StepOwner, Value: peer.Name, Grid: peer.ID})
	}
	h := Hop{
		Step: StepOwner, Problem: "no approved grid holds " + name,
		Remedy: "pair with the grid that has it: yggate invite --name NAME --expect-domain " + name,
	}
	for _, c := range e.now.Claims() {
		if c.Protocol != federation.XMPP || c.Domain != name {
			continue
		}
		h.Grid = c.Grid
		h.Problem = "the claim on " + name + " is " + string(c.Status)
		h.Remedy = "decide with: yggate domain assign " + name + " PEER"
		if p := e.now.Peer(c.Grid); p != nil {
			h.Value = p.Name
		}
	}
	return e.add(h)
}

func (e *explanation) state(peer *federation.Peer) bool {
	h := Hop{Step: StepState, Value: string(peer.State), Grid: peer.ID}
	if peer.State != federation.StateActive {
		h.Problem = "nothing crosses to a peer that is " + string(peer.State)
		if peer.State == federation.StatePaused && peer.Policy.Allow[federation.XMPP] {
			h.Problem += "; " + waiting(peer)
		}
		verb := map[federation.State]string{federation.StatePaused: "resume "}[peer.State]
		h.Remedy = "yggate peer " + cmp.Or(verb, "approve ") + peer.Name
	}
	return e.add(h)
}

func (e *explanation) policy(peer *federation.Peer, route error) bool {
	h := Hop{Step: StepPolicy, Value: "xmpp allowed", Grid: peer.ID}
	if errors.Is(route, federation.ErrNotAllowed) {
		h.Value, h.Problem = "xmpp not allowed", route.Error()
		h.Remedy = "allow xmpp for " + peer.Name + " in the configuration"
	}
	return e.add(h)
}

func (e *explanation) link(peer *federation.Peer) bool {
	if e.a.cfg.Link == nil {
		return true
	}
	up, detail := e.a.cfg.Link(peer.ID)
	h := Hop{Step: StepLink, Value: "up", Grid: peer.ID}
	if detail != "" {
		h.Value = detail
	}
	if !up {
		h.Problem = "there is no live link to " + peer.Name + "; " + waiting(peer)
		h.Remedy = "yggate status shows what was tried; the link comes back by itself when the peer can be reached"
	}
	return e.add(h)
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
