package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

func tcpAddr(ip string) transports.Addr { return transports.Addr{Net: "tcp", Node: ip, Port: testPort} }

func leafOf(t *testing.T, id *federation.Identity, ip string, at time.Time) *tls.Certificate {
	t.Helper()
	c, err := id.IssueLeaf(tcpAddr(ip), at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A server must end the session of a client that cannot prove itself, with an
// alert that the client sees, and serve others as before.
func TestRefusedInTheHandshake(t *testing.T) {
	g, good := newGateway(t, quick), newGateway(t, quick)
	link(g, good)
	good.await(true)
	peer, blocked := newGateway(t, quick), newGateway(t, quick)
	g.knows(peer, federation.StateActive)
	g.knows(blocked, federation.StateBlocked)
	ip, now := newIP(), time.Now()
	forged := leafOf(t, newIdentity(t), ip, now)
	forged.Certificate[1] = leafOf(t, peer.id, ip, now).Certificate[1]
	single := leafOf(t, peer.id, ip, now)
	single.Certificate = single.Certificate[:1]
	for name, c := range map[string]struct {
		cert *tls.Certificate
		why  string
	}{
		"no leaf":              {nil, "certificate required"},
		"forged leaf":          {forged, "bad certificate"},
		"leaf without root":    {single, "bad certificate"},
		"expired leaf":         {leafOf(t, peer.id, ip, now.Add(-31*24*time.Hour)), "bad certificate"},
		"leaf of another node": {leafOf(t, peer.id, newIP(), now), "bad certificate"},
		"blocked grid":         {leafOf(t, blocked.id, ip, now), "bad certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := g.dialRaw(ip, c.cert)
			if err == nil {
				defer conn.Close()
				// More than the alert is due to be on the way.
				if _, err := conn.Write(make([]byte, 8<<10)); err != nil {
					t.Logf("write: %v", err)
				}
				_, err = conn.Read(make([]byte, 1))
			}
			if err == nil || !strings.Contains(err.Error(), c.why) {
				t.Fatalf("got %v, want an alert %q", err, c.why)
			}
		})
	}
	if err := talk(good.lane(g), "unharmed"); err != nil {
		t.Fatal(err)
	}
}

// get posts to a path of g over a connection of its own, as other.
func post(t *testing.T, from, to *testGateway, path, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, _, err := from.DialPinned(ctx, tcpAddr(to.ip), to.id.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequestWithContext(ctx, "POST", requestURL(path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := conn.RoundTrip(req)
	if err != nil {
		return 0, Explain(err).Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func TestWhatEachStateReaches(t *testing.T) {
	g := newGateway(t, quick)
	g.Handle("POST /v1/extra/{name}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, remote, ok := ProofFrom(r.Context())
		fmt.Fprint(w, r.PathValue("name"), " ", PeerFrom(r.Context()).Name, " ", remote.ID(), ok, " ", r.RemoteAddr)
	}))
	for _, state := range []federation.State{"", federation.StatePending, federation.StatePaused, federation.StateRemoved, federation.StateActive} {
		t.Run("state "+string(state), func(t *testing.T) {
			from := newGateway(t, quick)
			if state != "" {
				g.knows(from, state)
			}
			active := state == federation.StateActive
			for _, path := range []string{"/v1/pair", "/v1/descriptor"} {
				want := fmt.Sprintf("peer=%v body=4 err=<nil>", active)
				if code, text := post(t, from, g, path, "body"); code != 200 || text != want {
					t.Errorf("%s: %d %q, want %q", path, code, text, want)
				}
			}
			for _, path := range []string{"/v1/hello", "/v1/lane/eph", "/v1/extra/x", "/", "/v1/pair/../hello"} {
				code, text := post(t, from, g, path, "{}")
				switch {
				case !active && code != 403:
					t.Errorf("%s: %d %q, want 403", path, code, text)
				case active && path == "/" && code != 404:
					t.Errorf("%s: %d %q, want 404", path, code, text)
				case active && path == "/v1/extra/x" && !strings.HasPrefix(text, "x peer-"+from.ip+" tcp:"+from.ip+"true tcp:"+from.ip+":"):
					t.Errorf("%s: %d %q", path, code, text)
				}
			}
			if !active {
				if code, text := post(t, from, g, "/v1/pair", strings.Repeat("x", unknownBody+1)); !strings.Contains(text, "too large") {
					t.Errorf("large body: %d %q", code, text)
				}
			}
		})
	}
}

// Who dials learns which key there is instead: it may be the one that was announced.
func TestAnotherKeyIsNamed(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	want := newIdentity(t).Key()
	var other *federation.WrongKeyError
	if _, _, err := a.DialPinned(limited(t), tcpAddr(b.ip), want); !errors.As(err, &other) || !other.Got.Equal(b.id.Key()) || !other.Want.Equal(want) {
		t.Errorf("got %v", err)
	}
}

func TestDialerLearnsWhyItIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(a, b *testGateway)
		want    string
	}{
		"not approved": {func(a, b *testGateway) { b.knows(a, federation.StatePending) }, "has not approved your grid key"},
		"unknown":      {func(a, b *testGateway) {}, "has not approved your grid key"},
		"blocked":      {func(a, b *testGateway) { b.knows(a, federation.StateBlocked) }, "refused by the peer: tls: bad certificate"},
		"other grid": {func(a, b *testGateway) {
			key := newIdentity(t).Key()
			a.change(b.id.ID(), func(p *federation.Peer) { p.Key = key })
			b.knows(a, federation.StateActive)
		}, errWrongGrid.Error()},
		"no address": {func(a, b *testGateway) {
			a.change(b.id.ID(), func(p *federation.Peer) { p.Descriptor = nil })
		}, errNoAddress.Error()},
		"not there": {func(a, b *testGateway) { b.stop() }, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newGateway(t, quick), newGateway(t, quick)
			// The peer is known to both before either dials.
			c.prepare(a, b)
			a.change(b.id.ID(), func(p *federation.Peer) {
				p.Name, p.State = "peer", federation.StateActive
				if p.Key == nil {
					p.Key = b.id.Key()
				}
				if name != "no address" {
					p.Descriptor = &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{"tcp:" + b.ip}}}}
				}
			})
			a.awaitError(c.want)
		})
	}
}

