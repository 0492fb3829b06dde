package s2s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// patience is how long a test waits for what must happen. It decides nothing
// but how soon a broken build is noticed.
const patience = 20 * time.Second

// recorder is a Handler that remembers.
type recorder struct {
	mayOpen func(from, to string) error
	take    func(ctx context.Context) error // called for each batch
	settle  func(settled func())            // given what to call when a batch is settled

	mu     sync.Mutex
	got    []string // "from>to stanza"
	failed []string
	back   []string // domains
	why    []error
	change chan struct{} // closed at the next change
}

func newRecorder() *recorder { return &recorder{change: make(chan struct{})} }

func (r *recorder) Open(from, to string) error {
	if r.mayOpen != nil {
		return r.mayOpen(from, to)
	}
	return nil
}

func (r *recorder) Stanzas(ctx context.Context, from, to string, batch [][]byte, settled func()) error {
	if r.take != nil {
		if err := r.take(ctx); err != nil {
			return err
		}
	}
	if r.settle == nil {
		settled()
	} else {
		r.settle(settled)
	}
	r.note(&r.got, from, to, batch, nil)
	return nil
}

// Skipped notes the tag with the text of the limit behind it.
func (r *recorder) Skipped(ctx context.Context, from, to string, stanza *frame.Skipped, settled func()) error {
	return r.Stanzas(ctx, from, to, [][]byte{append(stanza.Tag, stanza.Limit.Text...)}, settled)
}

func (r *recorder) LocalLost(domain string) {
	r.note(&r.failed, "", domain, [][]byte{[]byte("has died")}, nil)
}

func (r *recorder) LocalBack(domain string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.back = append(r.back, domain)
	close(r.change)
	r.change = make(chan struct{})
}

func (r *recorder) Failed(from, to string, stanzas [][]byte, err error) {
	r.note(&r.failed, from, to, stanzas, err)
}

func (r *recorder) note(list *[]string, from, to string, stanzas [][]byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range stanzas {
		*list = append(*list, fmt.Sprintf("%s>%s %s", from, to, b))
	}
	if err != nil {
		r.why = append(r.why, err)
	}
	close(r.change)
	r.change = make(chan struct{})
}

// wait returns when done is content with what was received and failed.
func (r *recorder) wait(t testing.TB, done func(got, failed []string) bool) {
	t.Helper()
	late := time.After(patience)
	for {
		r.mu.Lock()
		ok, change := done(r.got, r.failed), r.change
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-late:
			r.mu.Lock()
			defer r.mu.Unlock()
			t.Fatalf("waited in vain; received %.1000q, failed %.1000q because of %v", r.got, r.failed, r.why)
		}
	}
}

// received waits for a stanza that contains part.
func (r *recorder) received(t testing.TB, part string) {
	t.Helper()
	r.wait(t, func(got, _ []string) bool { return contains(got, part) })
}

func contains(list []string, part string) bool {
	for _, s := range list {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

func openCA(t testing.TB) *localca.CA {
	t.Helper()
	ca, err := localca.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// start runs streams until the test ends and checks that nothing of them stays.
func start(t testing.TB, c Config) *Streams {
	t.Helper()
	c.Metrics = prometheus.NewRegistry()
	if c.Listen == "" {
		c.Listen = "127.0.0.1:0"
	}
	c.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	return s
}

func run(t testing.TB, s *Streams) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			t.Error("streams did not stop")
		}
	})
	for s.Addr() == nil {
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

var hosts atomic.Uint32

// freeAddr is an address of 127/8 that no other process or test uses.
func freeAddr() string {
	pid := os.Getpid()
	n := hosts.Add(1)
	return fmt.Sprintf("127.%d.%d.%d:%d", 64+pid>>8&63, pid&255, 1+n%250, 5269+n/250)
}

// couple joins a gateway with another Streams in the part of the local server
// of a.grid; b.grid is the peer domain.
func couple(t testing.TB, gateway, server Config) (g, s *Streams, gh, sh *recorder) {
	t.Helper()
	gh, sh = newRecorder(), newRecorder()
	gateway.Handler, server.Handler = gh, sh
	gateway.Listen, server.Listen = freeAddr(), freeAddr()
	gateway.Servers[0].Addr, server.Servers[0].Addr = server.Listen, gateway.Listen
	return start(t, gateway), start(t, server), gh, sh
}

// failsForLong has the pause after the next failure of a stream be as long as
// Limits.Backoff, so that a test can look at it at leisure.
func (s *Streams) failsForLong(t testing.TB, from, to string) {
	t.Helper()
	o, err := s.outbound(pair{from, to})
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pause = s.limits.Backoff
}

func TestBothDirections(t *testing.T) {
	one, other := openCA(t), openCA(t)
	for name, c := range map[string]struct {
		gateway, server Config
		mechanism       string
	}{
		"external": {gateway: Config{CA: one, Servers: []Server{{}}}, server: Config{CA: one, Servers: []Server{{}}}},
		"extra roots": {gateway: Config{CA: one, Servers: []Server{{Roots: other.Roots()}}},
			server: Config{CA: other, Servers: []Server{{Roots: one.Roots()}}}},
		"dialback": {gateway: Config{CA: one, Servers: []Server{{Dialback: true}}},
			server: Config{CA: other, Servers: []Server{{Dialback: true}}}},
		"dialback one way": {gateway: Config{CA: one, Servers: []Server{{Roots: other.Roots()}}},
			server: Config{CA: other, Servers: []Server{{Dialback: true}}}},
	} {
		t.Run(name, func(t *testing.T) {
			g, s, gh, sh := couple(t, c.gateway, c.server)
			if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='1'/>"), []byte("<iq id='2'/>")); err != nil {
				t.Fatal(err)
			}
			sh.received(t, "b.grid>a.grid <iq id='2'/>")
			if err := s.Send(t.Context(), "a.grid", "b.grid", []byte("<presence id='3'/>")); err != nil {
				t.Fatal(err)
			}
			gh.received(t, "a.grid>b.grid <presence id='3'/>")
			if len(gh.failed)+len(sh.failed) > 0 {
				t.Error("stanzas failed:", gh.failed, sh.failed)
			}
		})
	}
}

func TestNotTrusted(t *testing.T) {
	limits := Limits{Backoff: time.Hour}
	g, s, gh, sh := couple(t, Config{CA: openCA(t), Servers: []Server{{}}, Limits: limits}, Config{CA: openCA(t), Servers: []Server{{Dialback: true}}, Limits: limits})
	g.failsForLong(t, "b.grid", "a.grid")
	s.failsForLong(t, "a.grid", "b.grid")
	for from, try := range map[*Streams]func() error{
		g: func() error { return g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='1'/>")) },
		s: func() error { return s.Send(t.Context(), "a.grid", "b.grid", []byte("<message id='2'/>")) },
	} {
		h := map[*Streams]*recorder{g: gh, s: sh}[from]
		if err := try(); err != nil {
			t.Fatal(err)
		}
		h.wait(t, func(_, failed []string) bool { return len(failed) == 1 })
		if err := try(); !errors.Is(err, ErrDown) {
			t.Errorf("right after a failure: got %v, want ErrDown", err)
		}
	}
	if !strings.Contains(fmt.Sprint(gh.why), "unknown authority") || !strings.Contains(fmt.Sprint(sh.why), "not-authorized") {
		t.Errorf("the gateway says %v, the server %v", gh.why, sh.why)
	}
}
