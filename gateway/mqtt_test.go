//go:build integration

package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// estate is grids with a mosquitto each, every two of them peers.
type estate struct {
	t       *testing.T
	grids   []*peertest.Grid
	metrics map[*peertest.Grid]netip.AddrPort
}

// newEstate starts grids a, b, c, of which the first can be reached by the others.
// mqtt goes into peer_defaults, and each, if not empty, is MQTT's part of each peer.
func newEstate(t *testing.T, mqtt, each string, names ...string) *estate {
	t.Helper()
	peertest.Require(t, "mosquitto")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	e := &estate{t: t, metrics: map[*peertest.Grid]netip.AddrPort{}}
	for i, name := range names {
		cfg := peertest.GridConfig{Name: name, MQTT: true, MQTTConfig: mqtt, Dir: filepath.Join(dir, name)}
		if i == 0 {
			cfg.Mesh = []string{"--mesh-listen", mesh, "--advertise", mesh}
		} else {
			cfg.Mesh = []string{"--mesh-peer", mesh}
		}
		metrics := netip.AddrPortFrom(peertest.Loopback(), 9464)
		cfg.Mesh = append(cfg.Mesh, "--metrics", metrics.String())
		g := newGrid(t, cfg)
		e.metrics[g] = metrics
		if each != "" {
			addPeers(t, g, each, names)
		}
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

// metric adds up the values of a gateway's metric whose labels begin so.
func (e *estate) metric(g *peertest.Grid, begin string) (sum float64) {
	e.t.Helper()
	res, err := http.Get("http://" + e.metrics[g].String() + "/metrics")
	if err != nil {
		e.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		e.t.Fatalf("metrics: %s, %v", res.Status, err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, begin) {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
			check(e.t, err)
			sum += v
		}
	}
	return sum
}

// awaitMetric waits until a metric has reached a value.
func (e *estate) awaitMetric(g *peertest.Grid, begin string, least float64) {
	e.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		have := e.metric(g, begin)
		if have >= least {
			return
		}
		if time.Now().After(end) {
			e.t.Fatalf("%s of %s is %v, want %v", begin, g.Name, have, least)
		}
	}
}

// addPeers writes settings of peers into a configuration that has none.
func addPeers(t *testing.T, g *peertest.Grid, mqtt string, names []string) {
	t.Helper()
	text := "\npeers:\n"
	for _, name := range names {
		if name != g.Name {
			text += "  " + name + ": {mqtt: " + mqtt + "}\n"
		}
	}
	addText(t, g.Gateway.Config, text)
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

const shareAll = `  mqtt:
    export: [{filter: "house/#"}]
    import: [{filter: "house/#"}]
    availability: [{topic: "house/{peer}/up"}]
`

// TestMQTTFederation is what operators do with topics, across grids.
func TestMQTTFederation(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	e.publish(a, "-t", "house/hall/temp", "-m", "21", "-r", "-q", "2")
	e.publish(a, "-t", "house/hall/hum", "-m", "40", "-r", "-q", "0")
	e.publish(a, "-t", "secret/x", "-m", "no", "-r", "-q", "1")
	at(b).awaitRetained(t, "grid/a/#", "grid/a/house/hall/hum 40", "grid/a/house/hall/temp 21")
	at(b).awaitRetained(t, "$grid/+/state", "$grid/a/state online", "$grid/self/state online")
	at(b).awaitRetained(t, "house/a/up", "house/a/up online")

	// The far gateway is away: what changes meanwhile is right afterwards, and b's own
	// clients know that it is not so now.
	if err := a.Gateway.Kill(); err != nil {
		t.Fatal(err)
	}
	at(b).awaitRetained(t, "house/a/up", "house/a/up offline")
	at(b).awaitRetained(t, "$grid/+/state", "$grid/a/state offline", "$grid/self/state online")
	at(a).awaitRetained(t, "$grid/self/state", "$grid/self/state offline")
	e.publish(a, "-t", "house/hall/temp", "-m", "22", "-r", "-q", "1")
	e.publish(a, "-t", "house/hall/hum", "-n", "-r", "-q", "0")
	e.publish(a, "-t", "house/door", "-m", "open", "-r", "-q", "0")
	if err := a.Gateway.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	at(b).awaitRetained(t, "grid/a/#", "grid/a/house/hall/temp 22", "grid/a/house/door open")
	if out, err := a.Gateway.Run(t.Context(), "route", "mqtt:house/door"); err != nil || !strings.Contains(out, "b gets it as house/door") {
		t.Errorf("route: %v\n%s", err, out)
	}
	out, err := a.Gateway.Run(t.Context(), "status")
	if err != nil || !strings.Contains(out, "MQTT 5") {
		t.Errorf("status: %v\n%s", err, out)
	}
}

// TestMQTTRequest is a request and its reply across grids, with an ordinary client, and
// what MQTT 5 says of a message beside its payload.
func TestMQTTRequest(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	awaitTopic(t, a, b, "house/first")
	awaitTopic(t, b, a, "house/first") // b's gateway has subscribed, to replies as well
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	// The responder of b answers to where it is asked to.
	asked := make(chan string, 1)
	go func() {
		out, err := e.client(ctx, b, "mosquitto_sub", "-i", "watcher", "-t", "grid/a/house/ask", "-C", "1", "-q", "2",
			"-F", "%p|%R|%D|%C|%E|%P")
		if err != nil {
			out = err.Error()
		}
		asked <- strings.TrimSpace(out)
	}()
	e.awaitSubscribers(b, "grid/a/house/ask")
	answer := make(chan string, 1)
	go func() {
		out, err := e.client(ctx, a, "mosquitto_sub", "-i", "watcher", "-t", "re/7", "-C", "1", "-q", "2", "-F", "%p|%D")
		if err != nil {
			out = err.Error()
		}
		answer <- strings.TrimSpace(out)
	}()
	e.awaitSubscribers(a, "re/7")
	e.publish(a, "-t", "house/ask", "-m", "what?", "-q", "2",
		"-D", "PUBLISH", "response-topic", "re/7", "-D", "PUBLISH", "correlation-data", "c0ffee", "-D", "PUBLISH", "content-type", "text/x",
		"-D", "PUBLISH", "message-expiry-interval", "600", "-D", "PUBLISH", "user-property", "k", "v")
	got := <-asked
	fields := strings.Split(got, "|")
	if len(fields) != 6 || fields[0] != "what?" || fields[1] != "grid/a/reply/re/7" || fields[2] != "c0ffee" || fields[3] != "text/x" || !strings.HasPrefix(fields[5], "k:v") {
		t.Fatalf("the responder was asked %q", got)
	}
	if n, err := strconv.Atoi(fields[4]); err != nil || n < 500 || n > 600 {
		t.Errorf("it expires in %s, want a little less than 600", fields[4])
	}
	e.publish(b, "-t", fields[1], "-m", "that", "-q", "2", "-D", "PUBLISH", "correlation-data", "c0ffee")
	if got := <-answer; got != "that|c0ffee" {
		t.Errorf("the answer is %q", got)
	}
}

// awaitSubscribers waits until the client "watcher" has a filter at a grid's broker.
func (e *estate) awaitSubscribers(g *peertest.Grid, topic string) {
	e.t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		if text, err := os.ReadFile(g.Broker.LogFile()); err == nil && strings.Contains(string(text), "watcher 2 "+topic) {
			return
		}
		if time.Now().After(end) {
			e.t.Fatalf("nobody subscribes to %s at %s", topic, g.Name)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestMQTTRing is three grids that share all with each other: each message arrives
// once.
func TestMQTTRing(t *testing.T) {
	t.Parallel()
	e := newEstate(t, "", `{export: [{filter: "house/#", transit: true}], import: [{filter: "house/#", to: "house/{1}"}]}`, "a", "b", "c")
	got := map[*peertest.Grid]*mqttClient{}
	for _, g := range e.grids {
		got[g] = mqttUser(t, g.Broker, "house/#", nil)
	}
	for _, g := range e.grids { // until its gateway has subscribed
		warm := "warm " + g.Name
		cold := func(other *peertest.Grid) bool { return !slices.Contains(got[other].payloads("house/warm"), warm) }
		for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
			got[g].put(t, &paho.Publish{Topic: "house/warm", QoS: 1, Payload: []byte(warm)})
			if !slices.ContainsFunc(e.grids, cold) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("what %s publishes does not reach all in %v", g.Name, patience)
			}
		}
	}
	var want []string
	// What is published last is behind all that might come again.
	for _, round := range []int{28, 1, 1} {
		for range round {
			for _, g := range e.grids {
				payload := strconv.Itoa(len(want))
				got[g].put(t, &paho.Publish{Topic: "house/n/" + g.Name, QoS: byte(1 + len(want)%2), Payload: []byte(payload)})
				want = append(want, payload)
			}
		}
		for _, g := range e.grids {
			for _, payload := range want {
				got[g].await(t, payload)
			}
		}
	}
	slices.Sort(want)
	for _, g := range e.grids {
		has := got[g].payloads("house/n/")
		slices.Sort(has)
		if !slices.Equal(has, want) {
			t.Errorf("%s has %d messages, want %d: %v", g.Name, len(has), len(want), has)
		}
	}
}

// addText adds to the end of a file.
func addText(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	check(t, errors.Join(err, f.Close()))
}
