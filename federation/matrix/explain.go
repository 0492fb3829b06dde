package matrix

import (
	"strings"

	"github.com/yggate/yggate/federation"
)

// The steps that Matrix adds to those that protocols share.
const (
	// StepServer is whether the operator lets the server name take part.
	StepServer federation.Step = "server"
	// StepRoom is whether the operator lets the room cross.
	StepRoom federation.Step = "room"
)

// Explain says what would happen to a request of one server for another, each given
// as a server name or as the id of a user, a room or an alias on it, without sending
// one. It stops at the first hop that is not OK. An empty from leaves the sender
// out. An id of room version 12 and later names no server and so leads nowhere.
func (a *Adapter) Explain(from, to string) []federation.Hop {
	e := &federation.Explanation{Protocol: federation.Matrix, Now: a.cfg.Directory.Now(), Away: away}
	if from != "" && !a.explainSender(e, from) {
		return e.Hops
	}
	name, err := serverOf(to)
	h := federation.Hop{Step: federation.StepDomain, Value: name}
	if err != "" {
		h.Problem, h.Remedy = err, "give a server name, or an id such as @bob:b.grid, #room:b.grid or !id:b.grid"
	}
	if !e.Add(h) {
		return e.Hops
	}
	if e.Now.Own(federation.Matrix, name) {
		e.Add(federation.Hop{Step: federation.StepDeliver, Value: "own homeserver"})
		return e.Hops
	}
	if e.Now.Owner(federation.Matrix, name) == nil && a.cfg.UpstreamProxy != nil && !claimed(e.Now, name) {
		e.Add(federation.Hop{Step: federation.StepDeliver, Value: "upstream proxy " + a.cfg.UpstreamProxy.Host + ", because no peer holds " + name})
		return e.Hops
	}
	a.explainPeer(e, name, to)
	return e.Hops
}

func (a *Adapter) explainSender(e *federation.Explanation, from string) bool {
	name, err := serverOf(from)
	h := federation.Hop{Step: federation.StepSender, Value: name}
	switch {
	case err != "":
		h.Problem, h.Remedy = err, "give a server name or an id such as @alice:a.grid"
	case !e.Now.Own(federation.Matrix, name):
		h.Problem = "this grid has no such Matrix server"
		h.Remedy = "add it to matrix.server_names in the configuration, if it is yours"
	}
	return e.Add(h)
}

func (a *Adapter) explainPeer(e *federation.Explanation, name, to string) {
	peer := e.Peer(name)
	if peer == nil {
		return
	}
	h := federation.Hop{Step: StepServer, Value: name + " takes part", Grid: peer.ID}
	if !peer.Policy.Matrix.AllowsServer(name) {
		h.Value, h.Problem = name, "the configuration does not let "+name+" take part"
		h.Remedy = "change servers or deny_servers under matrix of the peer " + peer.Name
	}
	if !e.Add(h) {
		return
	}
	if strings.HasPrefix(to, "!") {
		h := federation.Hop{Step: StepRoom, Value: to, Grid: peer.ID}
		if !peer.Policy.Matrix.AllowsRoom(to) {
			h.Problem = "the configuration does not let this room cross"
			h.Remedy = "take it out of deny_rooms under matrix of the peer " + peer.Name
		}
		if !e.Add(h) {
			return
		}
	}
	if a.cfg.Link != nil {
		up, detail := a.cfg.Link(peer.ID)
		if !e.Link(peer, up, detail) {
			return
		}
	}
	how := "live"
	if peer.Policy.Matrix.Custody {
		how = "transactions by way of the disk here (custody), all else live"
	}
	e.Add(federation.Hop{Step: federation.StepDeliver, Value: "gateway of " + peer.Name + ", " + how, Grid: peer.ID})
}

// away says what becomes of requests for a peer that cannot be reached.
func away(peer *federation.Peer) string {
	if peer.Policy.Matrix.Custody {
		return "transactions wait for it here (custody); all else fails at once"
	}
	return "requests fail at once, and the homeserver sends again what must arrive"
}

// claimed says whether anybody claims a name, with whatever success. Such a name
// goes to no upstream proxy by Explain's word, though it would by CONNECT's: the
// operator who asks wants to know of the claim.
func claimed(now *federation.Snapshot, name string) bool {
	for _, c := range now.Claims() {
		if c.Protocol == federation.Matrix && c.Domain == name {
			return true
		}
	}
	return false
}

// serverOf returns the normalised server name of an id or a server name
// (appendices, "Identifier Grammar"), or says what is wrong.
func serverOf(s string) (name, problem string) {
	server := s
	if s != "" && strings.ContainsRune("@#!", rune(s[0])) {
		_, after, ok := strings.Cut(s, ":")
		if !ok {
			return s, "the id names no server"
		}
		server = after
	}
	name, err := federation.NormalizeClaim(federation.Matrix, server)
	if err != nil {
		return server, err.Error()
	}
	return name, ""
}
