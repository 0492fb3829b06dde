package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// matrixCost is what requests of Matrix cost the gateways, without the servers.
type matrixCost struct {
	gatewayCost
	requests0, requests []float64 // through each gateway, either way
}

func (c *matrixCost) begin(ctx context.Context) (err error) {
	if c.requests0, err = c.count(ctx); err != nil {
		return err
	}
	return c.gatewayCost.begin(ctx)
}

func (c *matrixCost) end(ctx context.Context) (err error) {
	if err := c.gatewayCost.end(ctx, 0); err != nil {
		return err
	}
	c.requests, err = c.count(ctx)
	for i := range c.requests {
		c.requests[i] -= c.requests0[i]
	}
	return err
}

func (c *matrixCost) count(ctx context.Context) ([]float64, error) {
	var all []float64
	for _, g := range c.gateways {
		sum := 0.0
		for _, way := range []string{"in", "out"} {
			n, err := metric(ctx, metricsOf(g), "yggate_matrix_"+way+"_requests_total")
			if err != nil && !errors.Is(err, errNoSamples) {
				return nil, err
			}
			sum += n
		}
		all = append(all, sum)
	}
	return all, nil
}

// report prints the cost of one kind of traffic.
func (c *matrixCost) report(o *options, kind string) {
	for i, g := range c.gateways {
		fmt.Fprintf(o.out, "%s: %s: %.0f us of CPU and %.0f allocations for each of %.0f requests\n",
			kind, g.Name, float64(c.cpu[i].Microseconds())/c.requests[i], c.allocs[i]/c.requests[i], c.requests[i])
	}
}

// verification reports what it costs to check who has signed a request: on what
// has passed in this run, and by itself.
func (m *matrixBench) verification(ctx context.Context) error {
	for _, g := range m.gateways {
		addr := metricsOf(g)
		seconds, err := metric(ctx, addr, "yggate_matrix_verify_seconds_sum")
		if err != nil {
			return err
		}
		n, err := metric(ctx, addr, "yggate_matrix_verify_seconds_count")
		if err != nil {
			return err
		}
		connects, err := metric(ctx, addr, "yggate_matrix_connects_total")
		if err != nil {
			return err
		}
		passed, err := metric(ctx, addr, "yggate_matrix_out_requests_total")
		if err != nil {
			return err
		}
		fmt.Fprintf(m.o.out, "%s: %.0f connections of the homeserver for %.0f requests\n", g.Name, connects, passed)
		mem, err := g.Memory()
		if err != nil {
			return err
		}
		fmt.Fprintf(m.o.out, "%s: X-Matrix and JSON checked in %.0f us on average, %.0f requests, fetches of keys and waits for a processor included; resident %.1f MiB\n",
			g.Name, 1e6*seconds/n, n, float64(mem.RSS)/(1<<20))
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkVerify$", "-benchtime", "500ms", "github.com/yggate/yggate/federation/matrix")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("benchmark of the verification: %w\n%s", err, out)
	}
	for line := range bytes.Lines(out) {
		if f := strings.Fields(string(line)); len(f) > 3 && strings.HasPrefix(f[0], "BenchmarkVerify/") {
			fmt.Fprintf(m.o.out, "alone, %s: %s ns\n", strings.TrimPrefix(f[0], "BenchmarkVerify/"), f[2])
		}
	}
	return nil
}
