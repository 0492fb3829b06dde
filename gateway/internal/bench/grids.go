package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// startGrids starts two paired grids whose gateways are peered directly.
func startGrids(ctx context.Context, dir string) (a, b *peertest.Grid, stop func() error, err error) {
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	return pairOf(ctx, dir, peertest.GridConfig{
		Name: "a", Kind: setup.Ejabberd, Domain: "ga.grid.test", Mode: setup.DNS,
		Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh, "--metrics", metricsAddr("a")},
	}, peertest.GridConfig{
		Name: "b", Kind: setup.Prosody, Domain: "gb.grid.test", Mode: setup.DNS,
		Mesh: []string{"--metrics", metricsAddr("b")},
	})
}

// pairOf starts two grids in dir and makes them peers.
func pairOf(ctx context.Context, dir string, first, second peertest.GridConfig) (a, b *peertest.Grid, stop func() error, err error) {
	var started []*peertest.Grid
	stopAll := func() error {
		var errs []error
		for _, g := range started {
			errs = append(errs, g.Stop())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stopAll())
		}
	}()
	for _, cfg := range []peertest.GridConfig{first, second} {
		cfg.Dir = filepath.Join(dir, cfg.Name)
		g, err := peertest.NewGrid(ctx, cfg)
		if err != nil {
			return nil, nil, nil, err
		}
		started = append(started, g)
		if err := g.Start(ctx); err != nil {
			return nil, nil, nil, err
		}
	}
	a, b = started[0], started[1]
	return a, b, stopAll, peertest.Pair(ctx, a, b)
}

var metricsIP = peertest.Loopback()

// metricsAddr is where the gateway of that name serves its metrics.
func metricsAddr(name string) string {
	return netip.AddrPortFrom(metricsIP, 9700+uint16(name[0])).String()
}

// metricsOf is where a gateway of metricsAddr serves them.
func metricsOf(g *peertest.Gateway) string { return metricsAddr(strings.TrimPrefix(g.Name, "yggate ")) }

// gatewayCost is what stanzas cost the gateways, without the servers.
type gatewayCost struct {
	gateways []*peertest.Gateway

	cpu0, cpu       []time.Duration
	allocs0, allocs []float64
	messages        int
}

func (c *gatewayCost) begin(ctx context.Context) error {
	var err error
	c.cpu0, c.allocs0, err = c.read(ctx)
	return err
}

func (c *gatewayCost) end(ctx context.Context, messages int) error {
	cpu, allocs, err := c.read(ctx)
	if err != nil {
		return err
	}
	if c.cpu == nil {
		c.cpu, c.allocs = make([]time.Duration, len(cpu)), make([]float64, len(cpu))
	}
	for i := range cpu {
		c.cpu[i] += cpu[i] - c.cpu0[i]
		c.allocs[i] += allocs[i] - c.allocs0[i]
	}
	c.messages += messages
	return nil
}

func (c *gatewayCost) read(ctx context.Context) ([]time.Duration, []float64, error) {
	var cpus []time.Duration
	var allocs []float64
	for _, g := range c.gateways {
		cpu, err := g.CPU()
		if err != nil {
			return nil, nil, err
		}
		n, err := metric(ctx, metricsOf(g), "go_memstats_mallocs_total")
		if err != nil {
			return nil, nil, err
		}
		cpus, allocs = append(cpus, cpu), append(allocs, n)
	}
	return cpus, allocs, nil
}

// report prints the cost of one kind of messages; most is what it should be at
// most in microseconds of processor time, 0 for no goal.
func (c *gatewayCost) report(o *options, kind string, most float64) {
	for i, g := range c.gateways {
		us := float64(c.cpu[i].Microseconds()) / float64(c.messages)
		fmt.Fprintf(o.out, "%s: yggate %s: %.1f us of CPU and %.1f allocations for each of %d messages\n", kind, g.Name, us, c.allocs[i]/float64(c.messages), c.messages)
		if most > 0 {
			o.goals = append(o.goals, goal{what: "yggate " + g.Name + ", CPU for a message, " + kind, have: us, want: most, atMost: true, unit: "us"})
		}
	}
}
