package link

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are labelled by the operator's own name for the peer.
type metrics struct {
	dials   *prometheus.CounterVec // peer, result
	refused *prometheus.CounterVec // reason
}

func newMetrics(reg prometheus.Registerer, l *Links) *metrics {
	m := &metrics{
		dials: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "yggate_link_dials_total", Help: "Attempts to bring up the link to a peer.",
		}, []string{"peer", "result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "yggate_link_refused_total", Help: "Inbound connections and requests refused, by reason.",
		}, []string{"reason"}),
	}
	if reg != nil {
		reg.MustRegister(m.dials, m.refused, &statusCollector{l})
	}
	return m
}

var (
	descUp = prometheus.NewDesc("yggate_link_up",
		"1 while the peer answers hellos.", []string{"peer"}, nil)
	descHeard = prometheus.NewDesc("yggate_link_last_heard_seconds",
		"Seconds since the peer was last heard.", []string{"peer"}, nil)
	descRTT = prometheus.NewDesc("yggate_link_rtt_seconds",
		"Round trip of the last answered hello.", []string{"peer"}, nil)
	descInbound = prometheus.NewDesc("yggate_link_inbound_connections",
		"Connections that the peer has to this gateway.", []string{"peer"}, nil)
)

// statusCollector turns Status into metrics when it is scraped.
type statusCollector struct{ l *Links }

func (c *statusCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- descUp
	ch <- descHeard
	ch <- descRTT
	ch <- descInbound
}

func (c *statusCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, peer string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, peer)
	}
	for _, st := range c.l.Status() {
		up := 0.0
		if st.State == Up {
			up = 1
			gauge(descRTT, st.RTT.Seconds(), st.Name)
		}
		gauge(descUp, up, st.Name)
		gauge(descInbound, float64(st.Inbound), st.Name)
		if !st.LastHeard.IsZero() {
			gauge(descHeard, time.Since(st.LastHeard).Seconds(), st.Name)
		}
	}
}
