package lane

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

// TestMetricsOfANameUsedAgain: a peer that is removed leaves its lanes behind and its
// name to another. What has one name is one number, or there would be no metrics at all.
func TestMetricsOfANameUsedAgain(t *testing.T) {
	t.Parallel()
	a := newTown(t, "alice", "bob", "robert")
	a.peers[0].State = federation.StateRemoved
	a.peers[1].Name = "bob"
	a.publish()
	d := a.open()
	t.Cleanup(func() {
		if err := a.st.Close(); err != nil {
			t.Error(err)
		}
	})
	for i, id := range []federation.GridID{"bob", "robert"} {
		out, in := laneKey{id, Chat}, laneKey{id, Room}
		d.out[out] = newOutLane(d, out, store.OutLane{Items: int64(i + 1), Bytes: int64(10 * (i + 1))})
		d.in[in] = &inLane{d: d, key: in, held: 5}
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(newDepth(d))
	got := map[string]float64{}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"yggate_durable_queued_items out chat bob": 3, "yggate_durable_queued_bytes out chat bob": 30, "yggate_durable_queued_items in room bob": 10,
	} {
		if got[name] != want {
			t.Errorf("%s: %v, want %v of %v", name, got[name], want, got)
		}
	}

	m := NewMemory(MemoryConfig{Directory: a.dir})
	for i, id := range []federation.GridID{"bob", "robert"} {
		s := newSession(m, a.dir.Now().Peer(id))
		m.sessions[id] = s
		for range i + 1 {
			if err := s.window.Load().put(t.Context(), []Item{item("x")}); err != nil {
				t.Fatal(err)
			}
		}
	}
	reg = prometheus.NewRegistry()
	reg.MustRegister(&inflight{m: m, desc: prometheus.NewDesc("inflight", "test", []string{"peer"}, nil)})
	if families, err = reg.Gather(); err != nil || len(families) != 1 || families[0].Metric[0].GetGauge().GetValue() != 3 {
		t.Errorf("%v, %v", families, err)
	}
}
