package link

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// narrow is a way between two gateways that passes rate bytes a second each way,
// for all connections together.
type narrow struct {
	ln     net.Listener
	to     string
	passed atomic.Int64
	mu     sync.Mutex
	free   [2]time.Time // when each direction has passed what it took
}

const narrowRate = 300 << 10

func newNarrow(t *testing.T, toIP string) *narrow {
	ln, err := net.Listen("tcp", net.JoinHostPort(newIP(), "9001"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	n := &narrow{ln: ln, to: net.JoinHostPort(toIP, "9001")}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go n.carry(c)
		}
	}()
	return n
}

func (n *narrow) carry(c net.Conn) {
	defer c.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: c.RemoteAddr().(*net.TCPAddr).IP}}
	up, err := d.Dial("tcp", n.to)
	if err != nil {
		return
	}
	defer up.Close()
	go func() { defer up.Close(); defer c.Close(); n.copy(0, up, c) }()
	n.copy(1, c, up)
}

func (n *narrow) copy(dir int, to io.Writer, from io.Reader) {
	buf := make([]byte, 8<<10)
	for {
		k, err := from.Read(buf)
		n.mu.Lock()
		if now := time.Now(); n.free[dir].Before(now) {
			n.free[dir] = now
		}
		n.free[dir] = n.free[dir].Add(time.Duration(k) * time.Second / narrowRate)
		at := n.free[dir]
		n.mu.Unlock()
		time.Sleep(time.Until(at))
		n.passed.Add(int64(k))
		if _, werr := to.Write(buf[:k]); err != nil || werr != nil {
			return
		}
	}
}

// On a way that needs longer for what bodies may have in flight than a hello may
// take, the link stays up and lanes pass.
func TestBodiesDoNotHoldUpHellosAndLanes(t *testing.T) {
	for _, method := range []string{"GET", "PUT"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			hurried := func(c *Config, g *testGateway) {
				quick(c, g)
				c.Timing.Hello, c.Timing.Heartbeat = 2*time.Second, 500*time.Millisecond
			}
			a, b := newGateway(t, hurried), newGateway(t, hurried)
			b.Handle(livePath, http.HandlerFunc(serveBulk))
			n := newNarrow(t, b.ip)
			a.net.via = func(string, uint16) string { return n.ln.Addr().String() }
			link(a, b)
			a.await(true)
			ctx, cancel := context.WithCancel(context.Background())
			var bodies sync.WaitGroup
			defer bodies.Wait()
			defer cancel()
			for range 8 {
				bodies.Go(func() {
					if _, err := transfer(ctx, a, b, method); ctx.Err() == nil {
						t.Errorf("a body has ended: %v", err)
					}
				})
			}
			s := a.lane(b)
			for n.passed.Load() < 9*narrowRate {
				if err := talk(s, "in between"); err != nil {
					t.Fatalf("lane: %v", err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if len(a.events) > 0 {
				t.Errorf("%+v", <-a.events)
			}
		})
	}
}

func TestIdleLiveConnectionEnds(t *testing.T) {
	brief := func(c *Config, _ *testGateway) { c.Timing.LiveIdle = 20 * time.Millisecond }
	hold := make(chan struct{})
	a, b := livePair(t, 64, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			<-hold
		}
	}, brief)
	inbound := func() int {
		b.Links.mu.Lock()
		defer b.Links.mu.Unlock()
		return len(b.inbound)
	}
	for range 50 {
		res, err := a.ask(limited(t), b, "GET", nil)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		time.Sleep(20 * time.Millisecond) // about when it is given up
	}
	waitFor(t, "the connection to end", func() bool { return inbound() == 1 })
	done := make(chan error, 1)
	go func() {
		res, err := a.ask(limited(t), b, "PUT", nil)
		if err == nil {
			res.Body.Close()
		}
		done <- err
	}()
	waitFor(t, "a new one", func() bool { return inbound() == 2 })
	time.Sleep(100 * time.Millisecond) // longer than it may be idle
	close(hold)
	if err := <-done; err != nil {
		t.Errorf("the connection was ended under a request: %v", err)
	}
	if st := a.Status()[0]; st.Attempts != 0 || b.Status()[0].Inbound != 1 {
		t.Errorf("status %+v", st)
	}
}

