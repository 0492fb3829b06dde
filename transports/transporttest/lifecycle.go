package transporttest

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

func testListenerClose(t *testing.T, p *pair) {
	l := listen(t, p.b, p.port)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept while closing: %v, want net.ErrClosed", err)
		}
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, "Close leaves Accept hanging", done)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
	}
	// The port is free again.
	near, far := p.connect(t)
	if _, err := near.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	readFull(t, far, 1)
}

func testPortSeparation(t *testing.T, p *pair) {
	l1, l2 := listen(t, p.b, p.port), listen(t, p.b, p.port+1)
	c2, c1 := dial(t, p.a, l2.Addr()), dial(t, p.a, l1.Addr())
	for c, msg := range map[transports.Conn]string{c1: "to the first", c2: "to the other"} {
		if _, err := c.Write([]byte(msg)); err != nil {
			t.Fatal(err)
		}
	}
	if got := string(readFull(t, acceptFrom(t, l1, c1), 12)); got != "to the first" {
		t.Errorf("port %d got what was sent %s", p.port, got)
	}
	if got := string(readFull(t, acceptFrom(t, l2, c2), 12)); got != "to the other" {
		t.Errorf("port %d got what was sent %s", p.port+1, got)
	}
}

func testPortTaken(t *testing.T, p *pair) {
	listen(t, p.b, p.port)
	if l, err := p.b.Listen(p.port); err == nil {
		l.Close()
		t.Error("a port was listened on twice")
	}
	if l, err := p.b.Listen(0); err == nil {
		l.Close()
		t.Error("port 0 was listened on")
	}
}

// testBacklog opens streams that nobody accepts, and then counts how many of
// them were kept.
func testBacklog(t *testing.T, p *pair) {
	l := listen(t, p.b, p.port)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// Refused dials may last as long as their context. Nothing but speed hangs on
	// its ending soon, once there is a stream.
	var opened sync.Once
	var wg sync.WaitGroup
	for range flood {
		wg.Go(func() {
			if c, err := p.a.Dial(ctx, l.Addr()); err == nil {
				t.Cleanup(func() { c.Close() })
				opened.Do(func() { time.AfterFunc(3*time.Second, cancel) })
			}
		})
	}
	wg.Wait()
	var kept atomic.Int32
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			kept.Add(1)
			go func() {
				// Only the mark says anything.
				b := make([]byte, 1)
				if n, err := c.Read(b); n == 1 && err == nil {
					kept.Add(-1)
					c.Write(b)
				}
			}()
		}
	}()
	// The queue is in order: when a mark comes back, all that was kept has been
	// counted. It is also the proof that the listener lives on. A mark that finds
	// the queue still full is refused, and the next one tried.
	marked := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		mark, err := p.a.Dial(ctx, l.Addr())
		if err != nil {
			return false
		}
		defer mark.Close()
		if _, err := mark.Write([]byte("m")); err != nil {
			return false
		}
		n, err := within(t, mark).Read(make([]byte, 1))
		return n == 1 && err == nil
	}
	for late := time.Now().Add(patience); !marked(); {
		if time.Now().After(late) {
			t.Fatal("no stream opens after a flood")
		}
	}
	if n := kept.Load(); n > MaxBacklog {
		t.Errorf("%d streams waited to be accepted, want at most %d", n, MaxBacklog)
	} else if n == 0 {
		t.Error("no stream waited to be accepted")
	}
}

func testDialClosedPort(t *testing.T, p *pair) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	to := p.b.Status().Self
	to.Port = p.port
	if c, err := p.a.Dial(ctx, to); err == nil {
		c.Close()
		t.Error("a port that nobody listens on was reached")
	} else if ctx.Err() != nil {
		t.Errorf("the far node did not refuse: %v", err)
	}
}

func testDialNobody(t *testing.T, p *pair) {
	nobody := p.b.Status().Self
	// Another identity of the same form, which nobody has.
	other := "7"
	if strings.HasSuffix(nobody.Node[:len(nobody.Node)/2], other) {
		other = "6"
	}
	half := len(nobody.Node) / 2
	nobody.Node = nobody.Node[:half-1] + other + nobody.Node[half:]
	nobody.Port = p.port
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := p.a.Dial(ctx, nobody); err == nil {
			c.Close()
			t.Errorf("%s answered", nobody)
		}
	}()
	wait(t, "Dial outlives its context", done)
}

func testDialNonsense(t *testing.T, p *pair) {
	self := p.b.Status().Self
	for _, to := range []transports.Addr{
		{Net: self.Net, Node: self.Node, Port: 0},
		{Net: self.Net, Node: "", Port: 1},
		{Net: self.Net, Node: "no such node", Port: 1},
		{Net: self.Net, Node: self.Node + "0", Port: 1},
		{Net: self.Net, Node: strings.Repeat("x", 1<<20), Port: 1},
		{Net: "elsewhere", Node: self.Node, Port: 1},
	} {
		c, err := p.a.Dial(context.Background(), to)
		if err == nil {
			c.Close()
			t.Errorf("%.80s was dialled", to)
		}
	}
}

func testStatus(t *testing.T, p *pair) {
	if s := p.a.Status(); !s.Up || s.Self.Net == "" || s.Self.Node == "" || s.Self.Port != 0 {
		t.Errorf("status of a transport that works: up %v, self %s", s.Up, s.Self)
	}
}

func testBeforeRun(t *testing.T, create Make) {
	a, b := create(t)
	l := listen(t, b, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if c, err := a.Dial(ctx, l.Addr()); err == nil {
		c.Close()
		t.Error("dialled before Run, with a context that is done")
	}
	type result struct {
		c   transports.Conn
		err error
	}
	dialled := make(chan result, 1)
	ctx, cancel = context.WithTimeout(context.Background(), patience)
	defer cancel()
	go func() {
		c, err := a.Dial(ctx, l.Addr())
		dialled <- result{c, err}
	}()
	start(t, a)
	start(t, b)
	accept(t, l)
	r := <-dialled
	if r.err != nil {
		t.Fatalf("a dial that waited for Run: %v", r.err)
	}
	r.c.Close()
}

// testRunEnds ends Run under a blocked Accept, Read and Dial, and wants no
// goroutine left.
func testRunEnds(t *testing.T, create Make) {
	before := runtime.NumGoroutine()
	t.Run("run", func(t *testing.T) {
		a, b := create(t)
		stopA, stopB := start(t, a), start(t, b)
		p := &pair{a: a, b: b, port: 1000}
		near, far := p.connect(t)
		l := listen(t, b, 1001)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept at the end of Run: %v, want net.ErrClosed", err)
			}
		})
		wg.Go(func() {
			if _, err := far.Read([]byte{0}); err == nil {
				t.Error("Read got something at the end of Run")
			}
		})
		stopB()
		stopA()
		wg.Wait()
		near.Close()
		far.Close()
		if c, err := a.Dial(context.Background(), l.Addr()); err == nil {
			c.Close()
			t.Error("Dial after the end of Run")
		}
		if l, err := a.Listen(1002); err == nil {
			l.Close()
			t.Error("Listen after the end of Run")
		}
		if err := a.Run(context.Background()); err == nil {
			t.Error("a transport ran twice")
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-late:

			t.Fatalf("%d goroutines are left, %d were there before:\n%s", runtime.NumGoroutine(), before, stacks())
		}
	}
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}
