package federation

import (
	"strings"
	"testing"
)

// The steps that protocols share speak of the protocol that asks.
func TestExplanation(t *testing.T) {
	allowed := Policy{Allow: map[Protocol]bool{Matrix: true}}
	peers := []*Peer{
		{ID: "b", Name: "bob", State: StateActive, Policy: allowed},
		{ID: "c", Name: "carol", State: StatePaused, Policy: allowed},
		{ID: "d", Name: "dave", State: StateActive, Policy: Policy{Allow: map[Protocol]bool{XMPP: true}}},
		{ID: "e", Name: "erin", State: StatePending, Policy: allowed},
	}
	now := NewSnapshot(peers, []Claim{
		{Matrix, "b.grid", "b", ClaimActive},
		{Matrix, "c.grid", "c", ClaimActive},
		{Matrix, "d.grid", "d", ClaimActive},
		{Matrix, "e.grid", "e", ClaimActive},
		{Matrix, "two.grid:8448", "d", ClaimConflict},
		{Matrix, "new.grid", "e", ClaimPending},
		{XMPP, "chat.grid", "b", ClaimActive},
	}, nil)
	for name, c := range map[string]struct{ steps, problem, remedy string }{
		"b.grid":        {"owner bob, state active, policy matrix allowed, link up", "", ""},
		"c.grid":        {"owner carol, state paused", "nothing crosses to a peer that is paused; carol is away", "yggate peer resume carol"},
		"d.grid":        {"owner dave, state active, policy matrix not allowed", "does not allow this protocol", "allow matrix for dave in the configuration"},
		"e.grid":        {"owner erin, state pending", "nothing crosses to a peer that is pending", "yggate peer approve erin"},
		"two.grid:8448": {"owner dave", "the claim on two.grid:8448 is conflict", "yggate domain assign two.grid:8448 PEER --protocol matrix"},
		"new.grid":      {"owner erin", "the claim on new.grid is pending", "yggate peer approve erin"},
		"chat.grid":     {"owner ", "no approved grid holds chat.grid", "--expect-domain chat.grid"},
		"no.grid:8448":  {"owner ", "no approved grid holds no.grid:8448", "--expect-domain no.grid"},
	} {
		e := Explanation{Protocol: Matrix, Now: now, Away: func(p *Peer) string { return p.Name + " is away" }}
		peer := e.Peer(name)
		if peer != nil {
			e.Link(peer, true, "")
		}
		if ok := c.problem == ""; ok != (peer != nil) {
			t.Errorf("%s: peer %v", name, peer)
		}
		var steps []string
		for _, h := range e.Hops {
			steps = append(steps, string(h.Step)+" "+h.Value)
		}
		if got := strings.Join(steps, ", "); got != c.steps {
			t.Errorf("%s: %s, want %s", name, got, c.steps)
		}
		last := e.Hops[len(e.Hops)-1]
		if last.OK != (c.problem == "") || !strings.HasSuffix(last.Problem, c.problem) || !strings.HasSuffix(last.Remedy, c.remedy) {
			t.Errorf("%s: ends with %+v, want %q and %q", name, last, c.problem, c.remedy)
		}
	}
	e := Explanation{Protocol: Matrix, Now: now, Away: func(p *Peer) string { return p.Name + " is away" }}
	if e.Link(peers[0], false, "dialing") || e.Hops[0].Value != "dialing" || e.Hops[0].Problem != "there is no live link to bob; bob is away" {
		t.Errorf("a link that is down: %+v", e.Hops)
	}
}
