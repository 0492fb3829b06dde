//go:build integration

package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// long says that there is time for what takes minutes.
func long() bool { return os.Getenv("YGGATE_LONG") == "1" }

// absence is how many messages are sent to a peer that is away, and for how long
// it is.
func absence() (messages int, away time.Duration) {
	if long() {
		return 5000, 10 * time.Minute
	}
	return 1000, 15 * time.Second
}

// neighbours is two grids whose gateways are peered directly, ejabberd before a
// and Prosody before b, and a user on each.
type neighbours struct {
	a, b       *peertest.Grid
	alice, bob peertest.Party
}

func newNeighbours(t *testing.T) *neighbours {
	t.Helper()
	peertest.Require(t, "ejabberd", "erlang", "prosody")
	ctx, dir := t.Context(), t.TempDir()
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	n := &neighbours{
		a: newGrid(t, peertest.GridConfig{Name: "a", Kind: setup.Ejabberd, Domain: "a.grid.test", Dir: filepath.Join(dir, "a"),
			Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh}}),
		b: newGrid(t, peertest.GridConfig{Name: "b", Kind: setup.Prosody, Domain: "b.grid.test", Dir: filepath.Join(dir, "b")}),
	}
	// Prosody's own default, so that a message for a user who is not back yet is
	// kept; what the tests run otherwise has no need of it.
	offline := filepath.Join(dir, "b", setup.Prosody, "conf.d", "zz-offline.cfg.lua")
	if err := os.WriteFile(offline, []byte("VirtualHost \"b.grid.test\"\n\tmodules_enabled = { \"offline\" }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*peertest.Grid{n.a, n.b} {
		if err := g.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := peertest.Pair(ctx, n.a, n.b); err != nil {
		t.Fatal(err)
	}
	n.alice, n.bob = login(t, n.a, "alice"), login(t, n.b, "bob")
	if err := peertest.Exchange(ctx, n.alice, n.bob, testWriter{t}); err != nil {
		t.Fatal(err)
	}
	return n
}

// newGrid prepares a grid in DNS mode and stops it with the test.
func newGrid(t *testing.T, cfg peertest.GridConfig) *peertest.Grid {
	t.Helper()
	cfg.Mode = setup.DNS
	g, err := peertest.NewGrid(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		check(t, g.Stop())
		if t.Failed() {
			t.Logf("%s:\n%s", g.Gateway.Log, g.Gateway.LogTail(60))
			if g.Server != nil {
				t.Logf("%s:\n%s", g.Server.LogFile(), g.Server.LogTail(40))
			}
			if g.Homeserver != nil {
				t.Logf("%s:\n%s", g.Homeserver.LogFile(), g.Homeserver.LogTail(40))
			}
			if g.Broker != nil {
				t.Logf("%s:\n%s", g.Broker.LogFile(), g.Broker.LogTail(40))
			}
		}
	})
	return g
}

// login logs a user in, who is available until the test ends.
func login(t *testing.T, g *peertest.Grid, name string) peertest.Party {
	t.Helper()
	p, err := g.User(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() }) // a session that ended with its server reports that
	if err := p.Available(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPeerAway is what store and forward is for: what is sent while the peer's
// gateway, or the server behind it, is away arrives when it is back, once, in
// order, and says when it was sent.
func TestPeerAway(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t)
	ctx := t.Context()
	messages, away := absence()
	t.Run("the far gateway", func(t *testing.T) {
		if err := n.b.Gateway.Stop(); err != nil {
			t.Fatal(err)
		}
		m := newMail("gateway", messages)
		m.watch(n.alice, n.bob)
		m.sendOver(t, n.alice, n.bob, away)
		if err := n.b.Gateway.Start(ctx); err != nil {
			t.Fatal(err)
		}
		m.allArrive(t, time.Now(), true)
	})
	t.Run("the far server", func(t *testing.T) {
		if err := n.b.Server.Stop(); err != nil {
			t.Fatal(err)
		}
		m := newMail("server", messages)
		m.watch(n.alice, peertest.Party{}) // his session died with the server
		m.sendOver(t, n.alice, n.bob, away)
		if err := n.b.Server.Start(ctx); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		bob, err := n.b.User(ctx, "bob")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, bob.Close()) })
		m.watch(n.alice, bob) // before the server may give him anything
		if err := bob.Available(ctx); err != nil {
			t.Fatal(err)
		}
		m.allArrive(t, back, true)
	})
}

