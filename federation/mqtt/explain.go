package mqtt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// The steps of MQTT. There is no owner of a topic: it goes to each peer that it is
// exported to, and a step is given for each.
const (
	// StepTopic is whether the address is a topic that may cross at all.
	StepTopic federation.Step = "topic"
	// StepExport is the rule by which a peer gets it.
	StepExport federation.Step = "export"
)

// Prefix is how a topic is written where it could be an address of another protocol.
const Prefix = "mqtt:"

// Explain says what would happen to a message that is published here to a topic,
// without sending one.
func (a *Adapter) Explain(name string) []federation.Hop {
	name = strings.TrimPrefix(name, Prefix)
	e := &federation.Explanation{Protocol: federation.MQTT, Now: a.cfg.Directory.Now(), Away: away}
	h := federation.Hop{Step: StepTopic, Value: name}
	err := topic.CheckName(name)
	switch peer, r, reply := replyTopic(name); {
	case err != nil:
		h.Problem, h.Remedy = err.Error(), "give a topic as it is published, such as sensors/kitchen/temp"
	case topic.Reserved(name):
		h.Problem = "topics that begin with $ belong to the broker and never cross"
	case reply:
		h.Value = fmt.Sprintf("a reply to %s, which publishes it to %s if it asked for that within the last %s", peer, r, replyFor)
	}
	if !e.Add(h) {
		return e.Hops
	}
	if peer, _, ok := replyTopic(name); ok {
		a.explainReply(e, peer)
		return e.Hops
	}
	exports := newRules(e.Now, a.cfg.State).exportsOf(name)
	if len(exports) == 0 {
		a.explainNothing(e, name)
	}
	if filter, err := a.refusedFor(name); err != nil && len(exports) > 0 {
		e.Add(federation.Hop{
			Step: StepTopic, Value: filter, Problem: "the broker does not let the gateway read it: " + err.Error(),
			Remedy: "give the gateway's user the right to read " + filter + "; it is taken up by itself",
		})
		return e.Hops
	}
	slices.SortFunc(exports, func(x, y *export) int { return strings.Compare(x.peer.name, y.peer.name) })
	for _, x := range exports {
		a.explainExport(e, x, name)
	}
	return e.Hops
}

// refusedFor returns the subscription by which a topic would come, if the broker refuses
// it, and why.
func (a *Adapter) refusedFor(name string) (filter string, why error) {
	refused := a.refused.Load()
	if refused == nil {
		return "", nil
	}
	for filter, why = range *refused {
		plain := filter
		if a.cfg.Share != "" {
			plain = strings.TrimPrefix(filter, "$share/"+a.cfg.Share+"/")
		}
		if topic.Match(plain, name) {
			return filter, why
		}
	}
	return "", nil
}

func (a *Adapter) explainReply(e *federation.Explanation, petname string) {
	for _, p := range e.Now.Peers() {
		if p.Name == petname && p.State == federation.StateActive {
			a.explainLink(e, p)
			return
		}
	}
	e.Add(federation.Hop{Step: federation.StepOwner, Problem: "there is no active peer " + petname, Remedy: "yggate peer list"})
}

// explainNothing says why a topic goes to nobody.
func (a *Adapter) explainNothing(e *federation.Explanation, name string) {
	h := federation.Hop{
		Step: StepExport, Problem: "no peer gets this topic: it is in no export",
		Remedy: "add one under mqtt of the peer in the configuration, such as export: [{filter: \"" + name + "\"}]",
	}
	for _, p := range e.Now.Peers() {
		for _, x := range p.Policy.MQTT.Exports {
			if !topic.Match(x.Filter, name) {
				continue
			}
			h.Value, h.Grid = p.Name, p.ID
			switch {
			case p.State != federation.StateActive && p.State != federation.StatePaused:
				h.Problem, h.Remedy = "nothing crosses to "+p.Name+", which is "+string(p.State), "yggate peer approve "+p.Name
			case !p.Policy.Allow[federation.MQTT]:
				h.Problem, h.Remedy = "the policy of "+p.Name+" does not allow mqtt", "allow mqtt for "+p.Name+" in the configuration"
			case newRules(e.Now, a.cfg.State).isOwn(name):
				h.Problem, h.Remedy = "the gateway itself publishes this topic (availability): it tells about peers, and does not cross", ""
			case strings.HasPrefix(name, gridLevel):
				h.Problem = "what is below grid/ came from other grids, and is exported only by a filter that begins with grid/"
			}
		}
	}
	e.Add(h)
}

func (a *Adapter) explainExport(e *federation.Explanation, x *export, name string) {
	h := federation.Hop{Step: StepExport, Grid: x.peer.id}
	as, ok := x.rule.Apply(name)
	if !ok {
		h.Problem = fmt.Sprintf("%s: by the rule %q it would become no topic", x.peer.name, x.Filter)
		h.Remedy = "change \"as\" of that export"
	}
	retain := "retained if it is here"
	if !x.Retain {
		retain = "never retained"
	}
	h.Value = fmt.Sprintf("%s gets it as %s, by the rule %q, at QoS %d at most, %s, if it imports that", x.peer.name, as, x.Filter, x.QoS, retain)
	if !e.Add(h) {
		return
	}
	p := e.Now.Peer(x.peer.id)
	if p.State == federation.StatePaused {
		e.Add(federation.Hop{
			Step: federation.StepState, Value: string(p.State), Grid: p.ID,
			Problem: "nothing crosses to a peer that is paused; " + away(p), Remedy: "yggate peer resume " + p.Name,
		})
		return
	}
	a.explainLink(e, p)
}

func (a *Adapter) explainLink(e *federation.Explanation, p *federation.Peer) {
	if a.cfg.Link == nil {
		return
	}
	if up, detail := a.cfg.Link(p.ID); e.Link(p, up, detail) {
		e.Add(federation.Hop{Step: federation.StepDeliver, Value: "gateway of " + p.Name, Grid: p.ID})
	}
}

// away says what becomes of messages for a peer that cannot be reached.
func away(*federation.Peer) string {
	return "QoS 1 and 2, and what is retained, wait on disk; the rest is not kept"
}
