package federation

import (
	"cmp"
	"errors"
	"strings"
)

// Step names what a Hop is about.
type Step string

// The steps of the way to a peer, in order. A protocol may leave some out and add
// its own.
const (
	StepSender  Step = "sender"  // the domain of the sender is this grid's
	StepDomain  Step = "domain"  // the address has a domain or a server name
	StepOwner   Step = "owner"   // a grid holds it
	StepState   Step = "state"   // the operator's decision about that grid
	StepPolicy  Step = "policy"  // what that grid may do
	StepLink    Step = "link"    // whether it can be reached now
	StepDeliver Step = "deliver" // where the traffic then goes
)

// Hop is one thing that is decided about traffic on its way.
type Hop struct {
	Step Step `json:"step"`
	OK   bool `json:"ok"`
	// Value is what was found: a domain, a peer's name, a state.
	Value string `json:"value,omitempty"`
	// Grid is the id of the grid concerned, where there is one.
	Grid GridID `json:"grid,omitempty"`
	// Problem says what is wrong, and Remedy what to do. Both empty when OK.
	Problem string `json:"problem,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// Explanation collects the hops of one address. It has the steps that protocols
// share; the first that is not OK is the last one that a protocol adds.
type Explanation struct {
	Protocol Protocol
	Now      *Snapshot
	// Away says what becomes of traffic for a peer that cannot be reached now.
	Away func(*Peer) string
	// Hops are what was found so far.
	Hops []Hop
}

// Add appends a hop, which is OK if it has no Problem, and says whether it is.
func (e *Explanation) Add(h Hop) bool {
	h.OK = h.Problem == ""
	e.Hops = append(e.Hops, h)
	return h.OK
}

// Peer adds who holds a normalised name that is not this grid's own, what the
// operator decided about that peer, and whether it is allowed the protocol. It
// returns nil where the way ends.
func (e *Explanation) Peer(name string) *Peer {
	peer, err := e.Now.Route(e.Protocol, name)
	if !e.owner(name, peer) || !e.state(peer) || !e.policy(peer, err) {
		return nil
	}
	return peer
}

// Link adds whether the link to a peer is up; detail is that in words, if not
// empty.
func (e *Explanation) Link(peer *Peer, up bool, detail string) bool {
	h := Hop{Step: StepLink, Value: cmp.Or(detail, "up"), Grid: peer.ID}
	if !up {
		h.Problem = "there is no live link to " + peer.Name + "; " + e.Away(peer)
		h.Remedy = "yggate status shows what was tried; the link comes back by itself when the peer can be reached"
	}
	return e.Add(h)
}

func (e *Explanation) owner(name string, peer *Peer) bool {
	if peer != nil {
		return e.Add(Hop{Step: StepOwner, Value: peer.Name, Grid: peer.ID})
	}
	host, _, _ := strings.Cut(name, ":") // what is expected of a peer has no port
	h := Hop{
		Step: StepOwner, Problem: "no approved grid holds " + name,
		Remedy: "pair with the grid that has it: yggate invite --name NAME --expect-domain " + host,
	}
	for _, c := range e.Now.Claims() {
		if c.Protocol != e.Protocol || c.Domain != name {
			continue
		}
		h.Grid = c.Grid
		h.Problem = "the claim on " + name + " is " + string(c.Status)
		h.Remedy = "decide with: yggate domain assign " + name + " PEER"
		if c.Protocol != XMPP {
			h.Remedy += " --protocol " + string(c.Protocol)
		}
		if p := e.Now.Peer(c.Grid); p != nil {
			h.Value = p.Name
			if p.State == StatePending { // it is decided about as a whole first
				h.Remedy = "yggate peer approve " + p.Name
			}
		}
	}
	return e.Add(h)
}

func (e *Explanation) state(peer *Peer) bool {
	h := Hop{Step: StepState, Value: string(peer.State), Grid: peer.ID}
	if peer.State != StateActive {
		h.Problem = "nothing crosses to a peer that is " + string(peer.State)
		if peer.State == StatePaused && peer.Policy.Allow[e.Protocol] {
			h.Problem += "; " + e.Away(peer)
		}
		verb := map[State]string{StatePaused: "resume "}[peer.State]
		h.Remedy = "yggate peer " + cmp.Or(verb, "approve ") + peer.Name
	}
	return e.Add(h)
}

func (e *Explanation) policy(peer *Peer, route error) bool {
	proto := string(e.Protocol)
	h := Hop{Step: StepPolicy, Value: proto + " allowed", Grid: peer.ID}
	if errors.Is(route, ErrNotAllowed) {
		h.Value, h.Problem = proto+" not allowed", route.Error()
		h.Remedy = "allow " + proto + " for " + peer.Name + " in the configuration"
	}
	return e.Add(h)
}