// TestNearGatewayKilled kills the sender's gateway again and again while messages
// are sent. What the gateway has acknowledged arrives, once and in order. What it
// had not is the server's to account for.
func TestNearGatewayKilled(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t)
	t.Run("ejabberd", func(t *testing.T) {
		// Every other kill comes when messages get through, the others before the
		// gateways have met again.
		m := killedWhile(t, mailing{"ejabberd", n.a, n.alice, n.bob}, 10, func(m *mail, i int) error {
			was := m.fate()
			return m.until(t, func(f fate) bool { return f.arrived >= was.arrived+50 || i%2 == 1 && f.sent >= was.sent+200 })
		})
		// ejabberd has no XEP-0198 between servers: what was on its way when the
		// stream broke it neither sends again nor gives back.
		t.Logf("%v: those ejabberd lost before the gateway had them", m.fate())
	})
	t.Run("Prosody", func(t *testing.T) {
		// Prosody has, and gives back what was not acknowledged, but for what it
		// held while it opened the stream: it sends that before it enables
		// XEP-0198 (mod_smacks of 0.12.3 says so itself). So a kill comes when a
		// message has arrived that was sent on the open stream.
		m := killedWhile(t, mailing{"Prosody", n.b, n.bob, n.alice}, 10, func(m *mail, _ int) error {
			for range 2 {
				sent := m.fate().sent
				if err := m.until(t, func(f fate) bool { return f.newest >= sent }); err != nil {
					return err
				}
			}
			return nil
		})
		t.Log(m.fate())
		if m.fate().neither > 0 {
			t.Errorf("%v, although the server has acknowledgements: %v", m.fate(), m.missing())
		}
	})
}

