//go:build integration

package peertest

import (
	"context"
	"errors"

	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"
)

func runDendrite(t *testing.T, cfg DendriteConfig) *Dendrite {
	t.Helper()
	Require(t, "dendrite")
	cfg.Dir = t.TempDir()
	d, err := NewDendrite(cfg)
	if err != nil {
		t.Fatal(err)
	}
	Run(t, d)
	return d
}

// A killed homeserver comes back on its data, its clients go on with their
// sessions, and what was said meanwhile arrives.
func TestDendriteKilled(t *testing.T) {
	m := startDirectMatrix(t, "a.grid.test", "b.grid.test")
	victim := m.Dendrites[1]
	alice, bob := MatrixUser(t, m.Dendrites[0], "alice"), MatrixUser(t, victim, "bob")
	room, err := MatrixGathering(t.Context(), os.Stderr, alice, bob)
	if err != nil {
		t.Fatal(err)
	}
	pid := victim.Pid()
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	sent, err := alice.SendText(t.Context(), room, "Are you there?")
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if victim.Pid() == pid {
		t.Fatal("the same process after Kill and Start")
	}
	if _, err := bob.AwaitEvent(t.Context(), room, sent.EventID); err != nil {
		t.Fatal(err)
	}
	// The user is still there, and its password.
	if err := MatrixExchange(t.Context(), room, alice, MatrixUser(t, victim, "bob"), os.Stderr); err != nil {
		t.Fatal(err)
	}
	if mem, err := victim.Memory(); err != nil || mem.RSS < 10<<20 {
		t.Errorf("memory %+v, %v", mem, err)
	}
}

// connects answers each CONNECT with 403 and notes what it was for.
type connects struct {
	net.Listener
	mu    sync.Mutex
	names []string
}

func (c *connects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.names = append(c.names, r.Method+" "+r.Host)
	c.mu.Unlock()
	http.Error(w, "not today", http.StatusForbidden)
}

// A homeserver with a proxy asks that for every peer, by name, and resolves none.
func TestDendriteProxy(t *testing.T) {
	Require(t, "dendrite", "netns")
	ns, err := NewNetns(t.Context(), "dendrite")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	proxy := &connects{}
	err = ns.Do(func() error {
		proxy.Listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: proxy}
	go srv.Serve(proxy)
	t.Cleanup(func() { srv.Close() })

	d := runDendrite(t, DendriteConfig{ServerName: "a.grid.test", IP: Loopback(), Proxy: "http://" + proxy.Addr().String(), Netns: ns})
	alice := MatrixUser(t, d, "alice")
	if _, err := alice.JoinRoom(t.Context(), "#lounge:b.grid.test", nil); err == nil {
		t.Error("joined through a proxy that refuses")
	}
	proxy.mu.Lock()
	defer proxy.mu.Unlock()
	if !slices.Contains(proxy.names, "CONNECT b.grid.test:443") || slices.ContainsFunc(proxy.names, func(n string) bool { return !strings.HasPrefix(n, "CONNECT b.grid.test:") }) {
		t.Errorf("the proxy was asked for %q", proxy.names)
	}
}

// An application service that is registered may act, from the next start on.
func TestDendriteAppService(t *testing.T) {
	d := runDendrite(t, DendriteConfig{ServerName: "a.grid.test", IP: Loopback()})
	file := filepath.Join(t.TempDir(), "registration.yaml")
	err := os.WriteFile(file, []byte(`
id: bridge
url: null
as_token: as-secret
hs_token: hs-secret
sender_localpart: bridgebot
rate_limited: false
namespaces:
  users: [{exclusive: true, regex: '@xmpp_.*:a\.grid\.test'}]
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := mautrix.NewClient("http://"+d.HTTP.String(), id.NewUserID("bridgebot", "a.grid.test"), "as-secret")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bridge.Whoami(t.Context()); !errors.Is(err, mautrix.MUnknownToken) {
		t.Errorf("not registered yet: %v", err)
	}
	cfg := d.Config()
	cfg.AppServices = []string{file}
	if err := errors.Join(d.Configure(cfg), d.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	who, err := bridge.Whoami(t.Context())
	if err != nil || who.UserID != bridge.UserID {
		t.Errorf("registered: %+v, %v", who, err)
	}
}

// What a homeserver says no to is seen, with its reason.
func TestDendriteErrors(t *testing.T) {
	d := runDendrite(t, DendriteConfig{ServerName: "a.grid.test", IP: Loopback()})
	_, err := MatrixLogin(t.Context(), MatrixConfig{URL: "http://" + d.HTTP.String(), User: "alice", Password: "wrong"})
	if !errors.Is(err, mautrix.MForbidden) {
		t.Errorf("a wrong password: %v", err)
	}
	alice := MatrixUser(t, d, "alice")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := alice.AwaitEvent(ctx, "!none:a.grid.test", "$none"); !errors.Is(err, context.Canceled) {
		t.Errorf("an event that never comes: %v", err)
	}
	if err := errors.Join(alice.Close(), alice.Close()); err != nil {
		t.Error(err)
	}
	if _, err := alice.AwaitEvent(t.Context(), "!none:a.grid.test", "$none"); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("an event after the session: %v", err)
	}
	// A server that does not start says why.
	twin, err := NewDendrite(DendriteConfig{ServerName: "b.grid.test", IP: d.HTTP.Addr(), Dir: t.TempDir(), AppServices: []string{"/nowhere.yaml"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := twin.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "nowhere.yaml") {
		t.Errorf("a start that must fail: %v", err)
	}
}
