package link

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// proxy stands between two gateways and can stop forwarding without closing
// anything, as a machine that was suspended or a mesh that was cut does.
type proxy struct {
	t    *testing.T
	ln   net.Listener
	to   string
	mu   sync.Mutex
	gate chan struct{} // closed: forward
}

// newProxy carries connections of the gateway at fromIP to the one at toIP.
func newProxy(t *testing.T, toIP string) *proxy {
	ln, err := net.Listen("tcp", net.JoinHostPort(newIP(), "9001"))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, ln: ln, to: net.JoinHostPort(toIP, "9001"), gate: make(chan struct{})}
	close(p.gate)
	t.Cleanup(func() { ln.Close(); p.thaw() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go p.carry(c)
		}
	}()
	return p
}

func (p *proxy) carry(c net.Conn) {
	defer c.Close()
	<-p.open()
	// The far side must see the address of the node that dialled.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.RemoteAddr().(*net.TCPAddr).IP}}
	up, err := d.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() { defer up.Close(); defer c.Close(); p.copy(up, c) }()
	p.copy(c, up)
}

func (p *proxy) copy(to io.Writer, from io.Reader) {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		<-p.open()
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (p *proxy) open() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gate
}

func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

// With the timing that is used in earnest.
func TestDeadLinkIsFoundAtBothEnds(t *testing.T) {
	t.Parallel()
	a, b := newGateway(t), newGateway(t)
	ab := newProxy(t, b.ip)
	a.net.via = func(string, uint16) string { return ab.ln.Addr().String() }
	// b has no way to a, so that only its accepting end can notice anything.
	b.net.via = func(string, uint16) string { return "127.0.0.1:1" }
	link(a, b)
	a.await(true)
	s := a.lane(b)
	if err := talk(s, "x"); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	ab.freeze()
	read := make(chan error, 1)
	go func() { _, err := s.Read(make([]byte, 1)); read <- err }()
	a.await(false)
	dialler := time.Since(start)
	if err := <-read; err == nil {
		t.Error("a read on the dead link returned without an error")
	}
	waitFor(t, "the accepting end to close", func() bool { return b.Status()[0].Inbound == 0 })
	acceptor := time.Since(start)
	t.Logf("found dead after %v by the dialler, %v by the acceptor", dialler, acceptor)
	// It is 10 s at most; the rest is for a machine that is busy.
	if max(dialler, acceptor) > 20*time.Second {
		t.Errorf("want at most 10s, or 20s on a busy machine")
	}
	start = time.Now()
	ab.thaw()
	a.await(true)
	t.Logf("up again %v after the return", time.Since(start))
	if err := talk(a.lane(b), "back"); err != nil {
		t.Fatal(err)
	}
}

// lazy never dials again by itself.
func lazy(c *Config, _ *testGateway) {
	c.Timing = Timing{RedialMin: time.Hour, RedialMax: time.Hour, RedialRecent: time.Hour}
}

func TestInboundConnectionWakesTheRedial(t *testing.T) {
	a, b := newGateway(t, lazy), newGateway(t, quick)
	b.stop()
	a.knows(b, federation.StateActive)
	a.awaitError("connection refused")
	b.start(2, quick)
	b.knows(a, federation.StateActive)
	b.await(true)
	a.await(true)
}

func TestInboundConnectionTellsTheAddress(t *testing.T) {
	a, b := newGateway(t, lazy), newGateway(t, quick)
	a.change(b.id.ID(), func(p *federation.Peer) { p.Key, p.Name, p.State = b.id.Key(), "b", federation.StateActive })
	a.awaitError(errNoAddress.Error())
	b.knows(a, federation.StateActive)
	a.await(true)
}

func TestWakeDialsNow(t *testing.T) {
	a, b := newGateway(t, lazy), newGateway(t, quick)
	b.stop()
	a.knows(b, federation.StateActive)
	a.awaitError("connection refused")
	b.knows(a, federation.StatePending) // so that it does not come by itself
	b.start(2, quick)
	a.Wake(b.id.ID())
	a.awaitError("has not approved")
	b.dir.Publish(federation.NewSnapshot(nil, nil, nil))
}

func TestPathOfTheTransportWakesTheRedial(t *testing.T) {
	a, b := newGateway(t, lazy), newGateway(t, quick)
	b.stop()
	a.knows(b, federation.StateActive)
	a.awaitError("connection refused")
	b.knows(a, federation.StatePending)
	b.start(2, quick)
	a.net.mu.Lock()
	a.net.paths = []transports.Path{{Node: b.ip, Session: true}}
	a.net.mu.Unlock()
	a.awaitError("has not approved")
}

