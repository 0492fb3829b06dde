//go:build integration

package gateway_test

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// TestMatrixPolicy is what users and operators see of what the operator of a does not
// let pass.
func TestMatrixPolicy(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	ctx := t.Context()
	denied := p.open(t, p.bob)
	for _, c := range []struct {
		name, yaml, route, why string
	}{
		{"deny_servers", "peers:\n  b: {matrix: {deny_servers: [b.grid.test]}}\n", "STOP  server", "does not let b.grid.test take part"},
		{"another server only", "peers:\n  b: {matrix: {servers: [other.grid.test]}}\n", "STOP  server", "does not let b.grid.test take part"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.refuses(t, c.yaml, c.route, c.why)
		})
	}
	t.Run("deny_rooms", func(t *testing.T) {
		p.configure(t, p.a, "peers:\n  b: {matrix: {deny_rooms: [\""+denied.id.String()+"\"]}}\n")
		p.routes(t, denied.id.String(), "STOP  room")
		p.routes(t, "@bob:b.grid.test", "")
		p.joins(t, p.alice, denied, "does not let this room cross")
		p.joins(t, p.alice, p.open(t, p.bob), "")
		if _, err := p.bob.InviteUser(ctx, denied.id, &mautrix.ReqInviteUser{UserID: p.alice.UserID}); err == nil {
			t.Error("alice was invited to the room")
		} else {
			t.Logf("bob, who invites to it, is told: %v", err)
		}
		p.lively(t)
	})
	t.Run("paused", func(t *testing.T) {
		p.configure(t, p.a, "")
		p.run(t, p.a, "peer", "pause", "b")
		p.routes(t, "@bob:b.grid.test", "STOP  state")
		p.joins(t, p.alice, p.open(t, p.bob), "who holds b.grid.test, is paused")
		m := p.post()
		m.send(t, 3)
		p.run(t, p.a, "peer", "resume", "b")
		p.up(t)
		m.allArrive(t, time.Now(), time.Now().Add(2*patience))
		p.routes(t, "@bob:b.grid.test", "")
		p.lively(t)
	})
}

// TestMatrixNotAllowed is a peer that may have XMPP alone.
func TestMatrixNotAllowed(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	p.refuses(t, "peers:\n  b: {allow: [xmpp]}\n", "STOP  policy", "is not allowed Matrix")
	// A grid tells its names only to whom it allows the protocol. So b sees the name
	// go, and has it back with the protocol: its operator has nothing new to decide.
	p.claims(t, "")
	p.configure(t, p.a, "")
	p.claims(t, "active")
	p.lively(t)
}

// claims waits until the claim of a.grid.test has a status at b; none: it is not there.
func (p *parlour) claims(t *testing.T, status string) {
	t.Helper()
	for end := time.Now().Add(patience); ; wait(t.Context(), 50*time.Millisecond) {
		var all []admin.Domain
		p.yggate(t, p.b, &all, "domain", "list", "--json")
		is := ""
		for _, d := range all {
			if d.Domain == "a.grid.test" {
				is = d.Status
			}
		}
		if is == status {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the claim is %q, want %q", is, status)
		}
	}
}

// refuses configures a so that b may not take part, and wants users and operators to
// see that: route is what `yggate route` says where the way ends, why what alice is told.
func (p *parlour) refuses(t *testing.T, yaml, route, why string) {
	t.Helper()
	p.configure(t, p.a, yaml)
	p.routes(t, "@bob:b.grid.test", route)
	p.routes(t, "#room:b.grid.test", route)
	p.joins(t, p.alice, p.open(t, p.bob), why)
	if _, err := p.bob.GetProfile(t.Context(), p.alice.UserID); err == nil {
		t.Error("bob, whom a does not let ask, has an answer")
	} else {
		t.Logf("bob, who asks for alice's profile, is told: %v", err)
	}
}

// place is a public room.
type place struct {
	id    id.RoomID
	alias id.RoomAlias
}

// open has a user open a room that everybody may join.
func (p *parlour) open(t *testing.T, host *peertest.MatrixClient) place {
	t.Helper()
	local := "place-" + strings.ToLower(rand.Text()[:8])
	made, err := host.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "public_chat", RoomAliasName: local})
	if err != nil {
		t.Fatal(err)
	}
	return place{made.RoomID, id.NewRoomAlias(local, host.Server())}
}

