package mqtt

import (
	"maps"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// rules are the policies of all peers at one moment, made quick to ask. They are not
// changed.
type rules struct {
	exports topic.Set[*export]
	peers   map[federation.GridID]*peerRules
	// own are topics that the adapter publishes here about peers, beside those that
	// begin with state: they do not cross.
	own   map[string]bool
	state string
}

// peerRules are those of one peer that is active and may use MQTT.
type peerRules struct {
	id      federation.GridID
	name    string
	policy  federation.MQTTPolicy
	limits  federation.Limits
	exports []*export
	imports topic.Set[*imported]
	order   []*imported
}

// export is one rule of what a peer gets.
type export struct {
	peer  *peerRules
	index int // the first rule of a peer that matches decides
	rule  topic.Rule
	federation.MQTTRule
}

// imported is one rule of what is taken of a peer.
type imported struct {
	index int
	rule  topic.Rule
	federation.MQTTRule
}

// newRules compiles the policies. A rule that makes no sense, which the configuration
// would have refused, lets nothing cross.
func newRules(now *federation.Snapshot, state string) *rules {
	r := &rules{peers: map[federation.GridID]*peerRules{}, own: map[string]bool{}, state: state}
	for _, p := range now.Peers() {
		if p.State != federation.StateActive && p.State != federation.StatePaused || !p.Policy.Allow[federation.MQTT] {
			continue
		}
		pr := &peerRules{id: p.ID, name: p.Name, policy: p.Policy.MQTT, limits: p.Policy.Limits}
		r.peers[p.ID] = pr
		for _, t := range p.Policy.MQTT.Availability {
			r.own[t.Topic] = true
		}
		for i, rule := range p.Policy.MQTT.Exports {
			compiled, err := topic.NewRule(rule.Filter, rule.As)
			if err != nil {
				continue
			}
			e := &export{peer: pr, index: i, rule: compiled, MQTTRule: rule}
			pr.exports = append(pr.exports, e)
			r.exports.Add(rule.Filter, e)
		}
		for i, rule := range p.Policy.MQTT.Imports {
			compiled, err := topic.NewRule(rule.Filter, rule.As)
			if err != nil {
				continue
			}
			m := &imported{index: i, rule: compiled, MQTTRule: rule}
			pr.order = append(pr.order, m)
			pr.imports.Add(rule.Filter, m)
		}
	}
	return r
}

// isOwn says whether a topic is one that the adapter publishes about peers.
func (r *rules) isOwn(name string) bool { return r.own[name] || strings.HasPrefix(name, r.state) }

// exportsOf returns the rule of each peer that gets a topic. What is below "grid/" is
// exported only by filters that say so.
func (r *rules) exportsOf(name string) []*export {
	if topic.Reserved(name) || r.isOwn(name) {
		return nil
	}
	matching := r.exports.Match(name, nil)
	if strings.HasPrefix(name, gridLevel) {
		matching = slices.DeleteFunc(matching, func(e *export) bool { return !strings.HasPrefix(e.Filter, gridLevel) })
	}
	first := matching[:0]
	for _, e := range matching {
		switch i := slices.IndexFunc(first, func(f *export) bool { return f.peer == e.peer }); {
		case i < 0:
			first = append(first, e)
		case e.index < first[i].index:
			first[i] = e
		}
	}
	return first
}

// importOf returns the rule by which a topic of the peer is taken, or nil.
func (p *peerRules) importOf(name string) *imported {
	var first *imported
	for _, m := range p.imports.Match(name, nil) {
		if first == nil || m.index < first.index {
			first = m
		}
	}
	return first
}

func (p *peerRules) sameExports(q *peerRules) bool {
	return slices.Equal(p.policy.Exports, q.policy.Exports)
}

func (p *peerRules) sameImports(q *peerRules) bool {
	return slices.Equal(p.policy.Imports, q.policy.Imports)
}

// subscriptions are what the session needs for all exports, no two of which overlap,
// and for the replies to requests of peers.
func (r *rules) subscriptions(share string) []session.Subscription {
	filters := map[string]bool{}
	replies, transit := false, false
	for _, p := range r.peers {
		for _, e := range p.exports {
			filters[e.Filter] = true
			transit = transit || e.Transit
		}
		replies = replies || len(p.order) > 0
	}
	if replies {
		filters[replyFilter] = true
	}
	var subs []session.Subscription
	for _, f := range topic.Disjoint(slices.Sorted(maps.Keys(filters))) {
		s := session.Subscription{Filter: f, QoS: 2, RetainAsPublished: true, RetainHandling: 2, NoLocal: !transit}
		if share != "" {
			// A shared subscription cannot have it (MQTT 5 §3.8.3.1); the path tells.
			s.Filter, s.NoLocal = "$share/"+share+"/"+f, false
		}
		subs = append(subs, s)
	}
	return subs
}

// retained are the filters of what peers may have retained.
func (r *rules) retained(of func(federation.GridID) bool) []string {
	filters := map[string]bool{}
	for id, p := range r.peers {
		for _, e := range p.exports {
			if e.Retain && of(id) {
				filters[e.Filter] = true
			}
		}
	}
	return topic.Disjoint(slices.Sorted(maps.Keys(filters)))
}
