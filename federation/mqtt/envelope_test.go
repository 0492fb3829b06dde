package mqtt

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
)

func TestEnvelopeRoundTrip(t *testing.T) {
	expiry := uint32(7)
	m := &session.Message{Topic: "a/b", Payload: []byte{0, 1}, QoS: 2, Retain: true}
	m.Properties = session.Properties{
		UTF8: true, Expiry: &expiry, ContentType: "t", ResponseTopic: "r/1", Correlation: []byte{2},
		User: []session.UserProperty{{Key: "k", Value: "v"}, {Key: "k", Value: ""}},
	}
	e := envelopeOf(m, m.User)
	e.Topic, e.Path, e.Origin = "x", []string{string(gridID("a"))}, []byte("origin")
	raw, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeEnvelope(raw)
	if err != nil || !reflect.DeepEqual(*got, e) {
		t.Fatalf("%+v, %v, want %+v", got, err, e)
	}
	back := got.message()
	if !slices.Equal(back.User, m.User) || !back.UTF8 || back.ContentType != "t" || !bytes.Equal(back.Correlation, m.Correlation) {
		t.Errorf("%+v", back)
	}
}

func TestEnvelopeBounds(t *testing.T) {
	big := envelope{Topic: "x", Payload: make([]byte, lane.MaxBody)}
	if _, err := big.encode(); !errors.Is(err, errNoItem) {
		t.Errorf("too large: %v", err)
	}
	many := envelope{Topic: "x", User: slices.Repeat([]string{"k", "v"}, maxUser/2+1)}
	if _, err := many.encode(); err == nil || !strings.Contains(err.Error(), "user properties") {
		t.Errorf("too many: %v", err)
	}
	for what, raw := range map[string][]byte{
		"an unknown member":    {0xa3, 1, 1, 3, 0x61, 'x', 0x18, 99, 1},
		"a member twice":       {0xa3, 1, 1, 3, 0x61, 'x', 3, 0x61, 'x'},
		"bytes after it":       {0xa2, 1, 1, 3, 0x61, 'x', 0},
		"an indefinite length": {0xbf, 1, 1, 3, 0x61, 'x', 0xff},
		"no version":           {0xa1, 3, 0x61, 'x'},
		"unknown flags":        {0xa3, 1, 1, 3, 0x61, 'x', 6, 0x18, 0x80},
	} {
		if e, err := decodeEnvelope(raw); err == nil {
			t.Errorf("%s: %+v", what, e)
		}
	}
	if e, err := decodeEnvelope([]byte{0xa2, 1, 1, 3, 0x61, 'x'}); err != nil || e.Topic != "x" {
		t.Errorf("the smallest: %+v, %v", e, err)
	}
}

func FuzzEnvelope(f *testing.F) {
	e := envelope{Topic: "a/b", QoS: 1, User: []string{"k", "v"}, Path: []string{string(gridID("a"))}, Response: "r"}
	raw, err := e.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0xa2, 1, 1, 3, 0x61, 'x'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := decodeEnvelope(raw)
		if err != nil {
			return
		}
		again, err := e.encode()
		if err != nil {
			t.Fatalf("%+v cannot be encoded: %v", e, err)
		}
		if other, err := decodeEnvelope(again); err != nil || !bytes.Equal(other.contentHash(), e.contentHash()) || other.Topic != e.Topic {
			t.Fatalf("%+v came back as %+v, %v", e, other, err)
		}
		e.message()
	})
}

func TestTraceOf(t *testing.T) {
	m := &session.Message{}
	m.User = []session.UserProperty{{Key: "k", Value: "v"}, {Key: PathProperty, Value: "a,b"}, {Key: OriginProperty, Value: "AQI"}}
	tr, user := traceOf(m)
	if !slices.Equal(tr.path, []string{"a", "b"}) || !bytes.Equal(tr.origin, []byte{1, 2}) || len(user) != 1 || len(m.User) != 3 {
		t.Errorf("%+v %v", tr, user)
	}
	for name, want := range map[string]int{"x": 0, "grid/a": 1, "grid/a/x": 1, "grid/a/grid/b/x": 2, "a/grid/b": 0} {
		if _, n := nested(name); n != want {
			t.Errorf("%q is nested %d times, want %d", name, n, want)
		}
	}
}

func TestRecent(t *testing.T) {
	r := newRecent[string, int](10)
	for i := range 1000 {
		r.put(strings.Repeat("x", i), i)
	}
	if _, ok := r.get(strings.Repeat("x", 999)); !ok || len(r.now)+len(r.was) > 20 {
		t.Errorf("%d and %d remembered", len(r.now), len(r.was))
	}
	if _, ok := r.get("x"); ok {
		t.Error("the first is not forgotten")
	}
	if a, b := r.first("k", 1), r.first("k", 2); a != 1 || b != 1 {
		t.Errorf("first %d, then %d", a, b)
	}
}

// What is remembered of response topics is bounded in bytes, too.
func TestAskedIsShort(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("#", "")), nil))
	a := w.grids["a"]
	long := strings.Repeat("x", 60000)
	a.broker.publish(&session.Message{Topic: "ask", QoS: 1, Properties: session.Properties{ResponseTopic: long}}, false)
	asked := a.adapter.peer(gridID("b")).asked
	if len(asked.now) != 1 {
		t.Fatalf("%d response topics are remembered", len(asked.now))
	}
	for key := range asked.now {
		if len(key) > 16 {
			t.Errorf("a key of %d bytes", len(key))
		}
	}
}
