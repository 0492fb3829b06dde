package mqtt

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// What the broker will never take is settled; what it may take later waits, in order.
func TestBrokerRefuses(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("#", "")), rulesOf(rule("#", "in/"))))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	var busy atomic.Int32
	b.mu.Lock()
	b.refuse = func(m *session.Message) error {
		switch string(m.Payload) {
		case "never":
			return &session.Refused{What: "publish", Code: 0x87}
		case "busy":
			busy.Add(1)
			return &session.Refused{What: "publish", Code: 0x97}
		}
		return nil
	}
	b.mu.Unlock()
	for _, p := range []string{"1", "never", "busy", "2"} {
		a.client("x", p, 1, false)
	}
	eventually(t, "the broker is busy", func() bool { return busy.Load() > 1 })
	if got := b.got("#"); !slices.Equal(got, []string{"in/x=1"}) {
		t.Errorf("while it is busy it has %q", got)
	}
	b.mu.Lock()
	b.refuse = nil
	b.mu.Unlock()
	eventually(t, "the rest comes", func() bool { return slices.Contains(b.got("#"), "in/x=2") })
	if got := b.got("#"); !slices.Equal(got, []string{"in/x=1", "in/x=busy", "in/x=2"}) {
		t.Errorf("got %q", got)
	}
}

// What a peer sends that no broker may be given, such as a content type with NUL, does not
// come again and again in the way of others.
func TestInvalidProperties(t *testing.T) {
	w := newWorld(t, names(), pair(nil, rulesOf(rule("#", "in/"))))
	a, b := w.grids["a"], w.grids["b"]
	b.broker.mu.Lock()
	b.broker.invalid = func(m *session.Message) error {
		if m.ContentType != "" {
			return fmt.Errorf("publish: %w", &session.Refused{What: "publish", Code: 0x90, Text: "content type: has a NUL"})
		}
		return nil
	}
	b.broker.mu.Unlock()
	item := func(source, contentType string) lane.Item {
		e := envelope{Topic: "x", QoS: 1, Path: []string{string(a.id)}, ContentType: contentType}
		return lane.Item{Kind: federation.MQTT, Source: source, Body: must(e.encode())}
	}
	items := []lane.Item{item("1.1", ""), item("1.2", "a\x00"), item("1.3", "")}
	if n, err := b.hand(t.Context(), b.peerOf("a"), items); n != 3 || err != nil {
		t.Errorf("%d settled, %v", n, err)
	}
	if got := b.broker.got("in/x"); len(got) != 2 {
		t.Errorf("published %v", got)
	}
}
