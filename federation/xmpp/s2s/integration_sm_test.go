//go:build integration

package s2s

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
)

// log is what the server wrote so far.
func (r *stock) log() string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.site.dir, "server.log"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// logs waits for a line with text.
func (r *stock) logs(text string) {
	r.t.Helper()
	for late := time.Now().Add(patience); !strings.Contains(r.log(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			r.t.Fatalf("%s does not log %q", r.kind.name, text)
		}
	}
}

// TestRealProsodyIsAcknowledged: Prosody asks after each stanza, and hears of those
// that are settled. It counts none of those that waited for its stream to open.
func TestRealProsodyIsAcknowledged(t *testing.T) {
	ca, h, listen, held := openCA(t), newRecorder(), freeAddr(), make(holder, 100)
	h.settle = held.keep
	real := install(t, kinds["prosody"], listen, ca, ca)
	g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
	roundTrip(t, g, h, "uncounted")
	(<-held)()
	real.logs("Received[s2sout]: <enabled ")
	roundTrip(t, g, h, "counted")
	real.logs("(acked: 0)") // the answer to its request, while nothing is settled
	if strings.Contains(real.log(), "(acked: 1)") {
		t.Error("a stanza was acknowledged that is not settled")
	}
	(<-held)()
	real.logs("#queue = 0 (acked: 1)")
}

// TestRealProsodyResends breaks the stream under a stanza that is not settled.
// Prosody, told to by smacks_s2s_resend, gives it to us again at once. (Without, or
// where nothing listens by then, it answers the sender with an error.)
func TestRealProsodyResends(t *testing.T) {
	ca, h, listen := openCA(t), newRecorder(), freeAddr()
	var refuse atomic.Bool
	h.take = func(context.Context) error {
		if refuse.CompareAndSwap(true, false) {
			return errors.New("on purpose")
		}
		return nil
	}
	real := install(t, kinds["prosody"], listen, ca, ca)
	g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
	roundTrip(t, g, h, "settled")
	real.logs("Received[s2sout]: <enabled ")
	refuse.Store(true)
	roundTrip(t, g, h, "refused at first")
	if refuse.Load() {
		t.Error("the stream was not broken")
	}
}

// pings are stanzas that a server answers.
func pings(ids ...string) (stanzas [][]byte) {
	for _, id := range ids {
		stanzas = append(stanzas, fmt.Appendf(nil, ping, id))
	}
	return stanzas
}

// TestRealServersHand: Prosody acknowledges, ejabberd has no stream management
// between servers, and Hand returns with both.
func TestRealServersHand(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			ca, h, listen := openCA(t), newRecorder(), freeAddr()
			real := install(t, k, listen, ca, ca)
			g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
			for _, id := range []string{"one", "two"} {
				if n, err := g.Hand(t.Context(), "b.grid", "a.grid", pings(id+"-1", id+"-2", id+"-3")...); n != 3 || err != nil {
					t.Fatalf("hand: %d, %v", n, err)
				}
				if name == "prosody" {
					acked := map[string]string{"one": "acking for 3", "two": "acking for 6"}
					if !strings.Contains(real.log(), acked[id]) {
						t.Errorf("hand returned before Prosody was %q", acked[id])
					}
				}
				h.wait(t, func(got, _ []string) bool { return containsAll(got, "a.grid>b.grid <iq ", "id='"+id+"-3'") })
			}
		})
	}
}

// written is how many stanzas went out.
func (s *Streams) written(t *testing.T) float64 {
	t.Helper()
	var m dto.Metric
	if err := s.metrics.count[dirOut].stanzas.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

// TestRealProsodyKilled kills Prosody while it has stanzas that it cannot have
// acknowledged. They are handed again when it is back.
func TestRealProsodyKilled(t *testing.T) {
	ca, h, listen := openCA(t), newRecorder(), freeAddr()
	real := install(t, kinds["prosody"], listen, ca, ca)
	g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
	if n, err := g.Hand(t.Context(), "b.grid", "a.grid", pings("before")...); n != 1 || err != nil {
		t.Fatalf("hand: %d, %v", n, err)
	}
	if err := real.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	handed := make(chan result, 1)
	go func() {
		n, err := g.Hand(t.Context(), "b.grid", "a.grid", pings("1", "2", "3")...)
		handed <- result{n, err}
	}()
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	for g.written(t) < 4 { // they are not out yet
		time.Sleep(time.Millisecond)
	}
	real.stop(syscall.SIGKILL)
	if r := <-handed; r.n != 0 || r.err == nil || errors.Is(r.err, ErrDown) {
		t.Errorf("killed in the middle: %d, %v", r.n, r.err)
	}
	for late := time.Now().Add(patience); o.isRunning(); time.Sleep(time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("the gateway does not notice that the server is gone")
		}
	}
	if n, err := g.Hand(t.Context(), "b.grid", "a.grid", pings("1", "2", "3")...); n != 0 || !errors.Is(err, ErrDown) {
		t.Errorf("while it is gone: %d, %v; want ErrDown", n, err)
	}
	real.start()
	for up := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		n, err := g.Hand(t.Context(), "b.grid", "a.grid", pings("1", "2", "3")...)
		if n == 3 && err == nil {
			break
		}
		if !errors.Is(err, ErrDown) || time.Since(up) > patience {
			t.Fatalf("when it is back: %d, %v", n, err)
		}
	}
	h.wait(t, func(got, _ []string) bool { return containsAll(got, "a.grid>b.grid <iq ", "id='3'") })
	h.mu.Lock()
	defer h.mu.Unlock()
	if !contains(h.back, "a.grid") || contains(h.failed, "<iq") {
		t.Errorf("back %q, failed %q", h.back, h.failed)
	}
}
