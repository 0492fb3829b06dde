package matrix

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// inMetrics are those of the peers' side, labelled by configured peer, never by
// room or user.
type inMetrics struct {
	requests *prometheus.CounterVec   // peer, endpoint, status
	seconds  *prometheus.HistogramVec // peer
	refused  *prometheus.CounterVec   // peer, code
	broken   *prometheus.CounterVec   // peer
	verified prometheus.Histogram
	fetches  *prometheus.CounterVec // peer, result
	changed  *prometheus.CounterVec // peer
}

func newInMetrics(reg prometheus.Registerer) *inMetrics {
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "yggate_matrix_" + name, Help: help}, labels)
	}
	m := &inMetrics{
		requests: vec("in_requests_total", "Requests of a peer for the homeserver, by how they were answered.", "peer", "endpoint", "status"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "yggate_matrix_in_request_seconds", Help: "Time from a request of a peer to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.005, 3, 10),
		}, []string{"peer"}),
		refused: vec("in_refused_total", "Requests of a peer that the gateway itself refused, by the code of the Matrix error.", "peer", "code"),
		broken:  vec("in_answers_broken_total", "Answers of the homeserver that broke off on their way to the peer.", "peer"),
		verified: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "yggate_matrix_verify_seconds", Help: "Time to check the body and the signature of a request, the fetch of keys included.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 4, 9),
		}),
		fetches: vec("key_fetches_total", "Fetches of the signing keys of a peer's server.", "peer", "result"),
		changed: vec("keys_changed_total", "Servers of a peer that were found with other signing keys than before.", "peer"),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.seconds, m.refused, m.broken, m.verified, m.fetches, m.changed)
	}
	return m
}

func (m *inMetrics) request(peer, endpoint string, status int, took time.Duration) {
	if endpoint == "" {
		endpoint = endpointOther
	}
	m.requests.WithLabelValues(peer, endpoint, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(peer).Observe(took.Seconds())
}
