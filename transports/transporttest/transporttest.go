// Package transporttest is the conformance suite that every transport passes.
package transporttest

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

// patience is how long the suite waits for anything that must happen. No test
// depends on how long it takes.
const patience = 60 * time.Second

// MaxBacklog is the most streams that a listener may hold for Accept.
const MaxBacklog = 128

// flood is how many streams are opened at a listener that accepts none.
const flood = MaxBacklog + 64

// Make returns two new transports, not yet running, that can reach each other
// and accept each other's streams. What they need besides ends with the test.
type Make func(t *testing.T) (a, b transports.Transport)

// Run puts the transports that create returns through the suite.
func Run(t *testing.T, create Make) {
	t.Run("streams", func(t *testing.T) {
		a, b := create(t)
		start(t, a)
		start(t, b)
		p := &pair{a: a, b: b, port: 2000}
		for _, tc := range []struct {
			name string
			test func(*testing.T, *pair)
		}{
			{"Echo", testEcho},
			{"BigTransferBothWays", testBigTransfer},
			{"HalfClose", testHalfClose},
			{"ReadDeadline", testReadDeadline},
			{"WriteDeadline", testWriteDeadline},
			{"ConcurrentDials", testConcurrentDials},
			{"RemoteIsFullIdentity", testRemote},
			{"CloseUnblocksRead", testCloseUnblocksRead},
			{"ListenerClose", testListenerClose},
			{"PortSeparation", testPortSeparation},
			{"PortTaken", testPortTaken},
			{"BacklogBounded", testBacklog},
			{"DialClosedPort", testDialClosedPort},
			{"DialNobody", testDialNobody},
			{"DialNonsense", testDialNonsense},
			{"Status", testStatus},
		} {
			t.Run(tc.name, func(t *testing.T) {
				p.port += 10
				tc.test(t, p)
			})
		}
	})
	t.Run("BeforeRun", func(t *testing.T) { testBeforeRun(t, create) })
	t.Run("RunEnds", func(t *testing.T) { testRunEnds(t, create) })
}

// pair is two running transports; tests of one pair use ports from port on.
type pair struct {
	a, b transports.Transport
	port uint16
}

// start runs tr until the test ends, or until stop is called, and wants nil.
func start(t *testing.T, tr transports.Transport) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end after its context has")
		}
	}
	t.Cleanup(stop)
	return stop
}

func listen(t *testing.T, tr transports.Transport, port uint16) transports.Listener {
	t.Helper()
	l, err := tr.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("close listener: %v", err)
		}
	})
	return l
}

func dial(t *testing.T, tr transports.Transport, to transports.Addr) transports.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := tr.Dial(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connect returns both ends of a new stream from a to b.
func (p *pair) connect(t *testing.T) (near, far transports.Conn) {
	t.Helper()
	l := listen(t, p.b, p.port)
	near = dial(t, p.a, l.Addr())
	return near, acceptFrom(t, l, near)
}

// acceptFrom returns the far end of near. A dial may leave streams behind that it gave
// up for that one, and that are reset.
func acceptFrom(t *testing.T, l transports.Listener, near transports.Conn) transports.Conn {
	t.Helper()
	for {
		if far := accept(t, l); far.RemoteAddr().String() == near.LocalAddr().String() {
			return far
		}
	}
}

func accept(t *testing.T, l transports.Listener) transports.Conn {
	t.Helper()
	type result struct {
		c   transports.Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := l.Accept()
		got <- result{c, err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			t.Fatal(r.err)
		}
		t.Cleanup(func() { r.c.Close() })
		return r.c
	case <-time.After(patience):
		t.Fatal("nothing to accept")
		return nil
	}
}

// wait fails the test unless done is closed in time.
func wait(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal(what)
	}
}
