//go:build integration

package gateway_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// guarded is a grid s whose broker wants TLS with a certificate, a user and a password,
// and which takes messages by a shared subscription; and a peer p of the plain kind.
type guarded struct {
	s, p *peertest.Grid
	at   map[string]end
}

// sharedHouse puts what s imports where its own topics are: what it gives its broker, it
// gets back, since a shared subscription cannot be without the own messages.
const sharedHouse = `{export: [{filter: "house/#", transit: true}], import: [{filter: "house/#", to: "house/{1}"}, {filter: "lab/#"}]}`

const labToo = `  mqtt:
    export: [{filter: "house/#"}, {filter: "lab/#"}]
    import: [{filter: "house/#"}]
`

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	peertest.Require(t, "mosquitto")
	dir := t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	ca, err := peertest.NewCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	server := peertest.Loopback()
	cert, err := ca.Issue(server.String())
	if err != nil {
		t.Fatal(err)
	}
	own, err := ca.Issue("gateway.test")
	if err != nil {
		t.Fatal(err)
	}
	s := newGrid(t, peertest.GridConfig{
		Name: "s", MQTT: true, MQTTS: true, ServerIP: server, Dir: filepath.Join(dir, "s"),
		MQTTOptions: fmt.Sprintf("  user: gate\n  password: of the gate\n  ca: %s\n  cert: %s\n  key: %s\n  share: gateways\n", ca.File, own, own),
		Mesh:        []string{"--mesh-listen", mesh, "--advertise", mesh},
	})
	addPeers(t, s, sharedHouse, []string{"p"})
	cfg := s.Broker.Config()
	cfg.Users, cfg.Cert, cfg.ClientCA = map[string]string{"gate": "of the gate", "sensor": "of the sensor"}, cert, ca.File
	cfg.ACL += "user sensor\ntopic readwrite #\n"
	check(t, s.Broker.Configure(cfg))
	p := newGrid(t, peertest.GridConfig{Name: "p", MQTT: true, MQTTConfig: labToo, Dir: filepath.Join(dir, "p"), Mesh: []string{"--mesh-peer", mesh}})
	g := &guarded{s: s, p: p, at: map[string]end{
		"s": {s.Broker.MQTT, peertest.MQTTLogin{User: "sensor", Password: "of the sensor"}}, "p": {broker: p.Broker.MQTT},
	}}
	// The broker of s comes later.
	if err := s.Gateway.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, s, "is not connected: ", "connection refused")
	if err := s.Broker.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := peertest.Pair(t.Context(), s, p); err != nil {
		t.Fatal(err)
	}
	g.awaitCrossing(t, "s", "p", "grid/s/house/first")
	g.awaitCrossing(t, "p", "s", "house/first")
	return g
}

// awaitCrossing waits until what one side retains in house/first is in a topic of the
// other.
func (g *guarded) awaitCrossing(t *testing.T, from, to, topic string) {
	t.Helper()
	payload := "first of " + from
	g.at[from].user(t, "", nil).put(t, &paho.Publish{Topic: "house/first", QoS: 1, Retain: true, Payload: []byte(payload)})
	g.at[to].user(t, topic, nil).await(t, payload)
}

// awaitStatus waits until `yggate status` says something.
func awaitStatus(t *testing.T, g *peertest.Grid, words ...string) {
	t.Helper()
	var said string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var err error
		if said, err = g.Gateway.Run(t.Context(), "status"); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(said, w) }) {
			return
		}
	}
	t.Fatalf("status of %s does not say %q:\n%s", g.Name, words, said)
}

// TestMQTTGuarded is a broker with all that operators put before one.
func TestMQTTGuarded(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	t.Run("a will", g.will)
	t.Run("shared", g.shares)
	t.Run("a subscription that is refused", g.refuses)
}

// will lets a client die without a word.
func (g *guarded) will(t *testing.T) {
	conn, err := net.Dial("tcp", g.at["s"].broker.String())
	if err != nil {
		t.Fatal(err)
	}
	as := g.at["s"].as
	c := paho.NewClient(paho.ClientConfig{Conn: conn})
	if _, err := c.Connect(t.Context(), &paho.Connect{
		ClientID: "mortal", CleanStart: true, KeepAlive: 30, Username: as.User, UsernameFlag: true, Password: []byte(as.Password), PasswordFlag: true,
		WillMessage:    &paho.WillMessage{Topic: "house/mortal/up", Payload: []byte("gone"), QoS: 2, Retain: true},
		WillProperties: &paho.WillProperties{User: paho.UserProperties{{Key: "k", Value: "v"}}}, // the codec has no others
	}); err != nil {
		t.Fatal(err)
	}
	far := g.at["p"].user(t, "grid/s/house/mortal/#", nil)
	check(t, conn.Close())
	far.await(t, "gone")
	if m := far.messages()[0]; m.Topic != "grid/s/house/mortal/up" || m.QoS != 2 || m.Properties.User.Get("k") != "v" {
		t.Errorf("the will arrived as %+v with %+v", m, m.Properties)
	}
	g.at["p"].user(t, "grid/s/house/mortal/up", nil).await(t, "gone") // it is retained
}

