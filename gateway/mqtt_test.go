//go:build integration

package gateway_test

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// estate is grids with a mosquitto each, every two of them peers.
type estate struct {
	t     *testing.T
	grids []*peertest.Grid
}

// newEstate starts grids a, b, c, of which the first can be reached by the others.
func newEstate(t *testing.T, mqtt string, names ...string) *estate {
	t.Helper()
	peertest.Require(t, "mosquitto")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	e := &estate{t: t}
	for i, name := range names {
		cfg := peertest.GridConfig{Name: name, MQTT: true, MQTTConfig: mqtt, Dir: filepath.Join(dir, name)}
		if i == 0 {
			cfg.Mesh = []string{"--mesh-listen", mesh, "--advertise", mesh}
		} else {
			cfg.Mesh = []string{"--mesh-peer", mesh}
		}
		g := newGrid(t, cfg)
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
		for _, other := range e.grids {
			if err := peertest.Pair(ctx, other, g); err != nil {
				t.Fatal(err)
			}
		}
		e.grids = append(e.grids, g)
	}
	return e
}

// client runs mosquitto_pub or mosquitto_sub with a grid's broker.
func (e *estate) client(ctx context.Context, g *peertest.Grid, program string, args ...string) (string, error) {
	where := []string{"-h", g.Broker.MQTT.Addr().String(), "-p", strconv.Itoa(int(g.Broker.MQTT.Port())), "-V", "5"}
	var said strings.Builder
	cmd := exec.CommandContext(ctx, program, append(where, args...)...)
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, &said)
	}
	return string(out), err
}

func (e *estate) publish(g *peertest.Grid, args ...string) {
	e.t.Helper()
	if out, err := e.client(e.t.Context(), g, "mosquitto_pub", args...); err != nil {
		e.t.Fatal(err, out)
	}
}

// retained returns what a broker retains below a filter, as "topic payload", sorted.
func (e *estate) retained(g *peertest.Grid, filter string) []string {
	e.t.Helper()
	out, err := e.client(e.t.Context(), g, "mosquitto_sub", "-t", filter, "-v", "--retained-only", "-W", "1")
	if err != nil && !strings.Contains(err.Error(), "exit status 27") { // timed out, as it always does
		e.t.Fatal(err, out)
	}
	lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
	slices.Sort(lines)
	return lines
}

func (e *estate) awaitRetained(g *peertest.Grid, filter string, want ...string) {
	e.t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(time.Minute); ; {
		if got = e.retained(g, filter); slices.Equal(got, want) {
			return
		}
		if time.Now().After(end) {
			e.t.Fatalf("%s has %q below %s, want %q", g.Name, got, filter, want)
		}
	}
}

const shareAll = `  mqtt:
    export: [{filter: "house/#"}]
    import: [{filter: "house/#"}]
    availability: [{topic: "house/{peer}/up"}]
`

// TestMQTTFederation is what operators do with topics, across grids.
func TestMQTTFederation(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "a", "b")
	a, b := e.grids[0], e.grids[1]
	e.publish(a, "-t", "house/hall/temp", "-m", "21", "-r", "-q", "2")
	e.publish(a, "-t", "house/hall/hum", "-m", "40", "-r", "-q", "0")
	e.publish(a, "-t", "secret/x", "-m", "no", "-r", "-q", "1")
	e.awaitRetained(b, "grid/a/#", "grid/a/house/hall/hum 40", "grid/a/house/hall/temp 21")
	e.awaitRetained(b, "$grid/+/state", "$grid/a/state online", "$grid/self/state online")
	e.awaitRetained(b, "house/a/up", "house/a/up online")

	// The far gateway is away: what changes meanwhile is right afterwards, and b's own
	// clients know that it is not so now.
	if err := a.Gateway.Kill(); err != nil {
		t.Fatal(err)
	}
	e.awaitRetained(b, "house/a/up", "house/a/up offline")
	e.awaitRetained(b, "$grid/+/state", "$grid/a/state offline", "$grid/self/state online")
	e.awaitRetained(a, "$grid/self/state", "$grid/self/state offline")
	e.publish(a, "-t", "house/hall/temp", "-m", "22", "-r", "-q", "1")
	e.publish(a, "-t", "house/hall/hum", "-n", "-r", "-q", "0")
	e.publish(a, "-t", "house/door", "-m", "open", "-r", "-q", "0")
	if err := a.Gateway.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.awaitRetained(b, "grid/a/#", "grid/a/house/hall/temp 22", "grid/a/house/door open")
	if out, err := a.Gateway.Run(t.Context(), "route", "mqtt:house/door"); err != nil || !strings.Contains(out, "b gets it as house/door") {
		t.Errorf("route: %v\n%s", err, out)
	}
	out, err := a.Gateway.Run(t.Context(), "status")
	if err != nil || !strings.Contains(out, "MQTT 5") {
		t.Errorf("status: %v\n%s", err, out)
	}
}
