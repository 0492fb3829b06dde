//go:build integration

package gateway_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/federation/pairing"
	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// maxGrowth is how much memory a hostile peer may make a gateway take.
const maxGrowth = 32 << 20

// meshPort is where gateways listen inside the mesh by default.
const meshPort = 4747

// TestHostilePeer lets an approved peer, whose gateway is under an attacker's
// control, do what it should not. Each time it is refused in the right terms, the
// gateway's memory stays bounded, and the neighbours do not notice.
func TestHostilePeer(t *testing.T) {
	peertest.Require(t, "ejabberd", "erlang", "prosody")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	grid := func(name, kind string, flags ...string) *peertest.Grid {
		g, err := peertest.NewGrid(ctx, peertest.GridConfig{
			Name: name, Kind: kind, Domain: name + ".grid.test", Dir: filepath.Join(dir, name), Mode: setup.DNS, Mesh: flags,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			check(t, g.Stop())
			if t.Failed() {
				t.Logf("%s:\n%s", g.Gateway.Log, g.Gateway.LogTail(60))
			}
		})
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return g
	}
	w := &world{a: grid("a", setup.Ejabberd, "--mesh-listen", mesh, "--advertise", mesh), b: grid("b", setup.Prosody)}
	if err := peertest.Pair(ctx, w.a, w.b); err != nil {
		t.Fatal(err)
	}
	w.login(t)
	w.flows(t, time.Now())

	m := newMallory(t, w.a, filepath.Join(dir, "mallory"), federation.XMPP)
	stanza := func(from, to, inner string) string {
		return fmt.Sprintf("<message from='%s' to='%s' type='chat' id='x'>%s</message>", from, to, inner)
	}
	const own, victim = "m@m.grid.test/x", "alice@a.grid.test"
	body := "<body>hello</body>"
	attacks := []struct {
		name, stanza, code string
	}{
		{"what it may do", stanza(own, victim, body), ""},
		{"from-domain of another peer", stanza("bob@b.grid.test/x", victim, body), "forbidden"},
		{"from-domain of the victim", stanza("bob@a.grid.test/x", victim, body), "forbidden"},
		{"from-domain of nobody", stanza("bob@nobody.grid.test/x", victim, body), "forbidden"},
		{"no from", "<message to='" + victim + "'>" + body + "</message>", "jid-malformed"},
		{"to-domain of a third grid", stanza(own, "bob@b.grid.test", body), "not-allowed"},
		{"to-domain of nobody", stanza(own, "bob@example.org", body), "not-allowed"},
		{"300 KiB stanza", stanza(own, victim, "<body>"+strings.Repeat("x", 300<<10)+"</body>"), "policy-violation"},
		{"10 MB stanza", stanza(own, victim, "<body>"+strings.Repeat("x", 10<<20)+"</body>"), endOfStream},
		{"100,000 nested elements", stanza(own, victim, strings.Repeat("<a>", 100_000)+strings.Repeat("</a>", 100_000)), "policy-violation"},
		{"20,000 nested elements", stanza(own, victim, strings.Repeat("<a>", 20_000)+strings.Repeat("</a>", 20_000)), "policy-violation"},
		{"DOCTYPE", "<!DOCTYPE x [<!ENTITY a 'b'>]>" + stanza(own, victim, body), "bad-request"},
		{"entity", stanza(own, victim, "<body>&lol;</body>"), "bad-request"},
		{"comment", stanza(own, victim, "<!-- x -->"+body), "bad-request"},
		{"processing instruction", stanza(own, victim, "<?php x ?>"+body), "bad-request"},
		{"two stanzas in one", stanza(own, victim, body) + stanza("bob@b.grid.test", victim, body), "bad-request"},
		{"end of the stream", "</stream:stream>", "bad-request"},
	}
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			m.bounded(t, w, func() {
				if code := m.send(t, a.stanza); code != a.code {
					t.Errorf("refused with %q, want %q", code, a.code)
				}
			})
		})
	}
	t.Run("a flood of forged stanzas", func(t *testing.T) {
		m.bounded(t, w, func() { m.flood(t, stanza("bob@b.grid.test/x", victim, body), 20_000) })
	})
	t.Run("100 handshakes that never end, in the mesh", func(t *testing.T) {
		m.bounded(t, w, func() { m.idle(t, 100) })
	})
	t.Run("100 handshakes that never end, from the local side", func(t *testing.T) {
		m.bounded(t, w, func() {
			for range 100 {
				c, err := net.Dial("tcp", w.a.Listen.String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				fmt.Fprint(c, "<?xml version='1.0'?><stream:stream ")
			}
			if err := peertest.Exchange(ctx, w.alice, w.bob, io.Discard); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("unknown grid key", func(t *testing.T) {
		m.bounded(t, w, func() { m.stranger(t) })
	})
}

// endOfStream stands for the peer ending the lane stream instead of an answer.
const endOfStream = "end of stream"

// mallory is a gateway in this process that is a peer of victim, with the real
// link and pairing, and says on its lane what it likes.
type mallory struct {
	victim *peertest.Grid
	id     *federation.Identity
	grid   federation.GridID // the victim's
	node   *ygg.Node
	links  *link.Links
	to     transports.Addr
}

// newMallory makes mallory, who has m.grid.test in one protocol, and answers live
// requests by the handlers, if there are any.
func newMallory(t *testing.T, victim *peertest.Grid, dir string, proto federation.Protocol, live ...liveHandler) *mallory {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	id, _, err := federation.CreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(ctx, store.Options{Path: filepath.Join(dir, "m.db")})
	if err != nil {
		t.Fatal(err)
	}
	invite, err := victim.Gateway.Invite(ctx, "mallory", "m.grid.test")
	if err != nil {
		t.Fatal(err)
	}
	inv, err := pairing.Parse(invite)
	if err != nil {
		t.Fatal(err)
	}
	m := &mallory{victim: victim, id: id, to: inv.Nodes[0]}
	m.to.Port = meshPort
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.node, err = ygg.New(ygg.Config{Key: key, Peers: inv.Peerings, Accept: func(transports.Addr) bool { return true }}); err != nil {
		t.Fatal(err)
	}
	registry, err := federation.OpenRegistry(ctx, federation.RegistryConfig{
		Store: db, Identity: id, Name: "mallory", Own: map[federation.Protocol][]string{proto: {"m.grid.test"}},
		Nodes: []federation.Node{{ID: "m", SPKI: id.NodeSPKI(), Addrs: []string{m.node.Self().ID()}}},
		Policy: func(string) federation.Policy {
			return federation.Policy{Allow: map[federation.Protocol]bool{proto: true}, Limits: federation.DefaultLimits()}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p := pairing.New(pairing.Config{Registry: registry, Store: db, Key: id.Key(), Nodes: func() []transports.Addr { return []transports.Addr{m.node.Self()} }})
	m.links = newLinks(t, m.node, id, registry.Directory(), p.Handler())
	for _, h := range live {
		m.links.Handle(h.pattern, h)
	}
	done := make(chan error, 2)
	go func() { done <- m.node.Run(ctx) }()
	go func() { done <- m.links.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		check(t, errors.Join(<-done, <-done, db.Close()))
	})
	shown, err := p.Preview(ctx, m.links, inv)
	if err != nil {
		t.Fatal(err)
	}
	peer, there, err := p.Accept(ctx, m.links, shown, "victim")
	if err != nil || there != federation.StateActive {
		t.Fatalf("accept: %v, %v", there, err)
	}
	m.grid = peer.ID
	return m
}

// liveHandler answers live requests of peers.
type liveHandler struct {
	pattern string
	http.Handler
}

func newLinks(t *testing.T, node *ygg.Node, id *federation.Identity, dir *federation.Directory, unknown http.Handler) *link.Links {
	t.Helper()
	l, err := link.New(link.Config{
		Directory: dir, Leaf: id.Leaf, Transports: map[string]transports.Transport{ygg.Network: node},
		Port: meshPort, Epoch: 1, Lanes: []string{string(lane.Eph)}, Unknown: unknown,
		ServeLane: func(ctx context.Context, _ *federation.Peer, _ string, s io.ReadWriteCloser) error {
			_, err := io.Copy(io.Discard, s)
			return errors.Join(err, s.Close())
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// bounded runs an attack, then wants the victim's memory and its other peer well.
func (m *mallory) bounded(t *testing.T, w *world, attack func()) {
	t.Helper()
	bounded(t, m.victim.Gateway, attack)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := peertest.Exchange(ctx, w.alice, w.bob, io.Discard); err != nil {
		t.Errorf("the neighbours were disturbed: %v", err)
	}
}

// bounded runs an attack, then wants the memory of the gateway well.
func bounded(t *testing.T, g *peertest.Gateway, attack func()) {
	t.Helper()
	if err := g.ResetPeak(); err != nil {
		t.Fatal(err)
	}
	before, err := g.Memory()
	if err != nil {
		t.Fatal(err)
	}
	attack()
	after, err := g.Memory()
	if err != nil {
		t.Fatal(err)
	}
	growth := after.Peak - before.RSS
	t.Logf("memory grew by %.1f MiB at most", float64(growth)/(1<<20))
	if growth > maxGrowth {
		t.Errorf("memory grew by %d MiB, at most %d are allowed", growth>>20, maxGrowth>>20)
	}
}

// open returns a lane stream to the victim, as soon as there is one.
func (m *mallory) open(t *testing.T) io.ReadWriteCloser {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		s, err := m.links.OpenLane(t.Context(), m.grid, string(lane.Eph))
		if err == nil {
			return s
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// The wire of a lane: frames one way, acks the other (lane/codec.go).
type (
	wireFrame struct {
		Seq  uint64 `cbor:"2,keyasint"`
		Kind uint64 `cbor:"6,keyasint"`
		Body []byte `cbor:"9,keyasint"`
	}
	wireAck struct {
		Seq     uint64 `cbor:"2,keyasint"`
		Refused []struct {
			Seq  uint64 `cbor:"1,keyasint"`
			Code string `cbor:"2,keyasint"`
		} `cbor:"6,keyasint"`
	}
)

// send says one thing and returns with what it was refused, "" for accepted.
func (m *mallory) send(t *testing.T, stanza string) (code string) {
	t.Helper()
	s := m.open(t)
	defer s.Close()
	late := time.AfterFunc(patience, func() { s.Close() })
	defer late.Stop()
	frame, err := cbor.Marshal(wireFrame{1, 1, []byte(stanza)})
	if err != nil {
		t.Fatal(err)
	}
	// The victim may end the stream while this is being written.
	_, writeErr := s.Write(frame)
	var ack wireAck
	switch err := cbor.NewDecoder(s).Decode(&ack); {
	case err != nil:
		if !late.Stop() {
			t.Fatalf("no answer in %v: %v, %v", patience, writeErr, err)
		}
		return endOfStream
	case len(ack.Refused) > 0:
		return ack.Refused[0].Code
	}
	return ""
}

// flood sends the same stanza many times and counts the refusals.
func (m *mallory) flood(t *testing.T, stanza string, n int) {
	t.Helper()
	s := m.open(t)
	defer s.Close()
	late := time.AfterFunc(patience, func() { s.Close() })
	defer late.Stop()
	sent := make(chan error, 1)
	go func() {
		var buf bytes.Buffer
		for i := range n {
			frame, err := cbor.Marshal(wireFrame{uint64(i + 1), 1, []byte(stanza)})
			if err != nil {
				sent <- err
				return
			}
			buf.Write(frame)
		}
		_, err := s.Write(buf.Bytes())
		sent <- err
	}()
	refused, d := 0, cbor.NewDecoder(s)
	for refused < n {
		var ack wireAck
		if err := d.Decode(&ack); err != nil {
			t.Fatalf("after %d refusals: %v", refused, err)
		}
		refused += len(ack.Refused)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// idle opens streams in the mesh that never say anything.
func (m *mallory) idle(t *testing.T, n int) {
	t.Helper()
	for range n {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		c, err := m.node.Dial(ctx, m.to)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
}

// stranger comes with a grid key that nobody has approved.
func (m *mallory) stranger(t *testing.T) {
	t.Helper()
	id, _, err := federation.CreateIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l := newLinks(t, m.node, id, federation.NewDirectory(), nil)
	cc, _, err := l.DialPinned(t.Context(), m.to, m.grid.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	for _, path := range []string{"/v1/hello", "/v1/lane/eph", "/v1/nothing"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://yggate"+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := cc.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusForbidden && res.StatusCode != http.StatusNotFound {
			t.Errorf("%s answers a stranger with %s", path, res.Status)
		}
	}
}
