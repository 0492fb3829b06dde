package matrix

import (
	"bytes"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

func TestRequestRate(t *testing.T) {
	w := newInWorld(t)
	w.change(func(p *federation.Peer) { p.Policy.Limits.MessagesPerSecond, p.Policy.Limits.Burst = 0.001, 3 })
	for range 3 {
		if r := w.do(ask{}); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	r := w.do(ask{})
	r.wants(t, "too many", 429, "M_LIMIT_EXCEEDED", "messages_per_second")
	seconds, err := strconv.ParseFloat(r.header.Get("Retry-After"), 64) // rounded up
	if r.retry < 900_000 || r.retry > 1_000_000 || err != nil || seconds*1000 < r.retry || seconds*1000 > r.retry+1000 {
		t.Errorf("retry after %v ms, header %q", r.retry, r.header.Get("Retry-After"))
	}
	for range 3 { // being refused costs nothing
		if r := w.do(ask{}); r.status != 429 || r.retry > 1_000_000 {
			t.Errorf("refused again: %+v", r)
		}
	}
	if r := w.do(ask{peer: "carol", origin: "c.grid", key: carolKey}); r.status != 200 {
		t.Errorf("another peer: %+v", r)
	}
	// The operator's change counts at once.
	w.change(func(p *federation.Peer) { p.Policy.Limits.MessagesPerSecond = 1e9 })
	eventually(t, "the new rate", func() bool { return w.do(ask{}).status == 200 })
}

func TestByteRate(t *testing.T) {
	w := newInWorld(t, func(c *Config) { c.MaxBody = 10 << 10 })
	w.change(func(p *federation.Peer) { p.Policy.Limits.BytesPerSecond = 1 })
	send := func(n int) reply {
		return w.do(ask{method: "PUT", target: sendTarget, body: `{"a":"` + strings.Repeat("x", n-8) + `"}`})
	}
	// What there is at first is one largest body; refused ones count, too.
	for _, n := range []int{6 << 10, 6 << 10} {
		if r := send(n); r.status != 200 {
			t.Fatalf("%+v", r)
		}
	}
	r := w.do(ask{})
	r.wants(t, "in debt", 429, "M_LIMIT_EXCEEDED", "bytes_per_second")
	if r.retry < 2000_000 || r.retry > 2048_000 {
		t.Errorf("retry after %v ms for a debt of 2 KiB at 1 byte/s", r.retry)
	}
}

func TestZeroLimitsAreTheDefault(t *testing.T) {
	w := newInWorld(t)
	w.change(func(p *federation.Peer) { p.Policy.Limits = federation.Limits{} })
	q := w.a.in.limits.of(w.alice, w.dir.Now())
	def := federation.DefaultLimits()
	if float64(q.requests.Limit()) != def.MessagesPerSecond || q.requests.Burst() != def.Burst || int64(q.bytes.Limit()) != def.BytesPerSecond || q.size != 48 {
		t.Errorf("%v %v %v, %d places", q.requests.Limit(), q.requests.Burst(), q.bytes.Limit(), q.size)
	}
	w.change(func(p *federation.Peer) { p.Policy.Limits.Streams = 16 })
	if again := w.a.in.limits.of(w.alice, w.dir.Now()); again != q || q.size != 8 || q.places.TryAcquire(9) {
		t.Errorf("after a change: %d places", q.size)
	}
	for streams, want := range map[int]int64{-1: 48, 1: 1, 8: 1, 9: 1, 16: 8, 32: 24, 64: 48, 1000: 750} {
		if got := placesOf(&federation.Limits{Streams: streams}); got != want {
			t.Errorf("%d streams: %d places, want %d", streams, got, want)
		}
	}
}

// TestPlaces: no more than so many of a peer's requests are with the homeserver.
func TestPlaces(t *testing.T) {
	w := newInWorld(t)
	w.a.in.limits.patience = 10 * time.Millisecond
	w.change(func(p *federation.Peer) { p.Policy.Limits.Streams = 10 })
	inside, leave := make(chan struct{}), make(chan struct{})
	w.home.answers(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-leave
	})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if r := w.do(ask{}); r.status != 200 {
				t.Errorf("%+v", r)
			}
		})
		<-inside
	}
	r := w.do(ask{})
	r.wants(t, "a third", 429, "M_LIMIT_EXCEEDED", "under way")
	if r.retry == 0 {
		t.Error("no retry_after_ms")
	}
	close(leave)
	wg.Wait()
	go func() { <-inside }()
	if r := w.do(ask{}); r.status != 200 {
		t.Errorf("after they have left: %+v", r)
	}
}

// TestPlacesThatAreFree are taken at once: whoever has no time to wait gets them.
func TestPlacesThatAreFree(t *testing.T) {
	w := newInWorld(t)
	w.a.in.limits.patience = 0
	for _, body := range []string{`{}`, `{"a":"` + strings.Repeat("x", bodyFree) + `"}`} {
		if r := w.do(ask{method: "PUT", target: sendTarget, body: body}); r.status != 200 {
			t.Errorf("%d bytes: %+v", len(body), r)
		}
	}
}

// slowBody is one that does not go on after its first bytes, until it is closed.
type slowBody struct {
	first io.Reader
	pause time.Duration // before each byte
	ended chan struct{}
	once  sync.Once
}

func newSlowBody(first io.Reader) *slowBody {
	return &slowBody{first: first, ended: make(chan struct{})}
}