// What a peer says is shown to people, and must not act on their terminal.
func TestRefusalTextIsHarmless(t *testing.T) {
	said := "no\x1b[2J\r\n\u009b31m\u202eyes\xff"
	res := &http.Response{Status: "403 Forbidden", Body: io.NopCloser(strings.NewReader(said))}
	got := refusalText(res)
	if err := federation.CheckText(got); err != nil || !strings.HasPrefix(got, "403 Forbidden: no") {
		t.Errorf("%q: %v", got, err)
	}
}

func TestLowerEpochIsRefused(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	a.await(true)
	b.await(true)
	a.stop()
	b.await(false)
	a.start(5, quick)
	if e := b.await(true); e.Epoch != 5 {
		t.Fatalf("epoch %d", e.Epoch)
	}
	waitFor(t, "the hello with epoch 5", func() bool { return a.Status()[0].State == Up })
	a.stop()
	a.start(4, quick)
	a.awaitError("epoch 4 is past")
}

// A peer that comes with ever new nodes is not remembered without end.
func TestEpochsAreBounded(t *testing.T) {
	l, err := New(Config{
		Directory: federation.NewDirectory(), Leaf: newIdentity(t).Leaf, Port: testPort, Epoch: 1,
		ServeLane: echo,
	})
	if err != nil {
		t.Fatal(err)
	}
	const late = 1 << 40
	node := func(i int) federation.Hash { return federation.Hash{byte(i), byte(i >> 8)} }
	l.noteEpoch("peer", node(0), late)
	for i := 1; i < 10*maxEpochs; i++ {
		if highest := l.noteEpoch("peer", node(i), uint64(i)); highest != uint64(i) {
			t.Fatalf("node %d has said %d", i, highest)
		}
	}
	if n := len(l.epochs["peer"]); n != maxEpochs {
		t.Errorf("%d nodes are remembered", n)
	}
	if highest := l.noteEpoch("peer", node(0), late-1); highest != late {
		t.Errorf("the newest was forgotten: %d", highest)
	}
}
