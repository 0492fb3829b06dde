package lane

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are labelled by the operator's own name for the peer.
type metrics struct {
	items, bytes *prometheus.CounterVec // peer, dir
	settled      *prometheus.CounterVec // peer, dir, result
	latency      *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer, m *Memory) *metrics {
	lane := prometheus.Labels{"lane": string(Eph)}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "yggate", Subsystem: "lane", Name: name, Help: help, ConstLabels: lane,
		}, labels)
	}
	ms := &metrics{
		items:   counter("items_total", "Items written to or read from a peer.", "peer", "dir"),
		bytes:   counter("bytes_total", "Bytes of lane streams written, or of item bodies read.", "peer", "dir"),
		settled: counter("settled_total", "Items sent, by outcome (acked, refused, returned), and items refused on receipt.", "peer", "dir", "result"),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "yggate", Subsystem: "lane", Name: "ack_latency_seconds", ConstLabels: lane,
			Help:    "Time from writing a sampled item to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"peer"}),
	}
	if reg != nil {
		reg.MustRegister(ms.items, ms.bytes, ms.settled, ms.latency, &inflight{m: m, desc: prometheus.NewDesc(
			"yggate_lane_inflight_items", "Items that wait for a peer's acknowledgement.", []string{"peer"}, lane)})
	}
	return ms
}

// sendCounters are one peer's, looked up once.
type sendCounters struct {
	items, bytes, acked, refused, returned prometheus.Counter
	latency                                prometheus.Observer
}

func (ms *metrics) sender(peer string) sendCounters {
	return sendCounters{
		items: ms.items.WithLabelValues(peer, "out"), bytes: ms.bytes.WithLabelValues(peer, "out"),
		acked:    ms.settled.WithLabelValues(peer, "out", "acked"),
		refused:  ms.settled.WithLabelValues(peer, "out", "refused"),
		returned: ms.settled.WithLabelValues(peer, "out", "returned"),
		latency:  ms.latency.WithLabelValues(peer),
	}
}

type receiveCounters struct {
	items, bytes, refused prometheus.Counter
}

func (ms *metrics) receiver(peer string) receiveCounters {
	return receiveCounters{
		items: ms.items.WithLabelValues(peer, "in"), bytes: ms.bytes.WithLabelValues(peer, "in"),
		refused: ms.settled.WithLabelValues(peer, "in", "refused"),
	}
}

// inflight reads the windows when it is scraped.
type inflight struct {
	m    *Memory
	desc *prometheus.Desc
}

func (c *inflight) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *inflight) Collect(ch chan<- prometheus.Metric) {
	waiting := map[string]int{} // by name, which a removed peer may have left to another
	c.m.mu.RLock()
	for _, s := range c.m.sessions {
		n := 0
		if w := s.window.Load(); w != nil {
			n = w.len()
		}
		waiting[s.peer.Load().Name] += n
	}
	c.m.mu.RUnlock()
	for name, n := range waiting {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(n), name)
	}
}
