//go:build integration

package sessiontest

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// TestQoS sends and receives at each QoS with both versions of the protocol.
func TestQoS(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for name, version := range map[string]byte{"MQTT 5": session.V5, "MQTT 3.1.1": session.V311} {
		t.Run(name, func(t *testing.T) {
			a, b := newClient(t, m, "a-"+name), newClient(t, m, "b-"+name)
			a.cfg.Version, b.cfg.Version = version, version
			a.up()
			b.up()
			b.subscribe(name + "/#")
			for i := range 30 {
				qos := byte(i % 3)
				a.publish(fmt.Sprint("key ", i), &session.Message{Topic: fmt.Sprintf("%s/%d", name, qos), Payload: fmt.Append(nil, i), QoS: qos})
			}
			b.await("30 messages", func() bool { return len(b.messages()) == 30 })
			next := [3]int{0, 1, 2}
			for _, got := range b.got {
				if isProbe(got) {
					continue
				}
				if want := fmt.Sprint(next[got.QoS]); string(got.Payload) != want || got.Topic != fmt.Sprintf("%s/%d", name, got.QoS) {
					t.Errorf("got %+v, want %s", got, want)
				}
				next[got.QoS] += 3
			}
			if b.ups[0].Version != version || a.s.Status().InFlight != 0 {
				t.Errorf("connections %+v, status %+v", b.ups, a.s.Status())
			}
		})
	}
}

func TestProperties(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	a, b := newClient(t, m, "a"), newClient(t, m, "b")
	a.up()
	b.up()
	b.subscribe("x/#")
	expiry := uint32(3600)
	want := session.Message{Topic: "x/ü", Payload: []byte("grün"), QoS: 2, Retain: true, Properties: session.Properties{
		UTF8: true, Expiry: &expiry, ContentType: "text/plain", ResponseTopic: "reply/to/me", Correlation: []byte{0, 1, 255},
		User: []session.UserProperty{{Key: "k", Value: "1"}, {Key: "j", Value: ""}, {Key: "k", Value: "2"}},
	}}
	a.publish("key", &want)
	b.await("a message", func() bool { return len(b.messages()) == 1 })
	got := b.messages()[0]
	want.UID = got.UID
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}