func (s *slowBody) Read(p []byte) (int, error) {
	if s.pause > 0 {
		time.Sleep(s.pause)
		p = p[:1]
	}
	if n, err := s.first.Read(p); err == nil {
		return n, nil
	}
	<-s.ended
	return 0, io.ErrUnexpectedEOF
}

func (s *slowBody) Close() error {
	s.once.Do(func() { close(s.ended) })
	return nil
}

// TestSlowSenders are ended, and what they hold is bounded meanwhile.
func TestSlowSenders(t *testing.T) {
	w := newInWorld(t, func(c *Config) { c.MaxBody = 4 << 20 })
	w.a.in.patience = time.Hour
	w.a.in.limits.patience = 10 * time.Millisecond
	w.change(func(p *federation.Peer) { p.Policy.Limits.Streams = 200 })
	ctx, stop := contextOf(t)
	send := func(sent, length int64) ask {
		k := ask{method: "PUT", target: sendTarget, body: "{}", length: length}
		k.reader = newSlowBody(bytes.NewReader(bytes.Repeat([]byte(" "), int(sent))))
		return k
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var wg sync.WaitGroup
	var mu sync.Mutex
	status := map[int]int{}
	const each = 3 << 20
	for i := range 40 {
		length := int64(each + 1)
		if i%2 == 0 {
			length = -1
		}
		wg.Go(func() {
			res, err := w.link.Client().Do(send(each, length).request(t, w.link.URL).WithContext(ctx))
			if err == nil {
				mu.Lock()
				status[res.StatusCode]++
				mu.Unlock()
				res.Body.Close()
			}
		})
	}
	q := w.a.in.limits.of(w.alice, w.dir.Now())
	eventually(t, "all but those for whom there is room to be refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return status[429] >= 38
	})
	if q.bodies.TryAcquire(w.a.in.cfg.MaxBody + 1) {
		t.Error("the senders that wait hold nothing")
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	// Test, client and server share the process; 120 MiB were sent.
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap has grown by %d MiB", grown>>20)
	}
	// A small one passes beside them.
	if r := w.do(ask{method: "PUT", target: sendTarget, body: `{}`}); r.status != 200 {
		t.Errorf("a small one: %+v", r)
	}
	stop()
	wg.Wait()
	eventually(t, "everything to be given back", func() bool {
		if !q.bodies.TryAcquire(bodiesAtOnce * w.a.in.cfg.MaxBody) {
			return false
		}
		q.bodies.Release(bodiesAtOnce * w.a.in.cfg.MaxBody)
		return true
	})
	if len(w.home.requests()) != 1 {
		t.Errorf("%d requests reached the homeserver", len(w.home.requests()))
	}
}

// TestSlowSenderIsEnded: 408 for a body that does not go on, also if it trickles.
func TestSlowSenderIsEnded(t *testing.T) {
	w := newInWorld(t)
	w.a.in.patience = 50 * time.Millisecond
	k := ask{method: "PUT", target: sendTarget, body: "{}", length: 100}
	k.reader = newSlowBody(strings.NewReader("{"))
	w.do(k).wants(t, "a body that stops", 408, "M_UNKNOWN", "too slowly")
	// A hundred bytes a second at most, which is too few.
	trickle := newSlowBody(endless{})
	trickle.pause = 10 * time.Millisecond
	k.reader, k.length = trickle, -1
	w.do(k).wants(t, "a body that trickles", 408, "M_UNKNOWN", "too slowly")
	if r := w.do(ask{}); r.status != 200 { // the connection goes on
		t.Errorf("%+v", r)
	}
}

// TestGoroutinesEnd: nothing is left of requests that were given up.
func TestGoroutinesEnd(t *testing.T) {
	w := newInWorld(t)
	w.do(ask{}) // what stays is there
	before := runtime.NumGoroutine()
	stop := make(chan struct{})
	w.home.answers(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-stop:
		}
	})
	defer close(stop)
	ctx, cancel := contextOf(t)
	var wg sync.WaitGroup
	for i := range 30 {
		k := ask{}
		if i%2 == 0 {
			k = ask{method: "PUT", target: sendTarget, body: "{}", length: 100}
			k.reader = newSlowBody(strings.NewReader("{"))
		}
		wg.Go(func() {
			if res, err := w.link.Client().Do(k.request(t, w.link.URL).WithContext(ctx)); err == nil {
				res.Body.Close()
			}
		})
	}
	eventually(t, "the homeserver to have them", func() bool { return len(w.home.requests()) >= 16 })
	cancel()
	wg.Wait()
	eventually(t, "the goroutines to end", func() bool {
		w.link.Client().CloseIdleConnections()
		w.a.in.server.CloseIdleConnections()
		return runtime.NumGoroutine() <= before
	})
}

func TestRefusalsAreCountedAndLoggedAtABoundedRate(t *testing.T) {
	w := newInWorld(t)
	for range 3 * auditBurst {
		w.do(ask{origin: "c.grid"})
	}
	if n := strings.Count(w.log.String(), "request refused"); n != auditBurst {
		t.Errorf("%d lines", n)
	}
	if n := w.counter("yggate_matrix_in_refused_total"); n != 3*auditBurst {
		t.Errorf("%v counted", n)
	}
	if n := w.counter("yggate_matrix_in_requests_total"); n != 3*auditBurst {
		t.Errorf("%v requests", n)
	}
}
