package xmpp

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

func TestMetrics(t *testing.T) {
	w := &world{dir: federation.NewDirectory(), down: map[federation.GridID]bool{}}
	w.publish(nil)
	reg := prometheus.NewPedanticRegistry()
	a, err := New(Config{Directory: w.dir, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	a.Connect(w, w, localFunc(w.toLocal))
	ctx := context.Background()
	bob := w.dir.Now().Peer("bob")
	deliver := func(stanza string) {
		_ = a.Deliver(ctx, bob, lane.Item{Body: []byte(stanza)}) // the counters are what is tested
	}
	deliver("<message from='bob@b.grid' to='alice@a.grid'/>")
	deliver("<message from='eve@c.grid' to='alice@a.grid'/>")
	deliver("<message from='bob@b.grid' to='carol@c.grid'/>")
	deliver("<message from='bob@b.grid' to='carol@c.grid'/>")
	w.down["bob"] = true
	if err := a.Stanzas(ctx, "a.grid", "b.grid", [][]byte{[]byte("<iq type='get' from='a.grid' to='b.grid'/>")}, func() {}); err != nil {
		t.Fatal(err)
	}
	skipped := &frame.Skipped{Tag: []byte("<presence from='alice@a.grid/x' to='bob@b.grid'>"), Limit: &frame.Error{Condition: frame.PolicyViolation}}
	if err := a.Skipped(ctx, "a.grid", "b.grid", skipped, func() {}); err != nil {
		t.Fatal(err)
	}
	got := gather(t, reg)
	for name, want := range map[string]float64{
		"yggate_xmpp_bounced_total policy-violation out bob":      1,
		"yggate_xmpp_stanzas_total out presence bob":              1,
		"yggate_xmpp_bounced_total remote-server-timeout out bob": 1,
		"yggate_xmpp_refused_total bob relay":                     2,
		"yggate_xmpp_refused_total bob sender_domain":             1,
		"yggate_xmpp_stanzas_total in message bob":                1,
		"yggate_xmpp_stanzas_total out iq bob":                    1,
		"yggate_xmpp_stanzas_total out message bob":               0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v; all: %v", name, v, want, got)
		}
	}
}

func TestBouncesAreCountedOnce(t *testing.T) {
	w := &world{dir: federation.NewDirectory(), down: map[federation.GridID]bool{}, broken: true, store: errors.New("disk I/O error")}
	w.publish(nil)
	reg := prometheus.NewPedanticRegistry()
	a, err := New(Config{Directory: w.dir, Metrics: reg})
	if err != nil {
		t.Fatal(err)
	}
	a.Connect(w, w, localFunc(w.toLocal))
	bob := w.dir.Now().Peer("bob")
	give := func() error {
		return a.GiveBack(t.Context(), bob, lane.Item{Body: message(1, "alice@a.grid", "bob@b.grid")}, lane.ErrExpired)
	}
	answer := func() error {
		_, err := a.hand(t.Context(), bob, []lane.Item{{Body: message(2, "bob@b.grid", "eve@nowhere.grid")}})
		return err
	}
	for range 3 {
		if give() == nil || answer() == nil {
			t.Fatal("given to a server and a disk that take nothing")
		}
	}
	w.broken, w.store = false, nil
	if err := errors.Join(give(), answer()); err != nil {
		t.Fatal(err)
	}
	got := gather(t, reg)
	for _, name := range []string{"yggate_xmpp_bounced_total remote-server-timeout out bob", "yggate_xmpp_bounced_total not-allowed in bob"} {
		if got[name] != 1 {
			t.Errorf("%s is %v, want 1; all: %v", name, got[name], got)
		}
	}
}

func gather(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			out[name] = m.GetCounter().GetValue()
		}
	}
	return out
}
