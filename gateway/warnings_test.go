package gateway

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/store"
)

// gatewayWithStore is as much of a gateway as has a database.
func gatewayWithStore(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{}
	g.conf.Store(&config.Config{State: t.TempDir()})
	var err error
	if g.store, err = store.Open(t.Context(), store.Options{Path: g.conf.Load().Database()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func TestWarnOfLane(t *testing.T) {
	old := time.Now().Add(-25 * time.Hour)
	for name, c := range map[string]struct {
		lane admin.Lane
		want []string
	}{
		"nothing":          {admin.Lane{Dir: "out"}, nil},
		"no quota":         {admin.Lane{Dir: "in", Items: 9, Bytes: 9}, nil},
		"at the threshold": {admin.Lane{Dir: "out", Items: 80, MaxItems: 100, Bytes: 80, MaxBytes: 100, Oldest: time.Now()}, nil},
		"many":             {admin.Lane{Dir: "out", Items: 81, MaxItems: 100, Bytes: 8, MaxBytes: 100, Oldest: time.Now()}, []string{"81 of 100 items"}},
		"much":             {admin.Lane{Dir: "out", Items: 8, MaxItems: 100, Bytes: 81, MaxBytes: 100, Oldest: time.Now()}, []string{"81 of 100 bytes"}},
		"old":              {admin.Lane{Dir: "out", Items: 1, MaxItems: 100, Oldest: old}, []string{"have waited for"}},
		"old, from a peer": {admin.Lane{Dir: "in", Items: 1, Oldest: old}, []string{"waited for your server"}},
		"all of it":        {admin.Lane{Dir: "out", Items: 100, MaxItems: 100, Oldest: old}, []string{"nearly full", "have waited for"}},
	} {
		var got []string
		warnOfLane(c.lane, func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) })
		if len(got) != len(c.want) {
			t.Errorf("%s: warned %q", name, got)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: warned %q, want %q in it", name, got[i], want)
			}
		}
	}
}

// Whatever befalls the database, status says what to do about it.
func TestStoreIsWarnedOf(t *testing.T) {
	g := gatewayWithStore(t)
	for _, state := range healthStates {
		st := admin.Status{Store: admin.Store{State: string(state), Fix: storeFix(state, "/x/yggate.db")}}
		g.warn(t.Context(), &st)
		switch {
		case state == store.HealthOK && len(st.Warnings) > 0:
			t.Errorf("warned of a store that is ok: %q", st.Warnings)
		case state == store.HealthOK:
		case len(st.Warnings) != 1 || !strings.Contains(st.Warnings[0], "store is "+string(state)) || !strings.Contains(st.Warnings[0], "/x/yggate.db"):
			t.Errorf("%s: %q", state, st.Warnings)
		}
	}
	if got := g.storeStatus(); got.State != "ok" || got.Bytes == 0 || got.Fix != "" || got.Error != "" || got.Since.IsZero() {
		t.Errorf("a store that is ok is %+v", got)
	}
}

func TestStoreMetrics(t *testing.T) {
	g := gatewayWithStore(t)
	if _, err := g.store.NextEpoch(t.Context()); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newStoreMetrics(g))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{
		"yggate_store_batch_writes": 1, "yggate_store_commits_total": 1, "yggate_store_writes_total": 1, "yggate_store_failed_commits_total": 0,
		"yggate_store_health ok": 1, "yggate_store_health full": 0, "yggate_store_health locked": 0, "yggate_store_health damaged": 0,
		"yggate_store_health failing": 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (%v), want %v", name, v, ok, want)
		}
	}
	for _, name := range []string{"yggate_store_bytes database", "yggate_store_bytes wal", "yggate_store_commit_seconds_total"} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	if file, wal := g.databaseBytes(); file == 0 || wal == 0 {
		t.Errorf("the database has %d bytes, its log %d", file, wal)
	}
	g.conf.Store(&config.Config{State: filepath.Join(t.TempDir(), "gone")})
	if file, wal := g.databaseBytes(); file != 0 || wal != 0 {
		t.Errorf("what is not there has %d and %d bytes", file, wal)
	}
}
