package s2s

import "github.com/prometheus/client_golang/prometheus"

// Directions, as seen from the gateway.
const (
	dirIn  = "in"
	dirOut = "out"
)

type metrics struct {
	streams    *prometheus.GaugeVec   // dir, state
	stanzas    *prometheus.CounterVec // dir
	bytes      *prometheus.CounterVec // dir
	handshakes *prometheus.CounterVec // dir, result
	failed     prometheus.Counter
	queued     prometheus.Gauge

	count map[string]direction
}

// direction holds what is touched for every batch, looked up once.
type direction struct{ stanzas, bytes prometheus.Counter }

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	const prefix = "yggate_xmpp_s2s_"
	m := &metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + "streams",
			Help: "Streams with the local servers, by direction and state (handshake, open)."}, []string{"dir", "state"}),
		stanzas: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "stanzas_total",
			Help: "Stanzas taken from (in) and written to (out) the local servers."}, []string{"dir"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "stanza_bytes_total",
			Help: "Bytes of those stanzas."}, []string{"dir"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + "handshakes_total",
			Help: "Finished handshakes, by direction and result: ok, or what went wrong."}, []string{"dir", "result"}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + "stanzas_failed_total",
			Help: "Stanzas given back because the local server could not be reached."}),
		queued: prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "queue_bytes",
			Help: "Bytes that wait to be written to the local servers."}),
		count: map[string]direction{},
	}
	for _, dir := range []string{dirIn, dirOut} {
		m.count[dir] = direction{m.stanzas.WithLabelValues(dir), m.bytes.WithLabelValues(dir)}
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.streams, m.stanzas, m.bytes, m.handshakes, m.failed, m.queued} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) open(dir string, n float64) { m.streams.WithLabelValues(dir, "open").Add(n) }

func (m *metrics) shaking(dir string, n float64) {
	m.streams.WithLabelValues(dir, "handshake").Add(n)
}

func (m *metrics) handshake(dir, result string) { m.handshakes.WithLabelValues(dir, result).Inc() }

func (m *metrics) carried(dir string, stanzas, bytes int) {
	d := m.count[dir]
	d.stanzas.Add(float64(stanzas))
	d.bytes.Add(float64(bytes))
}
