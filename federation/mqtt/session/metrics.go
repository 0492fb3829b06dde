package session

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connected prometheus.Gauge
	connects  *prometheus.CounterVec // result

	arrived, sent            [3]prometheus.Counter // by QoS
	resent, renewed, refused prometheus.Counter
	dropped                  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const prefix = "yggate_mqtt_session_"
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
	}
	messages := prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "messages_total",
		Help: "Messages that came from the broker (in), and that it has acknowledged (out)."}, []string{"dir", "qos"})
	m := &metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "connected", Help: "Whether the broker is connected."}),
		connects: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "connects_total",
			Help: "Attempts to connect, by result (ok, failed)."}, []string{"result"}),
		resent:  counter("resent_total", "Messages sent again after the connection was lost."),
		renewed: counter("renewed_total", "Messages in flight when the broker had lost the session: sent anew, though it may have had them."),
		refused: counter("refused_total", "Messages that the broker did not take."),
		dropped: counter("dropped_total", "Messages at QoS 0 from the broker for which there was no room."),
	}
	for qos := range 3 {
		m.arrived[qos] = messages.WithLabelValues("in", strconv.Itoa(qos))
		m.sent[qos] = messages.WithLabelValues("out", strconv.Itoa(qos))
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.connected, m.connects, messages, m.resent, m.renewed, m.refused, m.dropped} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
