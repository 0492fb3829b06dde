//go:build integration

package peertest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
)

func startDirect(t *testing.T, mode setup.Mode) *Direct {
	Require(t, "ejabberd", "prosody")
	start := time.Now()
	d, err := StartDirect(t.Context(), t.TempDir(), mode)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("both servers up after %v", time.Since(start))
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, s := range []*Server{d.Ejabberd, d.Prosody} {
				t.Logf("%s:\n%s", s.LogFile(), tail(s.LogFile(), 60))
			}
		}
	})
	return d
}

func (d *Direct) talk(t *testing.T) {
	t.Helper()
	cfg := ClientConfig{Roots: d.CA.Pool}
	alice, bob := User(t, d.Ejabberd, cfg, "alice"), User(t, d.Prosody, cfg, "bob")
	if err := Conversation(t.Context(), alice, bob, os.Stderr); err != nil {
		t.Fatal(err)
	}
}

func TestDirectDNS(t *testing.T)   { startDirect(t, setup.DNS).talk(t) }
func TestDirectHosts(t *testing.T) { startDirect(t, setup.Hosts).talk(t) }

// A killed server comes back on its data, with its users and rosters, and the
// other one finds it again by itself.
func TestKillAndRestart(t *testing.T) {
	d := startDirect(t, setup.DNS)
	d.talk(t)
	for _, victim := range []*Server{d.Ejabberd, d.Prosody} {
		pid := victim.Pid()
		if err := victim.Kill(); err != nil {
			t.Fatal(err)
		}
		if victim.Running() {
			t.Fatal("runs after Kill")
		}
		if err := victim.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if victim.Pid() == pid {
			t.Fatal("the same process after Kill and Start")
		}
		cfg := ClientConfig{Roots: d.CA.Pool}
		alice, bob := User(t, d.Ejabberd, cfg, "alice"), User(t, d.Prosody, cfg, "bob")
		for _, p := range []Party{alice, bob} {
			if err := p.Available(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		// The first message may meet the bouncing after a lost stream, for at
		// most s2s_max_retry_delay.
		err := poll(t.Context(), nil, func(ctx context.Context) error { return Exchange(ctx, alice, bob, os.Stderr) })
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s back: messages flow after %v", victim.Kind, time.Since(start))
		roster, err := bob.Roster(t.Context())
		if err != nil || roster["alice@a.grid.test"] != "both" {
			t.Errorf("bob's roster after the kill of %s: %v, %v", victim.Kind, roster, err)
		}
	}
}

// What a server says no to is seen, with its reason.
func TestErrorsAreVisible(t *testing.T) {
	d := startDirect(t, setup.DNS)
	cfg := ClientConfig{Roots: d.CA.Pool}
	alice, bob := User(t, d.Ejabberd, cfg, "alice"), User(t, d.Prosody, cfg, "bob")
	ctx := t.Context()
	if _, err := alice.DiscoInfo(ctx, "nobody@b.grid.test/x"); err == nil {
		t.Error("disco of an unknown resource: no error")
	}
	if _, err := bob.Ping(ctx, "unknown.grid"); err == nil {
		t.Error("ping of an unknown domain: no error")
	}
	if err := alice.SendMessage(ctx, "bob@unknown.grid", "x", "m1"); err != nil {
		t.Fatal(err)
	}
	s, err := alice.Await(ctx, "error for m1", func(s *Stanza) bool { return s.ID == "m1" })
	if err != nil {
		t.Fatal(err)
	}
	if s.Error == nil || s.Error.Condition != "remote-server-not-found" {
		t.Errorf("message to an unknown domain: have %s", &s)
	}
	wrong := cfg
	wrong.JID, wrong.Password, wrong.Addr = "alice@a.grid.test", "wrong", d.Ejabberd.C2SAddr.String()
	if c, err := Login(ctx, wrong); err == nil {
		c.Close()
		t.Error("a wrong password logs in")
	}

	// A bounce ends an exchange at once, with its reason.
	ghost := Party{Client: &Client{JID: "nobody@b.grid.test/x", Inbox: newInbox()}, Name: "nobody"}
	if err := Exchange(ctx, alice, ghost, io.Discard); err == nil || !strings.Contains(err.Error(), "came back") || !strings.Contains(err.Error(), "service-unavailable") {
		t.Errorf("a message to nobody: %v", err)
	}
}

// The clients must not be what a benchmark measures.
func BenchmarkDirect(b *testing.B) {
	Require(b, "ejabberd", "prosody")
	d, err := StartDirect(b.Context(), b.TempDir(), setup.DNS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := d.Stop(); err != nil {
			b.Error(err)
		}
	})
	cfg := ClientConfig{Roots: d.CA.Pool}
	alice, bob := User(b, d.Ejabberd, cfg, "alice"), User(b, d.Prosody, cfg, "bob")
	carol := User(b, d.Ejabberd, cfg, "carol")
	for _, way := range []struct {
		name     string
		from, to Party
	}{{"EjabberdToProsody", alice, bob}, {"ProsodyToEjabberd", bob, alice}, {"WithinEjabberd", alice, carol}} {
		for _, l := range []Load{{Messages: 500, Window: 1, Body: 200}, {Messages: 5000, Window: 500, Body: 200}} {
			b.Run(fmt.Sprintf("%s/window=%d", way.name, l.Window), func(b *testing.B) {
				for b.Loop() {
					m, err := l.Run(b.Context(), way.from, way.to)
					if err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(m.Rate(), "msg/s")
					b.ReportMetric(float64(m.P50.Microseconds()), "p50-us")
					b.ReportMetric(float64(m.P99.Microseconds()), "p99-us")
				}
			})
		}
	}
}
