//go:build integration

package gateway_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// channel is two brokers, what is between them, and what breaks there.
//
//	publisher - near broker - tap - gateway a - cable - gateway b - tap - far broker - subscriber
//
// Or mosquitto's own bridge in place of all between the brokers but the cable.
type channel struct {
	near, far         *peertest.Mosquitto
	nearTap, farTap   *peertest.MQTTTap // nil with the bridge
	cable             *peertest.Cable   // between the gateways
	nearGate, farGate *peertest.Gateway // nil with the bridge
	flows             []*peertest.RunningFlow
	version           mqttVersion // of the gateways
}

// brokerLines let a broker keep all that waits, and write it to disk at each change:
// what it loses when it is killed is then little.
var brokerLines = []string{"max_queued_messages 0", "max_inflight_messages 200"}

func newTap(t *testing.T, broker netip.AddrPort) *peertest.MQTTTap {
	t.Helper()
	tap, err := peertest.NewMQTTTap(netip.AddrPortFrom(peertest.Loopback(), 1883).String(), broker.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, tap.Close()) })
	return tap
}

// newCable lays the cable between the two sides.
func newCable(t *testing.T, to netip.AddrPort) (*peertest.Cable, netip.AddrPort) {
	t.Helper()
	from := netip.AddrPortFrom(peertest.Loopback(), to.Port())
	cable, err := peertest.NewCable(from.String(), to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, cable.Close()) })
	return cable, from
}

// mqttVersion is one that gateways may be told to speak with their brokers.
type mqttVersion struct {
	name string // as in the configuration
	code byte   // as in CONNECT
	// far are lines that the far broker is configured with besides.
	far []string
}

// With MQTT 3.1.1 the far broker has mosquitto's own limit of what may be under way, of
// which it cannot tell the gateway. The near one has not: mosquitto (2.0.11) gives what
// waits beyond it out of order to a client that has messages at QoS 1 and 2.
var (
	mqtt5   = mqttVersion{name: "5", code: 5}
	mqtt311 = mqttVersion{name: "3.1.1", code: 4, far: []string{"max_inflight_messages 20"}}
)

// newChannel puts two gateways between two brokers, with which they speak a version.
func newChannel(t *testing.T, version mqttVersion) *channel {
	t.Helper()
	peertest.Require(t, "mosquitto")
	dir, c := t.TempDir(), &channel{version: version}
	mesh := netip.AddrPortFrom(peertest.Loopback(), 9001)
	var way netip.AddrPort
	c.cable, way = newCable(t, mesh)
	start := func(name string, lines []string, flags ...string) (*peertest.Grid, *peertest.MQTTTap) {
		server := peertest.Loopback()
		tap := newTap(t, netip.AddrPortFrom(server, 1883))
		g := newGrid(t, peertest.GridConfig{
			Name: name, MQTT: true, MQTTConfig: shareAll, ServerIP: server, MQTTAddr: netip.MustParseAddrPort(tap.Addr()),
			MQTTVersion: version.name, Dir: filepath.Join(dir, name), Mesh: flags,
		})
		cfg := g.Broker.Config()
		cfg.Lines = slices.Concat(cfg.Lines, brokerLines, lines)
		check(t, g.Broker.Configure(cfg))
		if err := g.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return g, tap
	}
	b, farTap := start("b", version.far, "--mesh-listen", "tcp://"+mesh.String(), "--advertise", "tcp://"+way.String())
	a, nearTap := start("a", nil, "--mesh-peer", "tcp://"+way.String())
	if err := peertest.Pair(t.Context(), b, a); err != nil {
		t.Fatal(err)
	}
	c.near, c.far, c.nearTap, c.farTap, c.nearGate, c.farGate = a.Broker, b.Broker, nearTap, farTap, a.Gateway, b.Gateway
	awaitCrossing(t, a, b)
	return c
}

// awaitCrossing waits until messages of a reach b: what is exported is subscribed to
// once a's gateway knows b.
func awaitCrossing(t *testing.T, a, b *peertest.Grid) {
	t.Helper()
	e := &estate{t: t}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	arrived := make(chan error, 1)
	go func() {
		_, err := e.client(ctx, b, "mosquitto_sub", "-t", "grid/a/house/first", "-C", "1", "-q", "1")
		arrived <- err
	}()
	for {
		e.publish(a, "-t", "house/first", "-m", "x", "-q", "1")
		select {
		case err := <-arrived:
			check(t, err)
			return
		case <-time.After(100 * time.Millisecond): // before the next try
		}
	}
}

