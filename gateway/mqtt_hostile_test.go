//go:build integration

package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
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

// covers is the reference for filters of MQTT 5 §4.7, level by level.
func covers(filter, name []string) bool {
	switch {
	case len(filter) > 0 && filter[0] == "#":
		return true
	case len(filter) == 0 || len(name) == 0:
		return len(filter) == len(name)
	}
	return (filter[0] == "+" || filter[0] == name[0]) && covers(filter[1:], name[1:])
}

// matchesAny says whether one of the filters covers a name; none covers "$...".
func matchesAny(filters []string, name string) bool {
	return !strings.HasPrefix(name, "$") && slices.ContainsFunc(filters, func(f string) bool {
		return covers(strings.Split(f, "/"), strings.Split(name, "/"))
	})
}

// TestMQTTConsent publishes random topics: what both sides name crosses, and nothing
// else.
func TestMQTTConsent(t *testing.T) {
	t.Parallel()
	exports := []string{"house/+/temp", "lab/#", "+/x", "/"}
	imports := []string{"house/#", "lab/+/open", "y/x", "+/+"}
	rules := func(filters []string) string {
		return `[{filter: "` + strings.Join(filters, `"}, {filter: "`) + `"}]`
	}
	e := newEstate(t, fmt.Sprintf("  mqtt:\n    export: %s\n    import: %s\n", rules(exports), rules(imports)), "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	awaitTopic(t, a, b, "lab/first/open")
	to, from := mqttUser(t, b.Broker, "#", nil), mqttUser(t, a.Broker, "", nil)
	levels := []string{"house", "lab", "x", "y", "temp", "open", "", "$x"}
	var want []string
	for i := range 1000 {
		var name []string
		for range 1 + rand.N(4) {
			name = append(name, levels[rand.N(len(levels))])
		}
		topic := strings.Join(name, "/")
		if topic == "" {
			continue // no topic
		}
		from.publish(t, topic, strconv.Itoa(i))
		if matchesAny(exports, topic) && matchesAny(imports, topic) {
			want = append(want, "grid/a/"+topic+" "+strconv.Itoa(i))
		}
	}
	// Items go in order; only topics overtake each other at the far gateway.
	for _, last := range []string{"last", "very last"} {
		from.publish(t, "lab/last/open", last)
		to.await(t, last)
	}
	for end := time.Now().Add(patience); len(to.payloads("grid/a/"))-2 < len(want) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	var got []string
	for _, p := range to.messages() {
		if strings.HasPrefix(p.Topic, "$grid/") || strings.HasSuffix(string(p.Payload), "last") || strings.HasSuffix(p.Topic, "/first/open") {
			continue
		}
		got = append(got, p.Topic+" "+string(p.Payload))
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(want) < 50 || !slices.Equal(got, want) {
		t.Errorf("%d crossed, want %d: %q", len(got), len(want), difference(got, want))
	}
}

// difference is what only one of two sorted lists has.
func difference(a, b []string) (only []string) {
	for _, pair := range [][2][]string{{a, b}, {b, a}} {
		for _, s := range pair[0] {
			if _, ok := slices.BinarySearch(pair[1], s); !ok && len(only) < 20 {
				only = append(only, s)
			}
		}
	}
	return only
}

// awaitTopic waits until a retained message of a's has come to b.
func awaitTopic(t *testing.T, a, b *peertest.Grid, topic string) {
	t.Helper()
	e := &estate{t: t}
	e.publish(a, "-t", topic, "-m", "x", "-r", "-q", "1")
	at(b).awaitRetained(t, "grid/"+a.Name+"/"+topic, "grid/"+a.Name+"/"+topic+" x")
	e.publish(a, "-t", topic, "-n", "-r", "-q", "1")
	at(b).awaitRetained(t, "grid/"+a.Name+"/"+topic)
}

// TestMQTTProperties asks and answers across grids with an ordinary client, and
// compares all that MQTT 5 says of a message at both ends.
func TestMQTTProperties(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	awaitTopic(t, a, b, "house/first")
	askAndAnswer(t, "a", at(a), at(b))
}

// askAndAnswer asks at one end, which the other knows by that name, and answers there.
func askAndAnswer(t *testing.T, name string, from, to end) {
	t.Helper()
	utf8 := byte(1)
	question := &paho.Publish{Topic: "house/ask", QoS: 2, Payload: []byte("what?"), Properties: &paho.PublishProperties{
		PayloadFormat: &utf8, ContentType: "text/x", ResponseTopic: "re/7", CorrelationData: []byte{0, 1, 0xff},
		User: paho.UserProperties{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}, {Key: "", Value: ""}},
	}}
	asked := make(chan *paho.Publish, 1)
	responder := to.user(t, "grid/"+name+"/house/ask", func(p *paho.Publish) { asked <- p })
	answers := from.user(t, "re/#", nil)
	from.user(t, "", nil).put(t, question)
	var got *paho.Publish
	select {
	case got = <-asked:
	case <-time.After(patience):
		t.Fatalf("nobody was asked in %v", patience)
	}
	p, q := got.Properties, question.Properties
	user := slices.DeleteFunc(slices.Clone(p.User), func(u paho.UserProperty) bool { return strings.HasPrefix(u.Key, "grid-") })
	if string(got.Payload) != "what?" || got.QoS != 2 || p.PayloadFormat == nil || *p.PayloadFormat != 1 || p.ContentType != q.ContentType ||
		string(p.CorrelationData) != string(q.CorrelationData) || !slices.Equal(user, q.User) || p.SubscriptionIdentifier != nil {
		t.Errorf("%v arrived with %+v, want %+v", got, p, q)
	}
	responder.put(t, &paho.Publish{Topic: p.ResponseTopic, QoS: 2, Payload: []byte("that"), Properties: &paho.PublishProperties{CorrelationData: p.CorrelationData}})
	answers.await(t, "that")
	if r := answers.messages()[0]; r.Topic != "re/7" || string(r.Properties.CorrelationData) != string(q.CorrelationData) {
		t.Errorf("the answer is %v with %+v", r, r.Properties)
	}
}

// TestMQTTOverflow fills the queue to a peer that is away, under each policy.
func TestMQTTOverflow(t *testing.T) {
	t.Parallel()
	const room, sent = 50, 300
	for policy, judge := range map[string]func(first, last, n int) bool{
		"block":       func(first, last, n int) bool { return first == 1 && last == sent && n == sent },
		"drop_oldest": func(first, last, n int) bool { return first > 1 && last == sent && n <= room },
		"drop_newest": func(first, last, n int) bool { return first == 1 && last < sent && n <= room },
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			e := newEstate(t, fmt.Sprintf("  limits: {queue_items: %d}\n%s    overflow: %s\n", room, shareAll, policy), "", "a", "b")
			a, b := e.grids[0], e.grids[1]
			awaitTopic(t, a, b, "house/first")
			to, from := mqttUser(t, b.Broker, "grid/a/house/n", nil), mqttUser(t, a.Broker, "", nil)
			check(t, b.Gateway.Kill())
			at(a).awaitRetained(t, "$grid/b/state", "$grid/b/state offline") // what is on its way is not dropped
			dropped := e.metric(a, `yggate_mqtt_dropped_total{dir="out",peer="b"`)
			for i := range sent {
				from.publish(t, "house/n", strconv.Itoa(i+1))
			}
			if policy != "block" { // with which the last wait at the broker
				e.awaitMetric(a, `yggate_mqtt_dropped_total{dir="out",peer="b"`, dropped+sent-room)
			}
			if err := b.Gateway.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := a.AwaitUp(t.Context(), "b"); err != nil {
				t.Fatal(err)
			}
			awaitTopic(t, a, b, "house/done") // goes after the others
			got := to.payloads("")
			slices.SortFunc(got, func(x, y string) int { return number(x) - number(y) })
			got = slices.Compact(got)
			if len(got) == 0 || !judge(number(got[0]), number(got[len(got)-1]), len(got)) {
				t.Errorf("of 1 to %d with room for %d there came %d: %.300q", sent, room, len(got), got)
			}
		})
	}
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1
	}
	return n
}