// silent listens on an address of its own, and says nothing to who comes.
func silent(t *testing.T) (node string) {
	t.Helper()
	node = newIP()
	ln, err := net.Listen("tcp", net.JoinHostPort(node, "9001"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return node
}

// A dial to where the peer is no more ends when it is known to be elsewhere.
func TestDialEndsForANewAddress(t *testing.T) {
	for name, tell := range map[string]func(a, b *testGateway){
		"from a descriptor": func(a, b *testGateway) {
			a.knows(b, federation.StateActive)
		},
		"from a connection of the peer's": func(a, b *testGateway) {
			b.change(a.id.ID(), func(p *federation.Peer) {
				p.Descriptor = &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{"tcp:" + a.ip}}}}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, nowhere := newGateway(t, patient), newGateway(t, quick), silent(t)
			b.change(a.id.ID(), func(p *federation.Peer) { p.Key, p.Name, p.State = a.id.Key(), "a", federation.StateActive })
			a.change(b.id.ID(), func(p *federation.Peer) {
				p.Key, p.Name, p.State = b.id.Key(), "b", federation.StateActive
				p.Descriptor = &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{"tcp:" + nowhere}}}}
			})
			waitFor(t, "a dial", func() bool { return len(a.Status()) == 1 && a.Status()[0].State == Dialing })
			tell(a, b)
			a.await(true)
		})
	}
}

func TestSecondAddressIsTried(t *testing.T) {
	a, b, node := newGateway(t, patient), newGateway(t, quick), silent(t)
	b.knows(a, federation.StatePaused)
	a.change(b.id.ID(), func(p *federation.Peer) {
		p.Key, p.Name, p.State = b.id.Key(), "b", federation.StateActive
		p.Descriptor = &federation.Descriptor{Nodes: []federation.Node{
			{Addrs: []string{"i2p:unreachable", "tcp:" + node}},
			{Addrs: []string{"tcp:" + b.ip}, Prio: 1},
		}}
	})
	b.setState(a, federation.StateActive)
	a.await(true)
}

// However peers come and go, each hears of ups and downs in turn.
func TestEventsAlternate(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	a.await(true)
	for i := range 20 {
		switch i % 4 {
		case 0:
			a.setState(b, federation.StatePaused)
			a.setState(b, federation.StateActive)
		case 1:
			b.setState(a, federation.StatePaused)
			b.setState(a, federation.StateActive)
		case 2:
			a.setState(b, federation.StateRemoved)
			a.await(false)
			a.setState(b, federation.StateActive)
			a.await(true)
		case 3:
			b.stop()
			a.await(false)
			b.start(uint64(i+2), quick)
			a.await(true)
		}
	}
	a.stop()
	b.stop()
	for _, g := range []*testGateway{a, b} {
		last := g == a // a has told of an up that was taken above
		for len(g.events) > 0 {
			e := <-g.events
			if e.Up == last {
				t.Fatalf("two events up=%v in turn", e.Up)
			}
			last = e.Up
		}
		if last {
			t.Error("the last event of a stopped gateway is up")
		}
	}
}

// The first event of a link comes before any stream, also when many wait for it.
func TestUpIsToldBeforeStreamsOpen(t *testing.T) {
	var told sync.Map
	slow := func(c *Config, g *testGateway) {
		quick(c, g)
		c.OnState = func(e Event) {
			if e.Up {
				time.Sleep(20 * time.Millisecond) // gives a wrong order the time to show
				told.Store(e.Peer, true)
			}
			g.events <- e
		}
	}
	a, b := newGateway(t, slow), newGateway(t, quick)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := a.OpenLane(context.Background(), b.id.ID(), "eph")
				if err != nil {
					if !errors.Is(err, federation.ErrPeerDown) {
						t.Errorf("open lane: %v", err)
						return
					}
					runtime.Gosched()
					continue
				}
				if _, ok := told.Load(b.id.ID()); !ok {
					t.Error("a stream was open before the link was told to be up")
				}
				s.Close()
				return
			}
		})
	}
	link(a, b)
	a.await(true)
	waitIn(t, &wg, "the streams")
	close(stop)
}

func TestStopLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	a.await(true)
	b.await(true)
	s := a.lane(b)
	if err := talk(s, "x"); err != nil {
		t.Fatal(err)
	}
	a.stop()
	b.stop()
	waitFor(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	waitFor(t, "nothing", func() bool { return !strings.Contains(stacks(), "federation/link.(*Links)") })
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// TestPortIsFreeAfterRun: whoever starts the next life at once finds no listener.
func TestPortIsFreeAfterRun(t *testing.T) {
	var closed atomic.Bool
	slow := func(_ *Config, g *testGateway) {
		g.net.closing = func() {
			time.Sleep(50 * time.Millisecond) // time in which Run would return, if it did not wait
			closed.Store(true)
		}
	}
	g := newGateway(t, slow)
	g.stop()
	if !closed.Load() {
		t.Error("Run returned while its listener was being closed")
	}
}