// TestNearGatewayStopped restarts the sender's gateway in good order, as an upgrade
// does, while it has yet to read what ejabberd has written to it and takes for
// delivered: none of that is lost.
func TestNearGatewayStopped(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t)
	ctx, gateway := t.Context(), n.a.Gateway
	m := newMail("stopped", 10_000)
	m.watch(n.alice, n.bob)
	for range 5 {
		m.flush(t, n.alice, n.bob) // ejabberd has its stream open
		signal := func(s syscall.Signal) {
			if err := gateway.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
		signal(syscall.SIGSTOP)
		if err := m.send(ctx, n.alice, n.bob, 200); err != nil {
			t.Fatal(err)
		}
		written(t, n.a, n.alice)
		m.reopens()
		signal(syscall.SIGTERM)
		signal(syscall.SIGCONT)
		<-gateway.Done()
		if err := gateway.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m.flush(t, n.alice, n.bob)
	m.mustBeOrderly(t)
	t.Log(m.fate())
	if m.fate().neither > 0 {
		t.Errorf("%v, although the gateway was asked to stop: %v", m.fate(), m.missing())
	}
}

// written waits until a server has written what it has for its gateway, which does not
// read: the socket fills no further while the server answers one ping after another.
func written(t *testing.T, g *peertest.Grid, user peertest.Party) {
	t.Helper()
	unread := func() (sum uint64) {
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		ip := g.Listen.Addr().As4()
		local := fmt.Sprintf("%02X%02X%02X%02X:%04X", ip[3], ip[2], ip[1], ip[0], g.Listen.Port())
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) < 5 || f[1] != local {
				continue
			}
			_, queue, _ := strings.Cut(f[4], ":")
			n, err := strconv.ParseUint(queue, 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		return sum
	}
	last, same := uint64(0), 0
	for same < 50 {
		if _, err := user.Ping(t.Context(), g.Domain); err != nil {
			t.Fatal(err)
		}
		if now := unread(); now > 0 && now == last {
			same++
		} else {
			last, same = now, 0
		}
	}
}

// mailing is who writes to whom, and the gateway that dies meanwhile.
type mailing struct {
	name     string
	near     *peertest.Grid
	from, to peertest.Party
}

// killedWhile has mail sent while the sender's gateway is killed some times, each
// time when due returns, and until nothing of it is under way any more.
func killedWhile(t *testing.T, who mailing, kills int, due func(m *mail, i int) error) *mail {
	t.Helper()
	m := newMail(who.name, 100_000) // as many as it takes
	m.watch(who.from, who.to)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	sending := make(chan error, 1)
	go func() {
		for {
			if err := m.send(ctx, who.from, who.to, 10); err != nil {
				sending <- err
				return
			}
			m.breathe(ctx)
		}
	}()
	for i := range kills {
		if err := due(m, i); err != nil {
			t.Fatal(err)
		}
		m.reopens()
		if err := who.near.Gateway.Kill(); err != nil {
			t.Fatal(err)
		}
		f := m.fate()
		t.Logf("killed with %d sent and %d arrived", f.sent, f.newest+1)
		if err := who.near.Gateway.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := due(m, 0); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-sending; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	m.flush(t, who.from, who.to)
	m.mustBeOrderly(t)
	return m
}

// TestSlowPeer has one peer's server take a message a second, with thousands of
// them waiting for it: another peer must not notice.
func TestSlowPeer(t *testing.T) {
	n := newNeighbours(t)
	ctx := t.Context()
	slow := newSlowServer(t)
	invite, err := n.a.Gateway.Invite(ctx, "c", "c.grid.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := slow.gateway.Accept(ctx, invite, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.a.AwaitUp(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	talk := peertest.Load{Messages: 500, Window: 1, Body: 200}
	if long() {
		talk.Messages = 10_000
	}
	measure := func() peertest.Measured {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(ctx, 3*patience, errors.New("too slow by far"))
		defer cancel()
		m, err := talk.Run(ctx, n.alice, n.bob)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	measure() // warm
	alone := measure()
	carol := login(t, n.a, "carol")
	// More than the slow grid's gateway holds for its server: the rest has to wait
	// at this side.
	const flood = 5000
	for i := range flood {
		if err := carol.SendMessage(ctx, "dave@c.grid.test", strings.Repeat("x", 3000), strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-slow.third: // the flood has long come to rest
	case <-time.After(patience):
		t.Fatal("the slow server was given too little")
	}
	beside := measure()
	took := slow.taken.Load()
	t.Logf("alone %v; beside a slow peer %v: p99 %.2f times as long, aim 1.5; the slow server took %d of %d",
		alone, beside, float64(beside.P99)/float64(alone.P99), took, flood)
	// Who waits for the slow one waits for seconds; the rest is what else this
	// machine does.
	if limit := alone.P99*3/2 + time.Second; beside.P99 > limit {
		t.Errorf("p99 is %v beside a slow peer, want at most %v", beside.P99, limit)
	}
	if took > flood/2 {
		t.Errorf("the slow server took %d messages: it was not slow", took)
	}
}

// slowServer is a grid whose XMPP server takes a message a second: package s2s in
// the part of the server, since a real one cannot be made so slow.
type slowServer struct {
	gateway *peertest.Gateway
	taken   atomic.Int64
	third   chan struct{} // closed when the third message has come
}

func newSlowServer(t *testing.T) *slowServer {
	t.Helper()
	ctx, dir := t.Context(), t.TempDir()
	g, err := peertest.NewGateway(ctx, "c", dir, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	server, listen := netip.AddrPortFrom(peertest.Loopback(), 5269).String(), netip.AddrPortFrom(peertest.Loopback(), 5269).String()
	if err := g.Init(ctx, "--name", "c", "--domain", "c.grid.test", "--server", server, "--listen", listen, "--dns", "off"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, g.Stop()) })
	if err := g.Start(ctx); err != nil {
		t.Fatal(err)
	}
	ca, err := localca.Open(filepath.Join(dir, "state", "xmpp"))
	if err != nil {
		t.Fatal(err)
	}
	s := &slowServer{gateway: g, third: make(chan struct{})}
	streams, err := s2s.New(s2s.Config{Listen: server, CA: ca, Servers: []s2s.Server{{Addr: listen}}, Handler: s})
	if err != nil {
		t.Fatal(err)
	}
	life, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- streams.Run(life) }()
	t.Cleanup(func() {
		stop()
		check(t, <-ended)
	})
	return s
}

// Open implements s2s.Handler.
func (s *slowServer) Open(string, string) error { return nil }

// Stanzas implements s2s.Handler.
func (s *slowServer) Stanzas(ctx context.Context, _, _ string, batch [][]byte, settled func()) error {
	for range batch {
		if s.taken.Add(1) == 3 {
			close(s.third)
		}
		wait(ctx, time.Second) // that is how slow it is
	}
	settled()
	return nil
}

// Skipped implements s2s.Handler: nothing that large is sent.
func (s *slowServer) Skipped(_ context.Context, _, _ string, stanza *frame.Skipped, _ func()) error {
	return stanza
}

// Failed implements s2s.Handler.
func (s *slowServer) Failed(string, string, [][]byte, error) {}

// LocalLost implements s2s.Handler.
func (s *slowServer) LocalLost(string) {}

// LocalBack implements s2s.Handler.
func (s *slowServer) LocalBack(string) {}
