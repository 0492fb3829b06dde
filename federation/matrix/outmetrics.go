package matrix

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outMetrics are those of the homeserver's side, labelled by configured peer, never
// by room or user.
type outMetrics struct {
	requests       *prometheus.CounterVec   // peer, endpoint, status
	seconds        *prometheus.HistogramVec // peer
	broken         *prometheus.CounterVec   // peer
	connects       *prometheus.CounterVec   // to
	refusedConnect *prometheus.CounterVec   // rule
	handshakes     prometheus.Counter
	strangers      prometheus.Counter
	wakes          *prometheus.CounterVec // peer, result
	custody        *prometheus.CounterVec // peer, dir, result
}

func newOutMetrics(reg prometheus.Registerer) *outMetrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yggate_matrix_" + name, Help: help}, labels)
	}
	one := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "yggate_matrix_" + name, Help: help})
	}
	m := &outMetrics{
		requests: vec("out_requests_total", "Requests of the homeserver for a peer's server, by how they were answered.", "peer", "endpoint", "status"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "yggate_matrix_out_request_seconds", Help: "Time from a request of the homeserver to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.005, 3, 10),
		}, []string{"peer"}),
		broken:         vec("out_answers_broken_total", "Answers of a peer that broke off on their way to the homeserver.", "peer"),
		connects:       vec("connects_total", "CONNECT requests of the homeserver that were taken, for a peer or for the upstream proxy.", "to"),
		refusedConnect: vec("connects_refused_total", "Requests to the proxy that were refused.", "rule"),
		handshakes:     one("handshakes_failed_total", "TLS handshakes of the homeserver that failed."),
		strangers:      one("strangers_total", "Connections from addresses that are not allowed."),
		wakes:          vec("wakes_total", "Lookups by which the homeserver was made to speak to a peer's, by result.", "peer", "result"),
		custody:        vec("custody_total", "Transactions in custody: taken from the homeserver (out) or handed to it (in), by result.", "peer", "dir", "result"),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.broken, m.connects, m.refusedConnect, m.handshakes, m.strangers, m.wakes, m.custody)
	}
	return m
}

func (m *outMetrics) request(peer, endpoint string, status int, took time.Duration) {
	if endpoint == "" {
		endpoint = endpointOther
	}
	m.requests.WithLabelValues(peer, endpoint, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(peer).Observe(took.Seconds())
}
