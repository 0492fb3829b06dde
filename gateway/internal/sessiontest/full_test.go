//go:build integration

package sessiontest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// full is a broker that takes 20 messages at a time, a subscriber and a publisher.
type full struct {
	m    *peertest.Mosquitto
	a, b *client
}

func newFull(t *testing.T, version byte) *full {
	t.Helper()
	f := &full{m: broker(t, peertest.MosquittoConfig{Lines: []string{"max_inflight_messages 20", "max_queued_messages 0"}})}
	f.a, f.b = newClient(t, f.m, "a"), newClient(t, f.m, "b")
	f.a.cfg.Version, f.b.cfg.Version = version, version
	f.b.up()
	f.b.subscribe("lane/#")
	return f
}

// item publishes a message at QoS 2, as often as it takes.
func (f *full) item(ctx context.Context, i int) error {
	name := fmt.Sprint("item ", i)
	for {
		err := f.a.s.Publish(ctx, name, &session.Message{Topic: "lane/a", Payload: []byte(name), QoS: 2})
		var refused *session.Refused
		if !errors.As(err, &refused) {
			return err
		}
	}
}

// publish publishes items and waits until the broker has them, or the life ends.
func (f *full) publish(t *testing.T, from, to int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var all sync.WaitGroup
	for i := from; i < to; i++ {
		all.Go(func() {
			if err := f.item(ctx, i); err != nil && !errors.Is(err, session.ErrClosed) {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// dieHeld is a life of the publisher that ends when the broker holds n messages, of
// which it has read no PUBREC.
func (f *full) dieHeld(t *testing.T, n int) {
	t.Helper()
	f.a.start(func(dir byte, p []byte) bool {
		if dir != '<' || p[0]>>4 != pubrec {
			return false
		}
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if text, err := os.ReadFile(f.m.LogFile()); err == nil && strings.Count(string(text), "Sending PUBREC to a ") >= n {
				return true
			}
		}
		t.Errorf("the broker does not hold %d messages", n)
		return true
	})
	over := make(chan struct{})
	go func() { defer close(over); f.publish(t, 0, n) }()
	died := f.a.life
	for end := time.Now().Add(patience); !died.dead.Load(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the publisher lives")
		}
	}
	f.a.kill()
	<-over
}

// again counts what the subscriber got more than once.
func (f *full) again(from, to int) int {
	f.b.mu.Lock()
	defer f.b.mu.Unlock()
	_, repeats := f.arrived(from, to)
	return repeats
}

// arrived counts what the subscriber got, from an item on. It needs f.b.mu.
func (f *full) arrived(from, to int) (different, repeats int) {
	count := map[string]int{}
	for _, m := range f.b.messages() {
		count[string(m.Payload)]++
	}
	for i := from; i < to; i++ {
		if n := count[fmt.Sprint("item ", i)]; n > 0 {
			different++
			repeats += n - 1
		}
	}
	return different, repeats
}

// TestFullFromBefore has a process die with as many messages under way as the broker
// takes, and the next one publish others before it comes back to these.
func TestFullFromBefore(t *testing.T) {
	for _, version := range []byte{session.V5, session.V311} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			f := newFull(t, version)
			f.dieHeld(t, 20)
			f.a.up()
			first := make(chan error, 1)
			if err := f.a.s.Send(t.Context(), "", &session.Message{Topic: "lane/b", Payload: []byte("item 20"), QoS: 1}, func(err error) { first <- err }); err != nil {
				t.Fatal(err)
			}
			f.publish(t, 0, 20)
			if err := <-first; err != nil {
				t.Error(err)
			}
			f.b.await("all messages", func() bool { n, _ := f.arrived(0, 21); return n == 21 })
			f.a.mu.Lock()
			downs := slices.Clone(f.a.downs)
			f.a.mu.Unlock()
			if again := f.again(0, 20); again > 0 || len(downs) > 1 {
				t.Errorf("%d came twice; connections ended with %v", again, downs)
			}
		})
	}
}

// TestFullOfReleased has a broker come up with a state in which it holds messages that
// it had released since.
func TestFullOfReleased(t *testing.T) {
	for _, version := range []byte{session.V5, session.V311} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			f := newFull(t, version)
			f.dieHeld(t, 20)
			older := f.save(t)
			f.a.up()
			f.publish(t, 0, 20)
			f.b.await("the first messages", func() bool { n, _ := f.arrived(0, 20); return n == 20 })
			if err := f.m.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(f.database(), older, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := f.m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.a.await("another connection", func() bool { return len(f.a.ups) > 1 && f.a.ups[len(f.a.ups)-1].Resumed })
			f.publish(t, 20, 100)
			f.b.await("all messages", func() bool { n, _ := f.arrived(20, 100); return n == 80 })
			if again := f.again(20, 100); again > 0 {
				t.Errorf("%d came twice", again)
			}
		})
	}
}

func (f *full) database() string { return filepath.Join(f.m.Config().Dir, "data", "mosquitto.db") }

// save has the broker write its state and returns that.
func (f *full) save(t *testing.T) []byte {
	t.Helper()
	modified := func() (at time.Time) {
		if st, err := os.Stat(f.database()); err == nil {
			at = st.ModTime()
		}
		return at
	}
	before := modified()
	if err := f.m.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); !modified().After(before); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the broker does not save its state")
		}
	}
	b, err := os.ReadFile(f.database())
	if err != nil {
		t.Fatal(err)
	}
	return b
}
