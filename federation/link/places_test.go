package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// Answers that nobody reads stop neither others nor lanes, with as many as may run.
func TestStalledAnswersBlockNoOther(t *testing.T) {
	for _, streams := range []int{8, 64, 250} {
		t.Run(fmt.Sprint(streams), func(t *testing.T) {
			const size = 4 << 20
			a, b := livePair(t, streams, func(w http.ResponseWriter, r *http.Request) {
				var src io.Reader = endless{}
				if r.Method == "GET" {
					src = io.LimitReader(src, size)
				}
				io.Copy(w, src)
			})
			places := a.liveTo(b)
			want := min(streams, maxClientStreams)
			if places.most != want {
				t.Fatalf("%d places, want %d", places.most, want)
			}
			grown := watchMemory()
			for range want - 1 {
				res, err := a.ask(limited(t), b, "POST", nil)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
			}
			// Until the stalled ones have filled their windows: the other end says
			// by its heartbeat that all went on in the meantime.
			res, err := a.ask(limited(t), b, "GET", nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if n, err := io.Copy(io.Discard, res.Body); err != nil || n != size {
				t.Fatalf("a body beside %d stalled ones: %d bytes, %v", want-1, n, err)
			}
			for range 6 {
				if err := talk(a.lane(b), "unharmed"); err != nil {
					t.Fatal(err)
				}
			}
			s, err := a.session(context.Background(), b.id.ID())
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.greet(limited(t), s.pinned, a.dir.Now().Peer(b.id.ID())); err != nil {
				t.Errorf("hello: %v", err)
			}
			n := grown()
			t.Logf("memory grew by %d MiB, the sender's included", n>>20)
			// What may be on its way is a window of each; twice that with the
			// garbage that both ends make of it.
			if n > growthLimit+2*int64(want)*clientWindow {
				t.Errorf("memory grew by %d MiB", n>>20)
			}
		})
	}
}

func TestLiveRequestsWaitForAPlace(t *testing.T) {
	release := make(chan struct{})
	var running, most atomic.Int32
	a, b := livePair(t, 8, func(w http.ResponseWriter, r *http.Request) {
		n := running.Add(1)
		defer running.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
	})
	done := make(chan error, maxWaiting+8)
	for i := range maxWaiting + 8 {
		if i == 8 {
			waitFor(t, "all places to be taken", func() bool { return running.Load() == 8 })
		}
		go func() {
			res, err := a.ask(limited(t), b, "GET", nil)
			if err == nil {
				res.Body.Close()
			}
			done <- err
		}()
	}
	waitFor(t, "all to run or wait", func() bool { return running.Load() == 8 && a.asking(b) == maxWaiting })
	if _, err := a.ask(limited(t), b, "GET", nil); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	for range 6 {
		if err := talk(a.lane(b), "lanes find a stream"); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	for range maxWaiting + 8 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := most.Load(); n > 8 {
		t.Errorf("%d ran at once, want 8", n)
	}
}

func TestWaitingForAPlaceEnds(t *testing.T) {
	a, b := livePair(t, 8, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	first, cancelFirst := context.WithCancel(limited(t))
	defer cancelFirst()
	for range 8 {
		go a.ask(first, b, "GET", nil)
	}
	places := a.liveTo(b)
	waitFor(t, "all places to be taken", func() bool { return places.used.Load() == 8 })
	ctx, cancel := context.WithCancel(limited(t))
	failed := make(chan error, 1)
	body := newStuck()
	close(body.release)
	go func() { _, err := a.ask(ctx, b, "PUT", body); failed <- err }()
	waitFor(t, "the second to wait", func() bool { return a.asking(b) == 1 })
	cancel()
	if err := <-failed; !errors.Is(err, ErrBusy) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-body.closed
}

// net/http may not tell of a stream that is gone: see streamCheck.
func TestStreamThatGoesUnsaid(t *testing.T) {
	a, b := livePair(t, 8, func(http.ResponseWriter, *http.Request) {})
	places := a.liveTo(b)
	places.h2.SetStateHook(func(*http.ClientConn) {})
	for places.h2.InFlight() < places.most { // as those that were given up
		if err := places.h2.Reserve(); err != nil {
			t.Fatal(err)
		}
	}
	answered := make(chan error, 1)
	go func() {
		res, err := a.ask(limited(t), b, "GET", nil)
		if err == nil {
			res.Body.Close()
		}
		answered <- err
	}()
	waitFor(t, "a request to wait", func() bool { return a.asking(b) == 1 && len(places.turn) == 1 })
	for places.h2.InFlight() > 0 {
		places.h2.Release()
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A peer that does not read, and requests that are given up: what they leave
// behind is bounded, by streams and not by their number.
func TestGivenUpRequestsDoNotPileUp(t *testing.T) {
	slow := func(c *Config, _ *testGateway) {
		c.Timing.Heartbeat, c.Timing.Hello, c.Timing.PingAfter, c.Timing.Ping = time.Hour, time.Hour, time.Hour, time.Hour
	}
	a, b := newGateway(t, quick, slow), newGateway(t, quick, slow)
	p := newProxy(t, b.ip)
	a.net.via = func(string, uint16) string { return p.ln.Addr().String() }
	link(a, b)
	a.await(true)
	b.await(true)
	places := a.liveTo(b)
	p.freeze()
	before := runtime.NumGoroutine()
	for range 1000 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if _, err := a.ask(ctx, b, "PUT", endless{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
		if n := runtime.NumGoroutine() - before; n > 4*places.most {
			t.Fatalf("%d goroutines more", n)
		}
		// One that is being opened may count twice for a moment.
		if n := places.h2.InFlight(); n > places.most+1 {
			t.Fatalf("%d streams in flight, %d granted", n, places.most)
		}
	}
	p.thaw()
	res, err := a.ask(limited(t), b, "GET", nil)
	if err != nil {
		t.Fatalf("after the thaw: %v", err)
	}
	res.Body.Close()
}
