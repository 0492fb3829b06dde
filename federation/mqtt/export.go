package mqtt

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// Arrive implements session.Handler: it gives a message of the broker's to each peer
// that is to have it. It is acknowledged when it waits on disk for all of them.
func (a *Adapter) Arrive(_ context.Context, m *session.Message, ack func(error)) {
	if peer, r, ok := replyTopic(m.Topic); ok {
		a.reply(peer, r, m, ack)
		return
	}
	if m.Retain && a.v311() {
		ack(nil) // it is sent because we subscribed; it is compared (retained.go)
		return
	}
	tr, user := traceOf(m)
	var to []*outgoing
	for _, e := range a.rules.Load().exportsOf(m.Topic) {
		if rule := a.exportable(e, m.Topic, &tr); rule != "" {
			a.metrics.dropped.WithLabelValues(e.peer.name, "out", rule).Inc()
			continue
		}
		if o := a.outgoing(e, m, &tr, user, 0); o != nil {
			to = append(to, o)
		}
	}
	a.dispatch(to, ack)
}

// exportable says by which rule a message does not go to a peer; "" if it does.
func (a *Adapter) exportable(e *export, name string, tr *trace) string {
	switch {
	case tr.has(a.cfg.Self), tr.has(e.peer.id), len(tr.path) >= maxPath:
		return "loop"
	case tr.foreign() && !e.Transit:
		return "transit"
	}
	if !a.v311() {
		return ""
	}
	if last, n := nested(name); n > maxNested || n > 0 && last == e.peer.name {
		return "loop"
	}
	return ""
}

// outgoing is a message on its way to one peer.
type outgoing struct {
	peer *peer
	item lane.Item
	// topic is what the peer knows it as.
	topic string
	// retained is the hash of what the topic then holds, nil if that does not change;
	// clear says that it holds nothing.
	retained []byte
	clear    bool
	// state: it is not sent if a newer one comes before it.
	state bool
	// durable items wait on disk.
	durable bool
	// casual items are of QoS 0, and given up where too much waits.
	casual bool
	// done is called when the item is safe, or given up for good (nil), or with why
	// it has to be given again.
	done func(error)
	// count counts it once it is queued.
	count prometheus.Counter
}

// outgoing makes a message one for a peer; nil if it cannot cross.
func (a *Adapter) outgoing(e *export, m *session.Message, tr *trace, user []session.UserProperty, flags uint64) *outgoing {
	name, ok := e.rule.Apply(m.Topic)
	if !ok {
		a.metrics.dropped.WithLabelValues(e.peer.name, "out", "topic").Inc()
		return nil
	}
	env := envelopeOf(m, user)
	env.Topic, env.QoS, env.Flags = name, min(m.QoS, e.QoS), env.Flags|flags
	env.Path = append(append(env.Path, tr.path...), string(a.cfg.Self))
	if env.Origin = tr.origin; env.Origin == nil {
		env.Origin = originOf(a.cfg.Self, m)
	}
	o := &outgoing{peer: a.peer(e.peer.id), topic: name, durable: env.QoS > 0}
	if m.Retain && e.Retain {
		env.Flags |= flagRetain
		o.retained, o.clear, o.durable = env.contentHash(), len(m.Payload) == 0, true
		o.casual = env.QoS == 0 && flags&flagState == 0
	}
	if env.Response != "" {
		o.peer.asks(env.Response)
	}
	if !a.pack(e.peer, o, &env, m) {
		return nil
	}
	return o
}

// pack makes the item, or says in the log why that cannot be.
func (a *Adapter) pack(p *peerRules, o *outgoing, env *envelope, m *session.Message) bool {
	body, err := env.encode()
	if err != nil {
		a.metrics.dropped.WithLabelValues(p.name, "out", "size").Inc()
		a.log.Warn("a message cannot cross", "peer", p.name, "bytes", len(m.Payload), "err", err)
		return false
	}
	o.item = lane.Item{Kind: federation.MQTT, Conv: convOf(env.Topic), Body: body}
	if m.QoS == 2 && env.QoS == 2 {
		o.item.ID = m.UID // the peer's gateway drops what comes again
	}
	if m.Expiry != nil {
		o.item.Expires = time.Now().Add(time.Duration(*m.Expiry) * time.Second)
	}
	if ttl := p.policy.TTL; ttl > 0 {
		if last := time.Now().Add(ttl); o.item.Expires.IsZero() || o.item.Expires.After(last) {
			o.item.Expires = last
		}
	}
	o.count = a.metrics.messages.WithLabelValues(p.name, "out", qosLabel(env.QoS))
	return true
}

// dispatch queues a message for its peers; ack is called when it is safe for all.
func (a *Adapter) dispatch(to []*outgoing, ack func(error)) {
	var failed atomic.Pointer[error]
	var left atomic.Int32
	left.Store(int32(len(to)) + 1)
	done := func(err error) {
		if err != nil {
			failed.CompareAndSwap(nil, &err)
		}
		if left.Add(-1) > 0 {
			return
		}
		if f := failed.Load(); f != nil {
			ack(*f)
			return
		}
		ack(nil)
	}
	for _, o := range to {
		o.done = done
		o.peer.queue(o)
	}
	done(nil)
}

func qosLabel(q byte) string { return [...]string{"0", "1", "2"}[q] }

// replyTopic reads "grid/PEER/reply/R".
func replyTopic(name string) (peer, r string, ok bool) {
	rest, ok := strings.CutPrefix(name, gridLevel)
	if !ok {
		return "", "", false
	}
	peer, rest, _ = strings.Cut(rest, "/")
	r, ok = strings.CutPrefix(rest, replyLevel)
	return peer, r, ok && r != ""
}
