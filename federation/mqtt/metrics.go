package mqtt

import "github.com/prometheus/client_golang/prometheus"

// metrics are labelled by configured peer, never by topic.
type metrics struct {
	messages *prometheus.CounterVec // peer, dir, qos
	dropped  *prometheus.CounterVec // peer, dir, reason
}

func newMetrics(reg prometheus.Registerer) *metrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yggate_mqtt_" + name, Help: help}, labels)
	}
	m := &metrics{
		messages: vec("messages_total", "Messages that a rule lets cross to (dir out) or from (dir in) a peer.", "peer", "dir", "qos"),
		dropped:  vec("dropped_total", "Messages that a rule named, or that a peer sent, and that did not cross.", "peer", "dir", "reason"),
	}
	if reg != nil {
		reg.MustRegister(m.messages, m.dropped)
	}
	return m
}
