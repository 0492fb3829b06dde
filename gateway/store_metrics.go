package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/store"
)

// healthStates are those of the gauge of the database's health.
var healthStates = []store.HealthState{store.HealthOK, store.HealthFull, store.HealthLocked, store.HealthDamaged, store.HealthFailing}

// storeMetrics reports what the database does, as it is when somebody asks.
type storeMetrics struct {
	g *gateway

	commits, writes, failed, seconds, batch, health, bytes *prometheus.Desc
}

func newStoreMetrics(g *gateway) *storeMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("yggate_store_"+name, help, labels, nil)
	}
	return &storeMetrics{
		g:       g,
		commits: desc("commits_total", "Transactions committed to disk."),
		writes:  desc("writes_total", "Writes in those transactions."),
		failed:  desc("failed_commits_total", "Transactions that failed as a whole."),
		seconds: desc("commit_seconds_total", "Seconds spent waiting for the disk in commits."),
		batch:   desc("batch_writes", "Writes in the newest commit."),
		health:  desc("health", "1 for the state that the database is in (ok, full, locked, damaged, failing), 0 for the others.", "state"),
		bytes:   desc("bytes", "Size of the database, and of its write-ahead log.", "file"),
	}
}

// Describe implements prometheus.Collector.
func (m *storeMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.commits, m.writes, m.failed, m.seconds, m.batch, m.health, m.bytes} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *storeMetrics) Collect(ch chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	st := m.g.store.Stats()
	send(m.commits, prometheus.CounterValue, float64(st.Commits))
	send(m.writes, prometheus.CounterValue, float64(st.Writes))
	send(m.failed, prometheus.CounterValue, float64(st.Failed))
	send(m.seconds, prometheus.CounterValue, st.CommitTime.Seconds())
	send(m.batch, prometheus.GaugeValue, float64(st.LastBatch))
	now := m.g.store.Health().State
	for _, state := range healthStates {
		v := 0.0
		if state == now {
			v = 1
		}
		send(m.health, prometheus.GaugeValue, v, string(state))
	}
	file, wal := m.g.databaseBytes()
	send(m.bytes, prometheus.GaugeValue, float64(file), "database")
	send(m.bytes, prometheus.GaugeValue, float64(wal), "wal")
}