// flow begins to publish at both qualities. Brokers that are to be killed are made to
// save what they have.
func (c *channel) flow(t *testing.T, prefix string, save bool) {
	t.Helper()
	if save {
		ctx, cancel := context.WithCancel(t.Context())
		var saving sync.WaitGroup
		t.Cleanup(func() { cancel(); saving.Wait() })
		for _, m := range []*peertest.Mosquitto{c.near, c.far} {
			saving.Go(func() { m.KeepSaving(ctx) })
		}
	}
	for _, qos := range []byte{1, 2} {
		f := peertest.MQTTFlow{
			From: c.near.MQTT, To: c.far.MQTT, Topic: fmt.Sprintf("house/flow%d", qos), Prefix: prefix, ID: fmt.Sprintf("flow%d", qos),
			QoS: qos, Topics: 5, Rate: 200, NearTap: c.nearTap, FarTap: c.farTap,
		}
		r, err := f.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c.flows = append(c.flows, r)
	}
}

// more waits until the near broker has acknowledged n more messages of each flow.
func (c *channel) more(t *testing.T, n int) {
	t.Helper()
	for _, r := range c.flows {
		from := r.Acked()
		for end := time.Now().Add(patience); r.Acked() < from+n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the near broker acknowledged %d messages in %v, want %d", r.Acked()-from, patience, n)
			}
		}
	}
}

// mqttFault is something that happens to a channel while messages flow.
type mqttFault struct {
	name string
	// broker: one is killed, and may itself lose and repeat what it had not written.
	broker bool
	// often: it is tried with MQTT 3.1.1 in each run of the tests, not in long ones alone.
	often bool
	do    func(t *testing.T, c *channel)
}