// The end of that connection alone does not touch the link, and the next request
// has a new one.
func TestLiveConnectionAloneEnds(t *testing.T) {
	began := make(chan struct{})
	a, b := livePair(t, 64, func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			close(began)
			<-r.Context().Done()
		}
	})
	failed := make(chan error, 1)
	go func() { _, err := a.ask(limited(t), b, "PUT", nil); failed <- err }()
	<-began
	b.Links.mu.Lock()
	for in := range b.inbound {
		if in.live {
			in.close()
		}
	}
	b.Links.mu.Unlock()
	if err := <-failed; !errors.Is(err, federation.ErrPeerDown) {
		t.Errorf("got %v", err)
	}
	res, err := a.ask(limited(t), b, "GET", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if len(a.events) > 0 || a.Status()[0].State != Up {
		t.Errorf("the link went down: %+v", a.Status())
	}
}

// Each kind of connection carries its own only, and a peer has one for live requests.
func TestKindsOfConnections(t *testing.T) {
	a, b := livePair(t, 64, func(http.ResponseWriter, *http.Request) {})
	if code, text := post(t, a, b, livePath, ""); code != http.StatusMisdirectedRequest {
		t.Errorf("live request on a common connection: %d %q", code, text)
	}
	var live []*pinned
	for range 3 {
		c, err := a.dial(limited(t), tcpAddr(b.ip), b.id.Key(), liveName)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		live = append(live, c)
		req, err := http.NewRequestWithContext(limited(t), "POST", requestURL("/v1/lane/eph"), nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.cc.RoundTrip(req)
		if err != nil || res.StatusCode != http.StatusMisdirectedRequest {
			t.Fatalf("lane on a live connection: %v %v", res, err)
		}
		res.Body.Close()
	}
	waitFor(t, "the one for live requests", func() bool { // by the name, and not by the path
		b.Links.mu.Lock()
		defer b.Links.mu.Unlock()
		for in := range b.inbound {
			if in.live {
				return true
			}
		}
		return false
	})
	waitFor(t, "all but one to be closed", func() bool {
		return live[0].cc.Err() != nil && live[1].cc.Err() != nil && live[2].cc.Err() == nil
	})
	if err := talk(a.lane(b), "unharmed"); err != nil || len(a.events) > 0 {
		t.Errorf("lane: %v, %+v", err, a.Status())
	}
	if a.liveTo(b).ctx.Err() != nil {
		t.Error("no new connection")
	}
}

// A peer that brings descriptors again and again, the ends of whose connections are seen
// late, does not end its link by that.
func TestVisitsDoNotEndTheLink(t *testing.T) {
	a, b := newGateway(t, quick), newGateway(t, quick)
	link(a, b)
	a.await(true)
	b.await(true)
	var visits []*http.ClientConn
	for range 3 * maxPeerInbound {
		c, _, err := a.DialPinned(limited(t), tcpAddr(b.ip), b.id.Key())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		visits = append(visits, c)
		req, err := http.NewRequestWithContext(limited(t), "POST", requestURL("/v1/descriptor"), nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.RoundTrip(req) // so that they come in this order
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	waitFor(t, "the visits before the last to be ended", func() bool {
		for _, c := range visits[:len(visits)-1] {
			if c.Err() == nil {
				return false
			}
		}
		return true
	})
	if err := talk(a.lane(b), "unharmed"); err != nil || len(a.events) > 0 || visits[len(visits)-1].Err() != nil {
		t.Errorf("%v, %+v", err, a.Status())
	}
}
