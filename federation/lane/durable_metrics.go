package lane

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// durableMetrics are labelled by the operator's own name for the peer.
type durableMetrics struct {
	items, bytes *prometheus.CounterVec // peer, lane, dir
	latency      *prometheus.HistogramVec
	dead         *prometheus.CounterVec // peer, reason
	discarded    prometheus.Counter
	storeFailed  prometheus.Counter
}

func newDurableMetrics(reg prometheus.Registerer, d *Durable) *durableMetrics {
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "yggate", Subsystem: "durable", Name: name, Help: help}
	}
	m := &durableMetrics{
		items: prometheus.NewCounterVec(opts("items_total", "Items written to or taken from a peer; one that is sent again counts again."), []string{"peer", "lane", "dir"}),
		bytes: prometheus.NewCounterVec(opts("bytes_total", "Bytes of lane streams written, or of item bodies read."), []string{"peer", "lane", "dir"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "yggate", Subsystem: "durable", Name: "ack_latency_seconds",
			Help:    "Time from writing a sampled item to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}, []string{"peer", "lane"}),
		dead:        prometheus.NewCounterVec(opts("dead_total", "Items given up, by reason (expired, dropped, peer)."), []string{"peer", "reason"}),
		discarded:   prometheus.NewCounter(opts("discarded_total", "Items from peers that were blocked or removed before the local server took them.")),
		storeFailed: prometheus.NewCounter(opts("store_failed_total", "Commits of the lanes that the store did not take; they are tried again.")),
	}
	if reg != nil {
		reg.MustRegister(m.items, m.bytes, m.latency, m.dead, m.discarded, m.storeFailed, newDepth(d))
	}
	return m
}

// durableCounters are one lane's, looked up once.
type durableCounters struct {
	out, in, bytesOut, bytesIn prometheus.Counter
	latency                    prometheus.Observer
}

func (m *durableMetrics) lane(peer string, name Name) durableCounters {
	n := string(name)
	return durableCounters{
		out: m.items.WithLabelValues(peer, n, "out"), in: m.items.WithLabelValues(peer, n, "in"),
		bytesOut: m.bytes.WithLabelValues(peer, n, "out"), bytesIn: m.bytes.WithLabelValues(peer, n, "in"),
		latency: m.latency.WithLabelValues(peer, n),
	}
}

// depth reports the queues as they are when somebody asks.
type depth struct {
	d                    *Durable
	items, bytes, oldest *prometheus.Desc
}

func newDepth(d *Durable) *depth {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("yggate_durable_"+name, help, labels, nil)
	}
	return &depth{
		d:      d,
		items:  desc("queued_items", "Items on disk that a peer has not acknowledged (dir=out) or the local server has not taken (dir=in).", "peer", "lane", "dir"),
		bytes:  desc("queued_bytes", "Bytes of them.", "peer", "lane", "dir"),
		oldest: desc("oldest_seconds", "Age of the oldest item that a peer has not acknowledged.", "peer", "lane"),
	}
}

// Describe implements prometheus.Collector.
func (c *depth) Describe(ch chan<- *prometheus.Desc) { ch <- c.items; ch <- c.bytes; ch <- c.oldest }

// Collect implements prometheus.Collector.
func (c *depth) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(desc *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
	}
	// A removed peer's name may be another's by now. No metric may come twice.
	type key struct{ peer, lane, dir string }
	sums := map[key]Status{}
	for _, st := range c.d.Status(ctx) {
		k := key{c.d.peerName(st.Peer), string(st.Lane), string(st.Dir)}
		sum := sums[k]
		st.Items, st.Bytes = st.Items+sum.Items, st.Bytes+sum.Bytes
		if st.Oldest.IsZero() || !sum.Oldest.IsZero() && sum.Oldest.Before(st.Oldest) {
			st.Oldest = sum.Oldest
		}
		sums[k] = st
	}
	for k, st := range sums {
		gauge(c.items, float64(st.Items), k.peer, k.lane, k.dir)
		gauge(c.bytes, float64(st.Bytes), k.peer, k.lane, k.dir)
		if st.Dir == DirOut && !st.Oldest.IsZero() {
			gauge(c.oldest, time.Since(st.Oldest).Seconds(), k.peer, k.lane)
		}
	}
}