func killGate(pick func(*channel) []*peertest.Gateway) func(*testing.T, *channel) {
	return func(t *testing.T, c *channel) {
		for _, g := range pick(c) {
			check(t, g.Kill())
		}
		c.more(t, 60) // they are away so long
		for _, g := range pick(c) {
			if err := g.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func killBroker(pick func(*channel) *peertest.Mosquitto) func(*testing.T, *channel) {
	return func(t *testing.T, c *channel) {
		check(t, pick(c).Kill())
		time.Sleep(500 * time.Millisecond) // how long it is away is part of the fault
		if err := pick(c).Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// stopBroker lets a broker acknowledge nothing for a while, and say nothing.
func stopBroker(pick func(*channel) *peertest.Mosquitto) func(*testing.T, *channel) {
	return func(t *testing.T, c *channel) {
		check(t, pick(c).Signal(syscall.SIGSTOP))
		time.Sleep(3 * time.Second) // is the fault
		check(t, pick(c).Signal(syscall.SIGCONT))
	}
}

func nearBroker(c *channel) *peertest.Mosquitto { return c.near }
func farBroker(c *channel) *peertest.Mosquitto  { return c.far }

var mqttFaults = []mqttFault{
	{name: "none", do: func(*testing.T, *channel) {}},
	{name: "kill near gateway", do: killGate(func(c *channel) []*peertest.Gateway { return []*peertest.Gateway{c.nearGate} })},
	{name: "kill far gateway", often: true, do: killGate(func(c *channel) []*peertest.Gateway { return []*peertest.Gateway{c.farGate} })},
	{name: "kill both gateways", do: killGate(func(c *channel) []*peertest.Gateway { return []*peertest.Gateway{c.nearGate, c.farGate} })},
	{name: "kill near broker", broker: true, do: killBroker(nearBroker)},
	{name: "kill far broker", broker: true, often: true, do: killBroker(farBroker)},
	{name: "far broker stands still", often: true, do: stopBroker(farBroker)},
	{name: "kill far gateway of still broker", do: func(t *testing.T, c *channel) {
		check(t, c.far.Signal(syscall.SIGSTOP))
		c.more(t, 100) // of which the gateway has written as many as it may when it dies
		check(t, c.farGate.Kill())
		check(t, c.far.Signal(syscall.SIGCONT))
		if err := c.farGate.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}},
	{name: "near broker stands still", do: stopBroker(nearBroker)},
	{name: "link reset", do: func(t *testing.T, c *channel) {
		c.cable.Cut()
		time.Sleep(1500 * time.Millisecond)
		c.cable.Mend()
	}},
	{name: "blackhole", do: func(t *testing.T, c *channel) {
		c.cable.Stall()
		time.Sleep(3 * time.Second)
		c.cable.Mend()
	}},
	{name: "link down, then kill near gateway", do: func(t *testing.T, c *channel) {
		c.cable.Cut()
		c.more(t, 200)
		killGate(func(c *channel) []*peertest.Gateway { return []*peertest.Gateway{c.nearGate} })(t, c)
		c.cable.Mend()
	}},
}

// finish lets the flows end and returns what became of each.
func (c *channel) finish(t *testing.T, patience time.Duration) []peertest.MQTTResult {
	t.Helper()
	results := make([]peertest.MQTTResult, len(c.flows))
	var all sync.WaitGroup
	for i, r := range c.flows {
		all.Go(func() {
			var err error
			if results[i], err = r.Finish(t.Context(), patience); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return results
}

// faultRounds is how often each fault is tried.
func faultRounds() int {
	if long() {
		return 5
	}
	return 1
}

// try lets messages flow, does what is to be done and says what became of them, at
// QoS 1 and 2.
func (f *mqttFault) try(t *testing.T, c *channel, prefix string) []peertest.MQTTResult {
	t.Helper()
	c.flow(t, prefix, f.broker)
	c.more(t, 100)
	f.do(t, c)
	c.more(t, 200)
	began := time.Now()
	results := c.finish(t, patience)
	for i, r := range results {
		t.Logf("%s, QoS %d: %v; all there after %v", f.name, i+1, r, time.Since(began).Round(100*time.Millisecond))
	}
	return results
}

// TestMQTTFaults is the promise of what is acknowledged: whatever dies between two
// brokers, nothing is lost, at QoS 2 nothing comes twice, and topics keep their order.
func TestMQTTFaults(t *testing.T) {
	t.Parallel()
	for _, version := range []mqttVersion{mqtt5, mqtt311} {
		for _, f := range mqttFaults {
			if version.code != mqtt5.code && !f.often && !long() {
				continue
			}
			for round := range faultRounds() {
				t.Run(fmt.Sprintf("MQTT %s/%s/%d", version.name, f.name, round+1), func(t *testing.T) {
					t.Parallel()
					c := newChannel(t, version)
					for i, r := range f.try(t, c, "grid/a/") {
						f.judge(t, byte(i+1), r)
					}
					if !c.nearTap.Spoke(version.code) || !c.farTap.Spoke(version.code) {
						t.Errorf("a gateway has not spoken MQTT %s, or something else, too", version.name)
					}
				})
			}
		}
	}
}

// judge fails the test for what no broker did that was killed.
func (f *mqttFault) judge(t *testing.T, qos byte, r peertest.MQTTResult) {
	t.Helper()
	lost, dup := r.Lost, r.Dup
	if f.broker {
		lost, dup = r.LostBetween, r.DupBetween
	}
	if lost > 0 || qos == 2 && dup > 0 || r.Disorder > 0 {
		t.Errorf("QoS %d: lost %d, repeated %d, out of order %d", qos, lost, dup, r.Disorder)
	}
	if r.Acked == 0 {
		t.Error("nothing was acknowledged")
	}
}

// newBridge puts mosquitto's own bridge between two brokers.
func newBridge(t *testing.T) *channel {
	t.Helper()
	peertest.Require(t, "mosquitto")
	dir, c := t.TempDir(), &channel{}
	broker := func(name string, lines ...string) *peertest.Mosquitto {
		m, err := peertest.NewMosquitto(peertest.MosquittoConfig{
			Name: name, IP: peertest.Loopback(), Dir: filepath.Join(dir, name), Lines: append(lines, brokerLines...),
		})
		if err != nil {
			t.Fatal(err)
		}
		peertest.Run(t, m)
		return m
	}
	c.far = broker("far")
	var way netip.AddrPort
	c.cable, way = newCable(t, c.far.MQTT)
	c.near = broker("near", peertest.BridgeLines(way, "house/#", "grid/a/")...)
	awaitCrossing(t, &peertest.Grid{Name: "near", Broker: c.near}, &peertest.Grid{Name: "far", Broker: c.far})
	return c
}

// TestMQTTBridgeFaults is mosquitto's own bridge in the same harness, for comparison:
// what it loses is logged, and fails nothing. Without gateways the near broker is what
// the gateway would be.
func TestMQTTBridgeFaults(t *testing.T) {
	t.Parallel()
	for _, f := range mqttFaults {
		switch f.name {
		case "kill near gateway", "kill far gateway", "kill both gateways", "kill far gateway of still broker":
			continue
		case "link down, then kill near gateway":
			f = mqttFault{name: "link down, then kill near broker", broker: true, do: func(t *testing.T, c *channel) {
				c.cable.Cut()
				c.more(t, 200)
				killBroker(nearBroker)(t, c)
				c.cable.Mend()
			}}
		}
		if !long() && f.name != "none" {
			continue // that the harness runs is enough
		}
		for round := range faultRounds() {
			t.Run(fmt.Sprintf("%s/%d", f.name, round+1), func(t *testing.T) {
				t.Parallel()
				f.try(t, newBridge(t), "grid/a/")
			})
		}
	}
}
