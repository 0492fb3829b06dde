package mqtt

import (
	"crypto/sha256"
	"time"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// Replies. A message with a response topic R, of the peer bob, gets here the response
// topic "grid/bob/reply/R". What is published there goes to bob alone, and bob's
// gateway publishes it to R, if it let R out to this grid a short time ago: no export
// and import is needed, and none can be got around. Correlation data is not touched.

// replyFor is how long a reply may take.
const replyFor = 10 * time.Minute

// reply carries a message that was published here for a response topic of a peer.
func (a *Adapter) reply(petname, to string, m *session.Message, ack func(error)) {
	for _, r := range a.rules.Load().peers {
		if r.name != petname {
			continue
		}
		tr, user := traceOf(m)
		if rule := a.replyable(r, to, &tr); rule != "" {
			a.metrics.dropped.WithLabelValues(r.name, "out", rule).Inc()
			break
		}
		env := envelopeOf(m, user)
		env.Kind, env.Topic, env.QoS, env.Path = kindReply, to, m.QoS, append(tr.path, string(a.cfg.Self))
		if env.Response != "" {
			a.peer(r.id).asks(env.Response)
		}
		o := &outgoing{peer: a.peer(r.id), topic: to, durable: m.QoS > 0}
		if !a.pack(r, o, &env, m) {
			break
		}
		a.dispatch([]*outgoing{o}, ack)
		return
	}
	ack(nil)
}

func (a *Adapter) replyable(r *peerRules, to string, tr *trace) (rule string) {
	switch {
	case topic.Reserved(to):
		return "topic"
	case tr.has(a.cfg.Self), tr.has(r.id), len(tr.path) >= maxPath:
		return "loop"
	}
	return ""
}

// asks notes that a peer is told of a response topic.
func (p *peer) asks(response string) { p.asked.put(askedKey(response), time.Now()) }

// askedKey is a response topic as it is remembered: some are long.
func askedKey(response string) [16]byte {
	sum := sha256.Sum256([]byte(response))
	return [16]byte(sum[:16])
}

// admitReply makes a reply of a peer a message for the one that asked.
func (a *Adapter) admitReply(r *peerRules, env *envelope, it *lane.Item) (_ *session.Message, rule string) {
	asked, ok := a.peer(r.id).asked.get(askedKey(env.Topic))
	if !ok || time.Since(asked) > replyFor {
		return nil, "not_asked"
	}
	m := env.message()
	m.Topic, m.QoS = env.Topic, env.QoS
	if rule := a.finish(r, env, it, m); rule != "" {
		return nil, rule
	}
	return m, ""
}
