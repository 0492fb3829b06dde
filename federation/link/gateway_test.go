package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// patience is how long a test waits for what must come; it decides nothing.
const patience = 30 * time.Second

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// loopback is a transport over TCP on 127/8: a node is an IP literal.
type loopback struct {
	ip string
	// via, when set, says which address to dial for a node.
	via       func(node string, port uint16) string
	listening chan struct{} // closed by Listen
	// closing, when set, is called when a listener has refused its last and its
	// Close has not returned.
	closing func()

	mu    sync.Mutex
	paths []transports.Path
}

func (t *loopback) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (t *loopback) Dial(ctx context.Context, to transports.Addr) (transports.Conn, error) {
	at := net.JoinHostPort(to.Node, fmt.Sprint(to.Port))
	if t.via != nil {
		at = t.via(to.Node, to.Port)
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(t.ip)}}
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, err
	}
	return &loopConn{c, transports.Addr{Net: "tcp", Node: to.Node, Port: to.Port}}, nil
}

func (t *loopback) Listen(port uint16) (transports.Listener, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(t.ip, fmt.Sprint(port)))
	close(t.listening)
	return &loopListener{l, transports.Addr{Net: "tcp", Node: t.ip, Port: port}, t.closing}, err
}

func (t *loopback) Status() transports.Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	return transports.Status{Self: transports.Addr{Net: "tcp", Node: t.ip}, Up: true, Paths: t.paths}
}

type loopConn struct {
	net.Conn
	remote transports.Addr
}

func (c *loopConn) Remote() transports.Addr { return c.remote }

type loopListener struct {
	net.Listener
	self    transports.Addr
	closing func()
}

func (l *loopListener) Close() error {
	err := l.Listener.Close()
	if err == nil && l.closing != nil { // a second Close fails, at once
		l.closing()
	}
	return err
}

func (l *loopListener) Addr() transports.Addr { return l.self }

func (l *loopListener) Accept() (transports.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	// A far end has another port each time, as with every transport.
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return &loopConn{c, transports.Addr{Net: "tcp", Node: from.Addr().String(), Port: from.Port()}}, nil
}

var (
	nextIP   = 1
	nextIPMu sync.Mutex
)

// newIP gives each gateway of this test process an address of its own.
func newIP() string {
	nextIPMu.Lock()
	defer nextIPMu.Unlock()
	nextIP++
	return fmt.Sprintf("127.%d.%d.%d", 64+nextIP/250, os.Getpid()%250+1, nextIP%250+1)
}

const testPort = 9001

// testGateway is one side of a link.
type testGateway struct {
	*Links
	t      testing.TB
	id     *federation.Identity
	ip     string
	net    *loopback
	dir    *federation.Directory
	stop   func() // returns when Run has
	events chan Event

	mu    sync.Mutex
	peers map[federation.GridID]*federation.Peer
}

type option func(*Config, *testGateway)

// quick makes what takes seconds take less, for tests that are not about it.
func quick(c *Config, _ *testGateway) {
	c.Timing = Timing{RedialMin: 50 * time.Millisecond, RedialMax: 200 * time.Millisecond, RedialRecent: 200 * time.Millisecond}
}

func newIdentity(t testing.TB) *federation.Identity {
	t.Helper()
	id, _, err := federation.CreateIdentity(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func newGateway(t testing.TB, opts ...option) *testGateway {
	t.Helper()
	g := &testGateway{
		t: t, id: newIdentity(t), ip: newIP(), dir: federation.NewDirectory(),
		events: make(chan Event, 1000), peers: map[federation.GridID]*federation.Peer{},
	}
	g.start(1, opts...)
	return g
}

func (g *testGateway) start(epoch uint64, opts ...option) {
	g.t.Helper()
	g.net = &loopback{ip: g.ip, listening: make(chan struct{})}
	cfg := Config{
		Directory: g.dir, Leaf: g.id.Leaf, Transports: map[string]transports.Transport{"tcp": g.net},
		Port: testPort, Epoch: epoch, Software: "test", Lanes: []string{"eph"},
		ServeLane: echo,
		OnState:   func(e Event) { g.events <- e },
		Unknown: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "peer=%v body=%d err=%v", PeerFrom(r.Context()) != nil, len(body), err)
		}),
	}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("gw", g.ip)
	}
	for _, o := range opts {
		o(&cfg, g)
	}
	l, err := New(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Links = l
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	var once sync.Once
	g.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				g.t.Errorf("run: %v", err)
			}
		})
	}
	g.t.Cleanup(g.stop)
	<-g.net.listening
}

