package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

// metrics are those of the process; each life of the edge has its own beside them.
type metrics struct{ registry *prometheus.Registry }

func newMetrics() *metrics {
	m := &metrics{prometheus.NewRegistry()}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "yggate_build_info", Help: "1, labelled with the version.",
			ConstLabels: prometheus.Labels{"version": Version()},
		}, func() float64 { return 1 }),
	)
	return m
}

// Gather implements prometheus.Gatherer over the process and the live edge.
func (g *gateway) Gather() ([]*dto.MetricFamily, error) {
	all := prometheus.Gatherers{g.metrics.registry}
	if e := g.edge.Load(); e != nil {
		all = append(all, e.registry)
	}
	return all.Gather()
}

// registerStore exposes what the database does, and what depends on the identity.
func (g *gateway) registerStore() {
	g.metrics.registry.MustRegister(
		newStoreMetrics(g),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "yggate_leaf_expiry_seconds", Help: "Seconds until the certificate of this node ends; it is renewed 10 days before.",
		}, func() float64 {
			leaf, err := g.identity.Leaf(g.meshAddr())
			if err != nil {
				return 0
			}
			return time.Until(leaf.Leaf.NotAfter).Seconds()
		}),
	)
}

// serveMetrics serves Prometheus until ctx is done, if the operator wants that.
func (g *gateway) serveMetrics(ctx context.Context) error {
	addr := g.conf.Load().Metrics.Listen
	if !addr.IsValid() {
		<-ctx.Done()
		return nil
	}
	l, err := net.Listen("tcp", addr.String())
	if err != nil {
		return fmt.Errorf("listen on metrics.listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return serveHTTP(ctx, l, mux)
}

// idleTime is how long a connection may stay that asks nothing. Prometheus asks each
// minute or so.
const idleTime = 5 * time.Minute

// serveHTTP serves until ctx is done and then returns nil.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleTime,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