// TestMQTTTooBig: a message over the limit does not cross, and what comes after it does.
func TestMQTTTooBig(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	awaitTopic(t, a, b, "house/first")
	to, from := mqttUser(t, b.Broker, "grid/a/house/n", nil), mqttUser(t, a.Broker, "", nil)
	for _, size := range []int{2 << 20, 961 << 10, 959 << 10} {
		from.publish(t, "house/n", strings.Repeat("x", size))
	}
	from.publish(t, "house/n", "after")
	to.await(t, "after")
	for _, p := range to.payloads("") {
		if len(p) > 960<<10 {
			t.Errorf("%d bytes crossed", len(p))
		}
	}
	if n := len(to.payloads("")); n > 2 {
		t.Errorf("%d messages crossed", n)
	}
}

// madness is what a broker may send that has lost its mind, after CONNACK.
var madness = map[string]string{
	"a packet of 256 MiB":                 "\x30\xff\xff\xff\x7f\x00\x01a",
	"a length of five bytes":              "\x30\xff\xff\xff\xff\x7f\x00\x01a",
	"a topic with NUL":                    "\x30\x06\x00\x03a\x00b\x00",
	"a topic with a wildcard":             "\x30\x06\x00\x03a/#\x00",
	"QoS 3":                               "\x36\x06\x00\x01a\x00\x01\x00",
	"an acknowledgement of nothing":       "\x40\x02\x77\x77",
	"a property that is no one's":         "\x30\x07\x00\x01a\x03\x7f\x00\x00",
	"a second CONNACK":                    "\x20\x03\x00\x00\x00",
	"a packet that only a client may say": "\xc0\x00",
	"a topic longer than its packet":      "\x30\x04\xff\xffab",
}