// echo returns every line that comes on a lane.
func echo(_ context.Context, _ *federation.Peer, _ string, stream io.ReadWriteCloser) error {
	_, err := io.Copy(stream, stream)
	return err
}

// knows makes other a peer of g in the given state.
func (g *testGateway) knows(other *testGateway, state federation.State) {
	g.change(other.id.ID(), func(p *federation.Peer) {
		p.Key, p.Name, p.State = other.id.Key(), "peer-"+other.ip, state
		p.Descriptor = &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{"tcp:" + other.ip}}}}
	})
}

// change publishes a new form of a peer.
func (g *testGateway) change(id federation.GridID, with func(*federation.Peer)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := &federation.Peer{ID: id, Policy: federation.Policy{Limits: federation.DefaultLimits()}}
	if old := g.peers[id]; old != nil {
		*p = *old
	}
	with(p)
	g.peers[id] = p
	var all []*federation.Peer
	for _, p := range g.peers {
		all = append(all, p)
	}
	g.dir.Publish(federation.NewSnapshot(all, nil, nil))
}

func (g *testGateway) setState(other *testGateway, s federation.State) {
	g.change(other.id.ID(), func(p *federation.Peer) { p.State = s })
}

// link makes two gateways active peers of each other.
func link(a, b *testGateway) {
	a.knows(b, federation.StateActive)
	b.knows(a, federation.StateActive)
}

// await waits for the next event and checks it.
func (g *testGateway) await(up bool) Event {
	g.t.Helper()
	select {
	case e := <-g.events:
		if e.Up != up {
			g.t.Fatalf("event %+v, want up=%v; status %+v", e, up, g.Status())
		}
		return e
	case <-time.After(patience):
		g.t.Fatalf("waited in vain for up=%v; status %+v", up, g.Status())
	}
	return Event{}
}

// awaitError waits until the link to the only peer has failed with a word.
func (g *testGateway) awaitError(with string) {
	g.t.Helper()
	waitFor(g.t, "the error "+with, func() bool {
		for _, st := range g.Status() {
			if st.State == Up {
				g.t.Fatalf("link is up, want error %q", with)
			}
			if contains(st.LastError, with) {
				return true
			}
		}
		return false
	})
}

func contains(s, sub string) bool {
	for i := 0; i+len(sub) <= len(s); i++ {
		if s[i:i+len(sub)] == sub {
			return true
		}
	}
	return false
}

// lane opens a lane stream, which the far side echoes.
func (g *testGateway) lane(to *testGateway) io.ReadWriteCloser {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := g.OpenLane(ctx, to.id.ID(), "eph")
	if err != nil {
		g.t.Fatalf("open lane: %v", err)
	}
	return s
}

// talk sends a line and reads it back.
func talk(s io.ReadWriter, line string) error {
	if _, err := io.WriteString(s, line+"\n"); err != nil {
		return err
	}
	got, err := bufio.NewReader(s).ReadString('\n')
	if err != nil {
		return err
	}
	if got != line+"\n" {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

// dialRaw opens a TLS connection to g as a client would, with any certificate.
func (g *testGateway) dialRaw(fromIP string, cert *tls.Certificate) (*tls.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(fromIP)}, Timeout: patience}
	c, err := d.Dial("tcp", net.JoinHostPort(g.ip, fmt.Sprint(testPort)))
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	tc := tls.Client(c, cfg)
	return tc, errors.Join(tc.SetDeadline(time.Now().Add(patience)), tc.Handshake())
}