// routes wants a line of `yggate route` where the way ends; none: it does not end.
func (p *parlour) routes(t *testing.T, address, stop string) {
	t.Helper()
	out, err := p.a.Gateway.Run(t.Context(), "route", address)
	switch {
	case stop == "" && err != nil:
		t.Errorf("route %s: %v\n%s", address, err, out)
	case stop != "" && (err == nil || !strings.Contains(out, stop) || !strings.Contains(out, "mend: ")):
		t.Errorf("route %s does not say %q and how to mend it:\n%s", address, stop, out)
	default:
		t.Logf("route %s:\n%s", address, out)
	}
}

func (p *parlour) run(t *testing.T, g *peertest.Grid, args ...string) string {
	t.Helper()
	out, err := g.Gateway.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// joins has a user join a room, and wants that to succeed, or the user to be told why
// not.
func (p *parlour) joins(t *testing.T, guest *peertest.MatrixClient, room place, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// By its id: of an alias that cannot be looked up Dendrite says 500 and no more.
	_, err := guest.JoinRoom(ctx, room.id.String(), &mautrix.ReqJoinRoom{Via: []string{"b.grid.test"}})
	switch {
	case why == "" && err != nil:
		t.Errorf("%s does not join %s: %v", guest.Name, room.alias, err)
	case why != "" && (err == nil || !strings.Contains(err.Error(), why)):
		t.Errorf("%s, who joins %s, is not told %q, but: %v", guest.Name, room.alias, why, err)
	case why != "":
		t.Logf("%s is told: %v", guest.Name, err)
	}
}

// TestMatrixStatus is what status shows of keys and wakes, and that it notices when a
// homeserver comes back with another key.
func TestMatrixStatus(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	ctx := t.Context()
	before := p.keys(t, func(k admin.MatrixKeys) bool { return len(k.Keys) == 1 && k.Problem == "" })
	if !before.Changed.IsZero() || before.Fetched.IsZero() || !before.ValidUntil.After(time.Now()) {
		t.Errorf("keys: %+v", before)
	}
	for end := time.Now().Add(patience); ; wait(ctx, 100*time.Millisecond) {
		var st admin.Status
		p.yggate(t, p.a, &st, "status", "--json")
		if w := st.Matrix.Wakes; len(w) == 1 && w[0].Server == "b.grid.test" && w[0].Peer == "b" && !w[0].Reached.IsZero() && w[0].Problem == "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("wakes: %+v", st.Matrix)
		}
	}
	t.Log(p.run(t, p.a, "status"))

	if err := p.b.Homeserver.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(p.b.Homeserver.Config().Dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	if err := p.b.Homeserver.Configure(p.b.Homeserver.Config()); err != nil { // makes another
		t.Fatal(err)
	}
	if err := p.b.Homeserver.Start(ctx); err != nil {
		t.Fatal(err)
	}
	after := p.keys(t, func(k admin.MatrixKeys) bool { return !k.Changed.IsZero() })
	for name, key := range before.Keys {
		if after.Before[name] != key || after.Keys[name] == key {
			t.Errorf("keys were %v; now %+v", before.Keys, after)
		}
	}
	text := p.run(t, p.a, "status")
	t.Log(text)
	if !strings.Contains(text, "its keys changed ") {
		t.Errorf("status does not say that the keys have changed:\n%s", text)
	}
	if log, err := os.ReadFile(p.a.Gateway.Log); err != nil || !strings.Contains(string(log), "a server has other signing keys than before") {
		t.Error("the log does not say that the keys have changed")
	}
	p.lively(t)
}

// keys waits until what a knows of the keys of b.grid.test is as wanted.
func (p *parlour) keys(t *testing.T, ok func(admin.MatrixKeys) bool) admin.MatrixKeys {
	t.Helper()
	for end := time.Now().Add(patience); ; wait(t.Context(), 100*time.Millisecond) {
		var st admin.Status
		p.yggate(t, p.a, &st, "status", "--json")
		for _, k := range st.Matrix.Keys {
			if k.Server == "b.grid.test" && k.Peer == "b" && ok(k) {
				return k
			}
		}
		if time.Now().After(end) {
			t.Fatalf("keys: %+v", st.Matrix.Keys)
		}
	}
}