// TestMQTTMadBroker: a gateway outlives what a broker sends that it must not, says
// goodbye to it, and goes on with a sane one.
func TestMQTTMadBroker(t *testing.T) {
	t.Parallel()
	peertest.Require(t, "mosquitto")
	for what, bytes := range madness {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := peertest.Loopback()
			g := newGrid(t, peertest.GridConfig{Name: "a", MQTT: true, MQTTConfig: shareAll, ServerIP: server, Dir: filepath.Join(t.TempDir(), "a")})
			l, err := net.Listen("tcp", netip.AddrPortFrom(server, 1883).String())
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Gateway.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			for sent := false; !sent; {
				sent = mad(t, l, "\x20\x03\x00\x00\x00", bytes)
			}
			check(t, l.Close())
			if err := g.Broker.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			at(g).awaitRetained(t, "$grid/self/state", "$grid/self/state online")
			mem, err := g.Gateway.Memory()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("highest resident %.1f MiB", float64(mem.Peak)/(1<<20))
			if mem.Peak > 128<<20 {
				t.Errorf("it took %d bytes", mem.Peak)
			}
		})
	}
}

// mad takes a connection and answers CONNECT with hello. Where that does not ask for a
// clean start, which is followed by a connection that does not, it sends what is mad and
// wants to be left with a DISCONNECT that says of an error (MQTT 5 §4.13).
func mad(t *testing.T, l net.Listener, hello, bytes string) bool {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	check(t, conn.SetReadDeadline(time.Now().Add(patience)))
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	_, flags, ok := strings.Cut(string(buf[:n]), "MQTT\x05")
	if err != nil || !ok || flags == "" {
		t.Fatalf("%q is no CONNECT: %v", buf[:n], err)
	}
	again := flags[0]&2 == 0
	if again {
		hello += bytes
	}
	if _, err := conn.Write([]byte(hello)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(conn)
	if netErr, ok := err.(net.Error); ok && netErr.Timeout() {
		t.Error("the gateway stays with such a broker")
	}
	if tail := said[max(0, len(said)-64):]; again && !strings.Contains(string(tail), "\xe0") {
		t.Errorf("it left with %q, and no DISCONNECT: %v", tail, err)
	}
	return again
}

// TestMQTTFlood: one peer sends 100 times what it may; what another sends is hardly
// later. The limit times 100 is 2000/s.
func TestMQTTFlood(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b", "c")
	a, b, c := e.grids[0], e.grids[1], e.grids[2]
	for _, g := range []*peertest.Grid{b, c} {
		awaitTopic(t, g, a, "house/first")
	}
	conf := "\npeers:\n  b: {limits: {messages_per_second: 20, burst: 20}}\n"
	addText(t, a.Gateway.Config, conf)
	if err := a.Gateway.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*peertest.Grid{b, c} {
		awaitTopic(t, g, a, "house/second")
	}
	load := peertest.MQTTLoad{From: c.Broker.MQTT, To: a.Broker.MQTT, Topic: "house/calm", Prefix: "grid/c/", Topics: 4, QoS: 1, Messages: 400, Window: 400, Size: 100, Rate: 200}
	run := func(topic string) peertest.Measured {
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		stop := floodMQTT(t, b.Broker, topic, 2000)
		defer stop()
		m, err := load.Run(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	rounds := 1
	if long() { // a p99 wants many
		rounds, load.Messages = 7, 2000
	}
	var ratios []float64
	for range rounds {
		before, during := run("home/flood"), run("house/flood") // the first does not cross
		ratios = append(ratios, float64(during.P99)/float64(before.P99))
		t.Logf("p99 of the other peer: %v, and %v while the flood crosses: %.2f times", before.P99, during.P99, ratios[len(ratios)-1])
	}
	slices.Sort(ratios)
	t.Logf("median of %d: %.2f times", rounds, ratios[rounds/2])
}

// floodMQTT publishes so many messages a second until it is stopped.
func floodMQTT(t *testing.T, m *peertest.Mosquitto, topic string, rate int) (stop func()) {
	t.Helper()
	flood := exec.Command("mosquitto_pub", "-h", m.MQTT.Addr().String(), "-V", "5", "-t", topic, "-q", "0", "-l")
	in, err := flood.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	check(t, flood.Start())
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			select {
			case <-tick.C:
				_, err = io.WriteString(in, strings.Repeat("flood\n", rate/100))
			case <-end:
				err = in.Close()
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
		check(t, errors.Join(err, flood.Wait()))
	}
}
