//go:build integration

package gateway_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// mixed is a grid e whose broker is ejabberd, on the lines that `yggate setup
// ejabberd-mqtt` prints, and a peer m with a mosquitto.
type mixed struct {
	e, m *peertest.Grid
	// ends are their brokers, by the names of the grids.
	ends map[string]end
}

func newMixed(t *testing.T) *mixed {
	t.Helper()
	peertest.Require(t, "mosquitto", "ejabberd", "erlang")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	e := newGrid(t, peertest.GridConfig{
		Name: "e", Kind: setup.Ejabberd, Domain: "e.grid", MQTT: true, EjabberdMQTT: true, MQTTConfig: shareAll, Dir: filepath.Join(dir, "e"),
		Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh},
	})
	m := newGrid(t, peertest.GridConfig{Name: "m", MQTT: true, MQTTConfig: shareAll, Dir: filepath.Join(dir, "m"), Mesh: []string{"--mesh-peer", mesh}})
	for _, g := range []*peertest.Grid{e, m} {
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := peertest.Pair(ctx, e, m); err != nil {
		t.Fatal(err)
	}
	const device = "device"
	if err := e.Server.AddUser(ctx, device, peertest.Password(device)); err != nil {
		t.Fatal(err)
	}
	x := &mixed{e: e, m: m, ends: map[string]end{
		"e": {e.Server.MQTT, peertest.MQTTLogin{User: device + "@e.grid", Password: peertest.Password(device)}}, "m": {broker: m.Broker.MQTT},
	}}
	x.both(t, func(t *testing.T, from, to string) { x.awaitCrossing(t, from, to, "first") })
	return x
}

// both does something from each grid to the other.
func (x *mixed) both(t *testing.T, do func(t *testing.T, from, to string)) {
	t.Helper()
	do(t, "e", "m")
	do(t, "m", "e")
}

// awaitCrossing waits until what a grid retains reaches the other, with a payload of
// its own.
func (x *mixed) awaitCrossing(t *testing.T, from, to, payload string) {
	t.Helper()
	x.ends[from].user(t, "", nil).put(t, &paho.Publish{Topic: "house/first", QoS: 1, Retain: true, Payload: []byte(payload)})
	x.ends[to].user(t, "grid/"+from+"/house/first", nil).await(t, payload)
}

// TestMQTTEjabberd is ejabberd as the broker of one side.
func TestMQTTEjabberd(t *testing.T) {
	t.Parallel()
	x := newMixed(t)
	t.Run("where peers stand", func(t *testing.T) {
		x.ends["e"].awaitRetained(t, "grid-state/#", "grid-state/m/state online", "grid-state/self/state online")
		x.ends["e"].awaitRetained(t, "house/m/up", "house/m/up online")
	})
	t.Run("messages", func(t *testing.T) { x.both(t, x.messages) })
	t.Run("retained", func(t *testing.T) { x.both(t, x.retains) })
	t.Run("retained while the gateway is away", x.retainsAway)
	t.Run("requests", func(t *testing.T) {
		x.both(t, func(t *testing.T, from, to string) { askAndAnswer(t, from, x.ends[from], x.ends[to]) })
	})
	t.Run("killed", x.killed)
}

// messages sends some at each QoS, which all arrive once and in order.
func (x *mixed) messages(t *testing.T, from, to string) {
	const count = 60
	c, pub := x.ends[to].user(t, "grid/"+from+"/house/+/n", nil), x.ends[from].user(t, "", nil)
	want := map[byte][]string{}
	for i := range count {
		qos := byte(1 + i%2)
		pub.put(t, &paho.Publish{Topic: fmt.Sprintf("house/%d/n", qos), QoS: qos, Payload: []byte(strconv.Itoa(i))})
		want[qos] = append(want[qos], strconv.Itoa(i))
	}
	for qos, all := range want {
		c.await(t, all[len(all)-1])
		if got := c.payloads(fmt.Sprintf("grid/%s/house/%d/", from, qos)); !slices.Equal(got, all) {
			t.Errorf("from %s to %s at QoS %d came %q, want %q", from, to, qos, got, all)
		}
	}
	for _, p := range c.messages() {
		if want := "grid/" + from + "/house/" + strconv.Itoa(int(p.QoS)) + "/n"; p.Topic != want || p.Retain || p.Properties.SubscriptionIdentifier != nil {
			t.Errorf("%s arrived at QoS %d with %+v", p.Topic, p.QoS, p.Properties)
		}
	}
}

