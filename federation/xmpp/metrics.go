package xmpp

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// metrics are labelled by configured peer, never by address.
type metrics struct {
	stanzas   *prometheus.CounterVec // peer, dir, kind
	refused   *prometheus.CounterVec // peer, rule
	bounced   *prometheus.CounterVec // peer, dir, condition
	untracked *prometheus.CounterVec // peer, dir
	ended     *prometheus.CounterVec // peer
	expired   *prometheus.CounterVec // peer
	lost      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yggate_xmpp_" + name, Help: help}, labels)
	}
	m := &metrics{
		stanzas:   vec("stanzas_total", "Stanzas from the local server (dir out) and from the peer (dir in) whose addresses were right.", "peer", "dir", "kind"),
		refused:   vec("refused_total", "Stanzas from the peer that broke a rule.", "peer", "rule"),
		bounced:   vec("bounced_total", "Stanzas that went back to their sender with an error.", "peer", "dir", "condition"),
		untracked: vec("presence_untracked_total", "Presence for which the tables had no room.", "peer", "dir"),
		ended:     vec("presence_ended_total", "Presence of the peer's users that was ended here in their stead.", "peer"),
		expired:   vec("room_messages_expired_total", "Messages of local rooms that the peer was away for too long to get.", "peer"),
		lost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "yggate_xmpp_replies_lost_total",
			Help: "Errors and presence of the gateway's own that could not be delivered.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.stanzas, m.refused, m.bounced, m.untracked, m.ended, m.expired, m.lost)
	}
	return m
}

// counters are the hot ones of one peer, by kind of stanza.
type counters struct {
	name    string
	in, out [frame.IQ + 1]prometheus.Counter
}

func (m *metrics) peer(name string) *counters {
	c := &counters{name: name}
	for kind := frame.Message; kind <= frame.IQ; kind++ {
		c.in[kind] = m.stanzas.WithLabelValues(name, "in", kind.String())
		c.out[kind] = m.stanzas.WithLabelValues(name, "out", kind.String())
	}
	return c
}
