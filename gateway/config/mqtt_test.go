package config

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

const minimalMQTT = "name: a\nmqtt: {broker: mqtt://127.0.0.1, user: yggate}\n"

// A grid may have MQTT alone, and what it leaves out is filled in.
func TestMQTTAlone(t *testing.T) {
	c := parse(t, minimalMQTT, map[string]string{"YGGATE_MQTT_PASSWORD": "secret"})
	if !slices.Equal(c.Protocols(), []federation.Protocol{federation.MQTT}) || len(c.Own()[federation.MQTT]) != 0 {
		t.Errorf("protocols %v, own %v", c.Protocols(), c.Own())
	}
	if m := c.MQTT; m.Broker != "mqtt://127.0.0.1:1883" || m.Password != "secret" || m.Version != "auto" || m.MaxPacket != 960<<10 || m.State != "$grid/" {
		t.Errorf("%+v", m)
	}
	c = parse(t, "name: a\nmqtt: {broker: \"mqtts://[::1]\", ca: ca.pem, prefixes: [house/]}\n", nil)
	if m := c.MQTT; m.Broker != "mqtts://[::1]:8883" || !strings.HasSuffix(m.CA, "/ca.pem") || c.Own()[federation.MQTT][0] != "house/" {
		t.Errorf("%+v", m)
	}
}

// A list of a peer's own takes the place of that of peer_defaults, and {peer} is its
// name.
func TestMQTTPolicy(t *testing.T) {
	c := parse(t, minimalMQTT+`peer_defaults:
  allow: [mqtt]
  mqtt:
    export: [{filter: "pub/#", as: "all/{1}", qos: 1, retain: false}]
    import: [{filter: "#"}]
    availability: [{topic: "up/{peer}", offline: gone}]
    overflow: drop_oldest
    ttl: 1h
peers:
  bob: {mqtt: {export: [], import: [{filter: "x/+", to: "{peer}/{1}", qos: 0}], overflow: block, rate: 10}}
`, nil)
	anyone, bob := c.Policy("carol").MQTT, c.Policy("bob").MQTT
	if e := anyone.Exports; len(e) != 1 || e[0] != (federation.MQTTRule{Filter: "pub/#", As: "all/{1}", QoS: 1}) {
		t.Errorf("exports %+v", e)
	}
	if i := anyone.Imports; len(i) != 1 || i[0] != (federation.MQTTRule{Filter: "#", As: "grid/carol/", QoS: 2, Retain: true}) {
		t.Errorf("imports %+v", i)
	}
	if a := anyone.Availability; len(a) != 1 || a[0] != (federation.MQTTAvailability{Topic: "up/carol", Online: "online", Offline: "gone"}) {
		t.Errorf("availability %+v", a)
	}
	if anyone.Overflow != federation.OverflowDropOldest || anyone.TTL != time.Hour || anyone.Rate != 0 {
		t.Errorf("%+v", anyone)
	}
	if len(bob.Exports) != 0 || len(bob.Imports) != 1 || bob.Imports[0].As != "bob/{1}" || bob.Imports[0].QoS != 0 || bob.Rate != 10 ||
		bob.Overflow != federation.OverflowBlock || bob.TTL != time.Hour || bob.Availability[0].Topic != "up/bob" {
		t.Errorf("bob: %+v", bob)
	}
	if len(anyone.Imports) != 1 || anyone.Imports[0].As != "grid/carol/" {
		t.Errorf("bob's settings changed those of others: %+v", anyone)
	}
}

func TestMQTTWarns(t *testing.T) {
	const nothing = "mqtt: no peer has an export or an import"
	for src, want := range map[string]bool{
		minimalMQTT + "peer_defaults: {allow: [mqtt]}\n":                                                         true,
		minimalMQTT + "peer_defaults: {allow: [mqtt], mqtt: {import: [{filter: a}]}}\n":                          false,
		minimalMQTT + "peers: {bob: {allow: [mqtt], mqtt: {export: [{filter: a}]}}}\n":                           false,
		minimalMQTT + "peers: {bob: {allow: [mqtt]}}\npeer_defaults: {allow: [], mqtt: {import: [{filter: a}]}}": false,
		minimalMQTT + "peers: {bob: {allow: [xmpp], mqtt: {export: [{filter: a}]}}}\n":                           true,
	} {
		if got := strings.Contains(strings.Join(parse(t, src, nil).Warnings, "\n"), nothing); got != want {
			t.Errorf("%s warns: %v", src, got)
		}
	}
}