// shares has another client in the gateway's group: each message goes to one of them,
// and what was imported does not go back.
func (g *guarded) shares(t *testing.T) {
	const count = 40
	far := g.at["p"].user(t, "grid/s/house/n/#", nil)
	other := g.at["s"].user(t, "$share/gateways/house/#", nil)
	pub := g.at["s"].user(t, "", nil)
	all := func() []string {
		got := append(far.payloads(""), other.payloads("house/n/")...)
		slices.Sort(got)
		return got
	}
	var want []string
	for i := range count {
		pub.put(t, &paho.Publish{Topic: "house/n/" + strconv.Itoa(i), QoS: 2, Payload: []byte(strconv.Itoa(i))})
		want = append(want, strconv.Itoa(i))
	}
	slices.Sort(want)
	for end := time.Now().Add(patience); len(all()) < count && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if got := all(); !slices.Equal(got, want) || len(far.payloads("")) == 0 || len(other.payloads("house/n/")) == 0 {
		t.Errorf("%d crossed and %d went to the other client of the group, want %d together", len(far.payloads("")), len(other.payloads("house/n/")), count)
	}
	check(t, other.Disconnect(&paho.Disconnect{}))
	// What p publishes comes to s among its own topics, and not to p again.
	back, here := g.at["p"].user(t, "grid/s/#", nil), g.at["s"].user(t, "house/back", nil)
	g.at["p"].user(t, "", nil).put(t, &paho.Publish{Topic: "house/back", QoS: 2, Payload: []byte("back")})
	here.await(t, "back")
	pub.put(t, &paho.Publish{Topic: "house/back", QoS: 2, Payload: []byte("own")}) // is behind it
	back.await(t, "own")
	if got := back.payloads("grid/s/house/back"); !slices.Equal(got, []string{"own"}) {
		t.Errorf("p got %q", got)
	}
}

// refuses has p's broker refuse one subscription of two, and take it later. What
// mosquitto's acl_file keeps from a client it keeps in silence; its dynamic security
// says no.
func (g *guarded) refuses(t *testing.T) {
	plugins, err := filepath.Glob("/usr/lib/*/mosquitto_dynamic_security.so")
	if err != nil || len(plugins) != 1 {
		t.Fatalf("mosquitto_dynamic_security.so: %q, %v; it comes with Debian's mosquitto", plugins, err)
	}
	before := g.p.Broker.Config()
	cfg := before
	roles := filepath.Join(cfg.Dir, "roles.json")
	check(t, os.WriteFile(roles, []byte(`{
		"defaultACLAccess": {"publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true},
		"anonymousGroup": "all", "clients": [], "groups": [{"groupname": "all", "roles": [{"rolename": "no lab"}]}],
		"roles": [{"rolename": "no lab", "acls": [
			{"acltype": "subscribePattern", "topic": "lab/#", "allow": false}, {"acltype": "publishClientReceive", "topic": "lab/#", "allow": false}]}]}`), 0o600))
	cfg.Lines = append(slices.Clone(cfg.Lines), "plugin "+plugins[0], "plugin_opt_config_file "+roles)
	restart := func(cfg peertest.MosquittoConfig) {
		t.Helper()
		check(t, g.p.Broker.Configure(cfg))
		if err := g.p.Broker.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	restart(cfg)
	awaitStatus(t, g.p, "refuses the subscription lab/#", "not authorized", "`yggate setup mosquitto`")
	if text, err := os.ReadFile(g.p.Gateway.Log); err != nil || !strings.Contains(string(text), "filter=lab/#") {
		t.Errorf("the log does not name the filter: %v", err)
	}
	if said, err := g.p.Gateway.Run(t.Context(), "route", "mqtt:lab/x"); err == nil || !strings.Contains(said, "does not let the gateway read it") {
		t.Errorf("route: %v\n%s", err, said)
	}
	here := g.at["s"].user(t, "#", nil)
	pub := g.at["p"].user(t, "", nil)
	pub.put(t, &paho.Publish{Topic: "lab/x", QoS: 1, Retain: true, Payload: []byte("hidden")})
	pub.put(t, &paho.Publish{Topic: "house/x", QoS: 1, Retain: true, Payload: []byte("shown")})
	here.await(t, "shown")
	if slices.Contains(here.payloads(""), "hidden") {
		t.Error("it crossed though it was refused")
	}
	restart(before)
	here.await(t, "hidden") // it is compared once there is a subscription
	if said, err := g.p.Gateway.Run(t.Context(), "status"); err != nil || strings.Contains(said, "refuses the subscription") {
		t.Errorf("status still says, %v:\n%s", err, said)
	}
}
