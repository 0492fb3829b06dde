package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// way is one direction of one of the two systems.
type way struct {
	name     string // "ejabberd -> Prosody"
	from, to peertest.Party
	rate     []float64 // messages/s of each round
	p50, p99 []float64 // milliseconds of each round
	costs    costs     // of the rate
}

// system is two servers and how they meet.
type system struct {
	name    string
	ways    []*way
	noStore bool         // messages that the gateways do not keep
	cost    *gatewayCost // of the gateways between, if any
}

// benchXMPP compares ejabberd and Prosody that federate with each other directly
// with the same servers behind two gateways, over the memory-only lane and over the
// durable ones.
func benchXMPP(ctx context.Context, o *options, dir string) (err error) {
	fmt.Fprintf(o.out, "\n# XMPP: ejabberd <-> Prosody, direct and through two gateways\n")
	direct, err := peertest.StartDirect(ctx, filepath.Join(dir, "direct"), setup.DNS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, direct.Stop()) }()
	a, b, stop, err := startGrids(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	pool, err := peertest.ReadPool(direct.CA.File)
	if err != nil {
		return err
	}
	byDirect := func(ctx context.Context, s *peertest.Server) func(string) (peertest.Party, error) {
		return func(name string) (peertest.Party, error) {
			return s.User(ctx, peertest.ClientConfig{Roots: pool}, name)
		}
	}
	gateways := []*peertest.Gateway{a.Gateway, b.Gateway}
	straight := &system{name: "direct"}
	durable := &system{name: "two gateways", cost: &gatewayCost{gateways: gateways}}
	memory := &system{name: "memory only", noStore: true, cost: &gatewayCost{gateways: gateways}}
	for i, login := range [][2]func(string) (peertest.Party, error){
		{byDirect(ctx, direct.Ejabberd), byDirect(ctx, direct.Prosody)},
		{func(n string) (peertest.Party, error) { return a.User(ctx, n) }, func(n string) (peertest.Party, error) { return b.User(ctx, n) }},
	} {
		ejabberd, prosody, err := both(ctx, login[0], login[1])
		if err != nil {
			return err
		}
		defer ejabberd.Close()
		defer prosody.Close()
		procs := [][]*peertest.Process{
			{direct.Ejabberd.Process, direct.Prosody.Process},
			{a.Server.Process, b.Server.Process, a.Gateway.Process, b.Gateway.Process},
		}[i]
		for _, s := range [][]*system{{straight}, {durable, memory}}[i] {
			s.ways = []*way{
				{name: "ejabberd -> Prosody", from: ejabberd, to: prosody, costs: costs{procs: procs}},
				{name: "Prosody -> ejabberd", from: prosody, to: ejabberd, costs: costs{procs: procs}},
			}
		}
	}
	if err := rounds(ctx, o, []*system{straight, memory, durable}); err != nil {
		return err
	}
	for _, s := range []*system{straight, memory, durable} {
		for _, w := range s.ways {
			w.costs.report(o.out, s.name+", "+w.name)
		}
	}
	compare(o, straight, durable)
	compareKept(o, memory, durable)
	memory.cost.report(o, memory.name, 15)
	durable.cost.report(o, "durable", 0)
	return nil
}

// both logs a user in on each side and brings the streams up.
func both(ctx context.Context, loginA, loginB func(string) (peertest.Party, error)) (a, b peertest.Party, err error) {
	if a, err = loginA("alice"); err != nil {
		return a, b, err
	}
	if b, err = loginB("bob"); err != nil {
		return a, b, err
	}
	for _, p := range []peertest.Party{a, b} {
		if err := p.Available(ctx); err != nil {
			return a, b, err
		}
	}
	warm := peertest.Load{Messages: 200, Window: 16, Body: 200}
	for _, pair := range [][2]peertest.Party{{a, b}, {b, a}} {
		if _, err := warm.Run(ctx, pair[0], pair[1]); err != nil {
			return a, b, err
		}
	}
	return a, b, nil
}

// rounds lets the systems take turns; which goes first alternates.
func rounds(ctx context.Context, o *options, systems []*system) error {
	for round := range o.rounds {
		for i := range systems {
			s := systems[(i+round)%len(systems)]
			for _, w := range s.ways {
				if err := w.measure(ctx, o, s); err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, w.name, err)
				}
				n := len(w.rate) - 1
				fmt.Fprintf(o.out, "round %d  %-13s %-20s %7.0f msg/s  p50 %.2f ms  p99 %.2f ms\n", round+1, s.name, w.name, w.rate[n], w.p50[n], w.p99[n])
			}
		}
	}
	return nil
}

func (w *way) measure(ctx context.Context, o *options, s *system) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if s.cost != nil {
		if err := s.cost.begin(ctx); err != nil {
			return err
		}
	}
	if err := w.costs.begin(); err != nil {
		return err
	}
	bulk, err := peertest.Load{Messages: o.messages, Window: 500, Body: 200, NoStore: s.noStore}.Run(ctx, w.from, w.to)
	if err != nil {
		return err
	}
	if err := w.costs.end(o.messages); err != nil {
		return err
	}
	if s.cost != nil {
		if err := s.cost.end(ctx, o.messages); err != nil {
			return err
		}
	}
	single, err := peertest.Load{Messages: 1000, Window: 1, Body: 200, NoStore: s.noStore}.Run(ctx, w.from, w.to)
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	w.rate = append(w.rate, bulk.Rate())
	w.p50 = append(w.p50, ms(single.P50))
	w.p99 = append(w.p99, ms(single.P99))
	return nil
}

func compare(o *options, direct, gated *system) {
	for i, d := range direct.ways {
		g := gated.ways[i]
		fmt.Fprintf(o.out, "%s  median: direct %.0f msg/s p50 %.2f p99 %.2f ms, gateways %.0f msg/s p50 %.2f p99 %.2f ms\n", d.name,
			median(d.rate), median(d.p50), median(d.p99), median(g.rate), median(g.p50), median(g.p99))
		o.goals = append(o.goals,
			goal{what: d.name + ", messages/s against direct", have: median(g.rate) / median(d.rate), want: 1, unit: "x"},
			goal{what: d.name + ", p50 more than direct", have: median(g.p50) - median(d.p50), want: 1.5, atMost: true, unit: "ms"},
		)
	}
}

// compareKept says what it costs to keep messages on disk.
func compareKept(o *options, memory, durable *system) {
	for i, m := range memory.ways {
		d := durable.ways[i]
		fmt.Fprintf(o.out, "%s  median: memory only %.0f msg/s p50 %.2f p99 %.2f ms\n", m.name, median(m.rate), median(m.p50), median(m.p99))
		o.goals = append(o.goals, goal{what: m.name + ", durable to memory only", have: median(d.rate) / median(m.rate), want: 0.9, unit: "x"})
	}
}
