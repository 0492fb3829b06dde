//go:build integration

package gateway_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// TestUserBeyondLimits has an ordinary user of a stock server send what is beyond the
// limits of the gateway. The user is told, and the stream that the server shares among
// all its users goes on: nothing of a neighbour is lost.
func TestUserBeyondLimits(t *testing.T) {
	t.Parallel()
	peertest.Require(t, "ejabberd", "erlang", "prosody")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	a := newGrid(t, peertest.GridConfig{Name: "a", Kind: setup.Ejabberd, Domain: "a.grid.test", Dir: filepath.Join(dir, "a"),
		Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh}})
	b := newGrid(t, peertest.GridConfig{Name: "b", Kind: setup.Prosody, Domain: "b.grid.test", Dir: filepath.Join(dir, "b")})
	// Else the servers would not take it from their users.
	edit(t, filepath.Join(a.Server.Dir, "ejabberd.yml"), "max_stanza_size: 262144", "max_stanza_size: 12582912")
	edit(t, filepath.Join(b.Server.Dir, "prosody.cfg.lua"), "daemonize = false", "daemonize = false\nc2s_stanza_size_limit = 12582912")
	for _, g := range []*peertest.Grid{a, b} {
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := peertest.Pair(ctx, a, b); err != nil {
		t.Fatal(err)
	}
	alice, bob := login(t, a, "alice"), login(t, b, "bob")
	for _, s := range []struct {
		*peertest.Grid
		peer               string
		neighbour, mallory peertest.Party
		to                 peertest.Party
	}{{a, "b", alice, login(t, a, "mallory"), bob}, {b, "a", bob, login(t, b, "mallory"), alice}} {
		t.Run(s.Server.Kind, func(t *testing.T) {
			// Both take part in what the stream is opened for.
			arrives(t, s.neighbour, s.to)
			arrives(t, s.mallory, s.to)
			opened := openedAt(t, s.Grid, s.peer)
			attempts := map[string]struct{ inner, told string }{
				"10 MiB":             {"<x xmlns='urn:x'>" + strings.Repeat("0123456789", 1<<20) + "</x>", "bytes, at most 262144 go to " + s.to.Domain},
				"1000 elements deep": {strings.Repeat("<x xmlns='urn:x'>", 1000) + strings.Repeat("</x>", 1000), "elements nested deeper than 64"},
				"70 attributes":      {"<x xmlns='urn:x'" + attributes(70) + "/>", "more than 64 attributes"},
				"end in a CDATA":     {strings.Repeat("<x xmlns='urn:x'>", 70) + "<![CDATA[</message></stream:stream>]]>" + strings.Repeat("</x>", 70), "elements nested deeper than 64"},
				"wide, then deep":    {strings.Repeat("<x xmlns='urn:x'/>", 70) + strings.Repeat("<y xmlns='urn:y'>", 65) + strings.Repeat("</y>", 65), "elements nested deeper than 64"},
			}
			if s.Server.Kind == setup.Ejabberd { // Prosody binds it anew, as it may
				attempts["the stream's prefix"] = struct{ inner, told string }{"<stream:features/>", "only the stream's header binds"}
			}
			for name, c := range attempts {
				t.Run(name, func(t *testing.T) {
					bounded(t, s.Gateway, func() {
						arrives(t, s.neighbour, s.to)
						id, behind := s.mallory.NewID(), s.mallory.NewID()
						stanza := fmt.Sprintf("<message to='%s' type='chat' id='%s'><body>x</body>%s</message>", s.to.JID, id, c.inner)
						stanza += fmt.Sprintf("<message to='%s' type='chat' id='%s'><body>behind it</body></message>", s.to.JID, behind)
						if err := s.mallory.Send(ctx, []byte(stanza)); err != nil {
							t.Fatal(err)
						}
						back := await(t, s.mallory, "error for "+name, func(m *peertest.Stanza) bool { return m.ID == id })
						if e := back.Error; e == nil || e.Condition != "policy-violation" || e.Type != "modify" || !strings.Contains(e.Text, c.told) || back.From != s.to.JID {
							t.Errorf("told %s, want policy-violation: ... %s", &back, c.told)
						}
						await(t, s.to, "message behind it", func(m *peertest.Stanza) bool { return m.ID == behind && m.From == s.mallory.JID })
						arrives(t, s.neighbour, s.to)
					})
				})
			}
			for _, m := range s.to.Received() {
				if m.Error != nil {
					t.Errorf("the addressee got %s", &m)
				}
			}
			if now := openedAt(t, s.Grid, s.peer); !now.Equal(opened) {
				t.Errorf("the stream was opened at %v, and again at %v", opened, now)
			}
		})
	}
}

func attributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, " a%d='v'", i)
	}
	return b.String()
}

// arrives sends a message and waits until it is there.
func arrives(t *testing.T, from, to peertest.Party) {
	t.Helper()
	id := from.NewID()
	if err := from.SendMessage(t.Context(), to.JID, "hello", id); err != nil {
		t.Fatal(err)
	}
	await(t, to, "message "+id+" of "+from.Name, func(m *peertest.Stanza) bool {
		return m.ID == id && peertest.Bare(m.From) == peertest.Bare(from.JID)
	})
}

func await(t *testing.T, p peertest.Party, what string, match func(*peertest.Stanza) bool) peertest.Stanza {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := p.Await(ctx, what, match)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// openedAt is when the stream from the grid's server to its peer was opened; there must
// be one.
func openedAt(t *testing.T, g *peertest.Grid, peer string) time.Time {
	t.Helper()
	st, err := g.AwaitUp(t.Context(), peer)
	if err != nil {
		t.Fatal(err)
	}
	var found []time.Time
	for _, s := range st.Streams {
		if s.Dir == "in" && s.From == g.Domain {
			found = append(found, s.Since)
		}
	}
	if len(found) != 1 {
		t.Fatalf("streams of the server: %+v", st.Streams)
	}
	return found[0]
}

// edit replaces what must stand in a file.
func edit(t *testing.T, file, from, to string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), from) {
		t.Fatalf("%s has no %q", file, from)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), from, to, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}
