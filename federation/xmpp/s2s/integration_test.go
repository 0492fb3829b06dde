//go:build integration

package s2s

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

const ping = "<iq type='get' from='b.grid' to='a.grid' id='%s'><ping xmlns='urn:xmpp:ping'/></iq>"

// roundTrip pings the server as b.grid and waits for its answer, which comes on a
// stream that the server opens to us.
func roundTrip(t *testing.T, g *Streams, h *recorder, id string) {
	t.Helper()
	if err := g.Send(t.Context(), "b.grid", "a.grid", fmt.Appendf(nil, ping, id)); err != nil {
		t.Fatal(err)
	}
	h.wait(t, func(got, failed []string) bool {
		return containsAll(got, "a.grid>b.grid <iq ", "id='"+id+"'") || len(failed) > 0
	})
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.failed) > 0 {
		t.Fatal(h.failed, h.why)
	}
}

func containsAll(list []string, parts ...string) bool {
	for _, s := range list {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(strings.ReplaceAll(s, `"`, `'`), p)
		}
		if all {
			return true
		}
	}
	return false
}

func (o *outbound) isRunning() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.running
}

func TestRealServersExternal(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			ca, h := openCA(t), newRecorder()
			listen := freeAddr()
			real := install(t, k, listen, ca, ca)
			g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
			roundTrip(t, g, h, "one")
			roundTrip(t, g, h, "two")
		})
	}
}

func TestRealServersDialback(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			h, listen := newRecorder(), freeAddr()
			real := install(t, k, listen, openCA(t), nil)
			g := start(t, Config{CA: openCA(t), Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr, Dialback: true}}})
			roundTrip(t, g, h, "one")
		})
	}
}

func TestRealServersRestart(t *testing.T) {
	for name, k := range kinds {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprint(name, " ", sig), func(t *testing.T) {
				ca, h, listen := openCA(t), newRecorder(), freeAddr()
				real := install(t, k, listen, ca, ca)
				g := start(t, Config{CA: ca, Handler: h, Listen: listen, Servers: []Server{{Addr: real.site.addr}}})
				roundTrip(t, g, h, "before")
				real.stop(sig)
				o, err := g.outbound(pair{"b.grid", "a.grid"})
				if err != nil {
					t.Fatal(err)
				}
				for late := time.Now().Add(patience); o.isRunning(); time.Sleep(time.Millisecond) {
					if time.Now().After(late) {
						t.Fatal("the gateway does not notice that the server is gone")
					}
				}
				if sig == syscall.SIGKILL {
					h.wait(t, func(_, failed []string) bool { return contains(failed, ">a.grid has died") })
				}
				if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='lost'/>")); err != nil {
					t.Fatal(err)
				}
				h.wait(t, func(_, failed []string) bool { return contains(failed, "lost") })
				h.mu.Lock()
				h.failed = nil
				h.mu.Unlock()

				real.start()
				up := time.Now()
				for {
					err := g.Send(t.Context(), "b.grid", "a.grid", fmt.Appendf(nil, ping, "after"))
					if err == nil {
						break
					}
					if !errors.Is(err, ErrDown) || time.Since(up) > patience {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				h.received(t, "after")
				if took := time.Since(up); took > 10*time.Second {
					t.Errorf("%v from the server's return to the first answer, want at most 10s", took)
				}
			})
		}
	}
}