// retains publishes, changes and clears what is retained.
func (x *mixed) retains(t *testing.T, from, to string) {
	pub := x.ends[from].user(t, "", nil)
	filter, name := "grid/"+from+"/house/r/#", "grid/"+from+"/house/r/"
	keep := func(topic, payload string) {
		pub.put(t, &paho.Publish{Topic: "house/r/" + topic, QoS: 1, Retain: true, Payload: []byte(payload)})
	}
	keep("a", "1")
	keep("b", "1")
	x.ends[to].awaitRetained(t, filter, name+"a 1", name+"b 1")
	keep("a", "2")
	keep("b", "")
	x.ends[to].awaitRetained(t, filter, name+"a 2")
	keep("a", "")
	x.ends[to].awaitRetained(t, filter)
}

// retainsAway has what is retained at ejabberd change while its gateway is not there, and
// ejabberd forget what it has for the gateway.
func (x *mixed) retainsAway(t *testing.T) {
	keep := func(topic, payload string) {
		x.ends["e"].user(t, "", nil).put(t, &paho.Publish{Topic: "house/away/" + topic, QoS: 1, Retain: true, Payload: []byte(payload)})
	}
	const filter, name = "grid/e/house/away/#", "grid/e/house/away/"
	for _, topic := range []string{"changed", "cleared", "same"} {
		keep(topic, "before")
	}
	x.ends["m"].awaitRetained(t, filter, name+"changed before", name+"cleared before", name+"same before")
	check(t, x.e.Gateway.Kill())
	x.ends["e"].awaitRetained(t, "grid-state/self/state", "grid-state/self/state offline") // its will
	keep("changed", "after")
	keep("cleared", "")
	keep("new", "after")
	if err := x.e.Server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := x.e.Gateway.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.ends["m"].awaitRetained(t, filter, name+"changed after", name+"new after", name+"same before")
}

// killed kills ejabberd while messages go both ways. What it had acknowledged and not
// given on is lost with it, for its sessions are in memory; what the gateways took is
// not.
func (x *mixed) killed(t *testing.T) {
	taps := map[string]*peertest.MQTTTap{}
	for name, g := range map[string]*peertest.Grid{"e": x.e, "m": x.m} {
		taps[name] = newTap(t, x.ends[name].broker)
		replaceText(t, g.Gateway.Config, "mqtt://"+x.ends[name].broker.String(), "mqtt://"+taps[name].Addr())
		if err := g.Gateway.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	x.both(t, func(t *testing.T, from, to string) { x.awaitCrossing(t, from, to, "second") })
	c := &channel{}
	x.both(t, func(t *testing.T, from, to string) {
		near, far := x.ends[from], x.ends[to]
		for _, qos := range []byte{1, 2} {
			f := peertest.MQTTFlow{
				From: near.broker, To: far.broker, FromLogin: near.as, ToLogin: far.as, Topic: fmt.Sprintf("house/%s%d", from, qos), Prefix: "grid/" + from + "/",
				ID: fmt.Sprintf("flow-%s%d", from, qos), QoS: qos, Topics: 5, Rate: 200, NearTap: taps[from], FarTap: taps[to],
			}
			r, err := f.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c.flows = append(c.flows, r)
		}
	})
	c.more(t, 50)
	// ejabberd writes what it retains seconds later: it forgets that, and is told again.
	x.ends["m"].user(t, "", nil).put(t, &paho.Publish{Topic: "house/kept", QoS: 1, Retain: true, Payload: []byte("kept")})
	x.ends["e"].user(t, "grid/m/house/kept", nil).await(t, "kept")
	check(t, x.e.Server.Kill())
	if err := x.e.Server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.more(t, 50)
	x.both(t, func(t *testing.T, from, to string) { x.awaitCrossing(t, from, to, "third") })
	c.more(t, 50)
	x.ends["e"].awaitRetained(t, "grid/m/house/kept", "grid/m/house/kept kept")
	for i, r := range c.finish(t, 5*time.Second) {
		t.Logf("%s, QoS %d: %v", []string{"from ejabberd", "to ejabberd"}[i/2], 1+i%2, r)
		if r.LostBetween > 0 || i%2 == 1 && r.DupBetween > 0 {
			t.Errorf("the gateways lost %d and repeated %d", r.LostBetween, r.DupBetween)
		}
	}
}

// replaceText replaces what stands once in a file.
func replaceText(t *testing.T, file, old, text string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), old); n != 1 {
		t.Fatalf("%q stands %d times in %s", old, n, file)
	}
	check(t, os.WriteFile(file, []byte(strings.Replace(string(b), old, text, 1)), 0o600))
}
