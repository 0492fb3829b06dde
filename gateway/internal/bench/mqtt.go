package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// mqttSystem is two brokers and what is between them.
type mqttSystem struct {
	name      string
	near, far *peertest.Mosquitto
	// rate is in messages/s, p50 and p99 in ms at 300 messages/s, by QoS and round.
	rate, p50, p99 [3][]float64
	costs          [3]*costs // of the rate, by QoS
}

const (
	mqttPrefix = "grid/a/" // where the gateway puts what comes from a, and the bridge, too
	mqttShared = `  mqtt:
    export: [{filter: "house/#"}]
    import: [{filter: "house/#"}]
  limits: {messages_per_second: 1000000, burst: 1000000}
`
)

// benchMQTT compares mosquitto's own bridge with two gateways between two brokers.
func benchMQTT(ctx context.Context, o *options, dir string) (err error) {
	fmt.Fprintf(o.out, "\n# MQTT: mosquitto -> mosquitto, its own bridge (MQTT 5) and two gateways (MQTT %s)\n", o.version)
	bridge, stop, err := startBridge(ctx, filepath.Join(dir, "bridge"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	a, b, stopGrids, err := startMQTTGrids(ctx, dir, o.version)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopGrids()) }()
	gated := &mqttSystem{name: "two gateways", near: a.Broker, far: b.Broker}
	systems := []*mqttSystem{bridge, gated}
	bridge.count()
	gated.count(a.Gateway.Process, b.Gateway.Process)
	for _, s := range systems {
		if err := s.warm(ctx); err != nil {
			return err
		}
	}
	for _, g := range []*peertest.Gateway{a.Gateway, b.Gateway} {
		if err := g.ResetPeak(); err != nil {
			return err
		}
	}
	for round := range o.rounds {
		for i := range systems {
			s := systems[(i+round)%len(systems)]
			for qos := range byte(3) {
				if err := s.measure(ctx, o, round, qos); err != nil {
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
		}
	}
	compareMQTT(o, bridge, gated)
	return reportMemory(o, a.Gateway, b.Gateway)
}

// startBridge starts two brokers with mosquitto's bridge between them.
func startBridge(ctx context.Context, dir string) (*mqttSystem, func() error, error) {
	far, err := peertest.NewMosquitto(peertest.MosquittoConfig{Name: "far", IP: peertest.Loopback(), Dir: filepath.Join(dir, "far"), Quiet: true, NoPersistence: true, Lines: benchBroker})
	if err != nil {
		return nil, nil, err
	}
	near, err := peertest.NewMosquitto(peertest.MosquittoConfig{
		Name: "near", IP: peertest.Loopback(), Dir: filepath.Join(dir, "near"), Quiet: true, NoPersistence: true, Lines: append(peertest.BridgeLines(far.MQTT, "house/#", mqttPrefix), benchBroker...),
	})
	if err != nil {
		return nil, nil, err
	}
	stop := func() error { return errors.Join(near.Stop(), far.Stop()) }
	for _, m := range []*peertest.Mosquitto{far, near} {
		if err := m.Start(ctx); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	return &mqttSystem{name: "bridge", near: near, far: far}, stop, nil
}

// benchBroker is added to what the brokers of both systems are configured with: what
// `yggate setup mosquitto` asks for and makes any mosquitto faster. As Debian sets
// mosquitto up it writes to disk every 30 minutes: here, never.
var benchBroker = []string{"max_queued_messages 0", "max_inflight_messages 200", "set_tcp_nodelay true"}

// startMQTTGrids starts two paired grids with a broker each, with which their gateways
// speak a version of MQTT.
func startMQTTGrids(ctx context.Context, dir, version string) (a, b *peertest.Grid, stop func() error, err error) {
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	var grids []*peertest.Grid
	stop = func() error {
		var errs []error
		for _, g := range grids {
			errs = append(errs, g.Stop())
		}
		return errors.Join(errs...)
	}
	for _, name := range []string{"a", "b"} {
		flags := []string{"--mesh-peer", mesh}
		if name == "a" {
			flags = []string{"--mesh-listen", mesh, "--advertise", mesh}
		}
		g, err := peertest.NewGrid(ctx, peertest.GridConfig{
			Name: name, MQTT: true, MQTTVersion: version, MQTTConfig: mqttShared, Dir: filepath.Join(dir, name), Mesh: flags,
		})
		if err != nil {
			return nil, nil, nil, errors.Join(err, stop())
		}
		cfg := g.Broker.Config()
		cfg.Quiet, cfg.NoPersistence, cfg.Lines = true, true, append(cfg.Lines, benchBroker...)
		if err := g.Broker.Configure(cfg); err != nil {
			return nil, nil, nil, errors.Join(err, stop())
		}
		grids = append(grids, g)
		if err := g.Start(ctx); err != nil {
			return nil, nil, nil, errors.Join(err, stop())
		}
	}
	a, b = grids[0], grids[1]
	if err := peertest.Pair(ctx, a, b); err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	return a, b, stop, nil
}

// count has the cost of the brokers and of what is between them counted.
func (s *mqttSystem) count(between ...*peertest.Process) {
	for qos := range s.costs {
		s.costs[qos] = &costs{procs: append([]*peertest.Process{s.near.Process, s.far.Process}, between...)}
	}
}

func (s *mqttSystem) load(qos byte) peertest.MQTTLoad {
	return peertest.MQTTLoad{From: s.near.MQTT, To: s.far.MQTT, Topic: "house/load", Prefix: mqttPrefix, Topics: 10, QoS: qos, Size: 100}
}

// warm tries until messages cross, and then lets some.
func (s *mqttSystem) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for one := s.load(1); ; {
		one.Messages, one.Window = 1, 1
		try, end := context.WithTimeout(ctx, 2*time.Second)
		_, err := one.Run(try)
		end()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: nothing crosses: %w", s.name, err)
		}
	}
	for qos := range byte(3) {
		l := s.load(qos)
		l.Messages, l.Window = 500, 100
		if _, err := l.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *mqttSystem) measure(ctx context.Context, o *options, round int, qos byte) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	bulk, calm := s.load(qos), s.load(qos)
	bulk.Messages, bulk.Window = o.messages, 100
	calm.Messages, calm.Window, calm.Rate = 900, 100, 300
	if err := s.costs[qos].begin(); err != nil {
		return err
	}
	many, err := bulk.Run(ctx)
	if err != nil {
		return err
	}
	if err := s.costs[qos].end(bulk.Messages); err != nil {
		return err
	}
	few, err := calm.Run(ctx)
	if err != nil {
		return err
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	s.rate[qos] = append(s.rate[qos], many.Rate())
	s.p50[qos], s.p99[qos] = append(s.p50[qos], ms(few.P50)), append(s.p99[qos], ms(few.P99))
	fmt.Fprintf(o.out, "round %d  %-13s QoS %d  %7.0f msg/s (p50 %.2f ms)  at 300/s: p50 %.2f ms  p99 %.2f ms\n",
		round+1, s.name, qos, many.Rate(), ms(many.P50), ms(few.P50), ms(few.P99))
	return nil
}

func compareMQTT(o *options, bridge, gated *mqttSystem) {
	for qos, want := range []float64{0.8, 1, 1} {
		fmt.Fprintf(o.out, "MQTT QoS %d  median: bridge %.0f msg/s p50 %.2f p99 %.2f ms, gateways %.0f msg/s p50 %.2f p99 %.2f ms\n", qos,
			median(bridge.rate[qos]), median(bridge.p50[qos]), median(bridge.p99[qos]), median(gated.rate[qos]), median(gated.p50[qos]), median(gated.p99[qos]))
		for _, s := range []*mqttSystem{bridge, gated} {
			s.costs[qos].report(o.out, fmt.Sprintf("MQTT QoS %d  %s", qos, s.name))
		}
		o.goals = append(o.goals,
			goal{what: fmt.Sprintf("MQTT QoS %d, messages/s against mosquitto's bridge", qos), have: median(gated.rate[qos]) / median(bridge.rate[qos]), want: want, unit: "x"},
			goal{what: fmt.Sprintf("MQTT QoS %d at 300/s, p50 more than the bridge", qos), have: median(gated.p50[qos]) - median(bridge.p50[qos]), want: 3, atMost: true, unit: "ms"},
		)
	}
}

// reportMemory makes goals of the highest resident memory of gateways.
func reportMemory(o *options, gateways ...*peertest.Gateway) error {
	for _, g := range gateways {
		mem, err := g.Memory()
		if err != nil {
			return err
		}
		o.goals = append(o.goals, goal{what: "MQTT, " + g.Name + ", resident at most", have: float64(mem.Peak) / (1 << 20), want: 64, atMost: true, unit: "MiB"})
	}
	return nil
}
