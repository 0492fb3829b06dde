//go:build integration

package sessiontest

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// Packet types as they stand in the first byte.
const (
	publish = 3
	pubrec  = 5
	pubrel  = 6
	pubcomp = 7
)

// lane does what the durable lane of a peer does with what it has for the broker: it
// hands each item, again and again, until the session says that the broker has it.
type lane struct {
	c   *client
	qos byte
	n   int

	mu   sync.Mutex
	done map[int]bool
}

// hand gives all items that are not done to the session, in order, and returns when
// all are done or the life ends.
func (l *lane) hand(t testing.TB) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range l.n {
		l.mu.Lock()
		done := l.done[i]
		l.mu.Unlock()
		if done {
			continue
		}
		wg.Add(1)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := l.c.s.Send(ctx, fmt.Sprintf("%s item %d", t.Name(), i), &session.Message{Topic: "lane/a", Payload: fmt.Append(nil, i), QoS: l.qos}, func(err error) {
			defer wg.Done()
			if err == nil {
				l.mu.Lock()
				l.done[i] = true
				l.mu.Unlock()
			} else if !errors.Is(err, session.ErrClosed) {
				t.Error(err)
			}
		})
		cancel()
		if err != nil {
			wg.Done()
			if !errors.Is(err, session.ErrClosed) {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
}

// deliver hands until all is done; died is waited for meanwhile, to begin another life.
func (l *lane) deliver(t testing.TB, cut func() func(byte, []byte) bool) (lives int) {
	t.Helper()
	for {
		lives++
		life := l.c.life
		over := make(chan struct{})
		go func() {
			defer close(over)
			l.hand(t)
		}()
		for alive := true; alive; {
			select {
			case <-over:
				l.mu.Lock()
				n := len(l.done)
				l.mu.Unlock()
				if n == l.n {
					return lives
				}
				alive = false
			case <-time.After(5 * time.Millisecond): // only how soon a death is noticed
				alive = !life.dead.Load()
			}
		}
		l.c.kill()
		<-over
		l.c.start(cut())
	}
}

// exactlyOnce checks what a client got of a lane.
func exactlyOnce(t testing.TB, c *client, n int) {
	t.Helper()
	c.await("all messages", func() bool { return len(c.messages()) >= n })
	c.mu.Lock()
	defer c.mu.Unlock()
	var got, want []string
	for _, m := range c.messages() {
		got = append(got, string(m.Payload))
	}
	for i := range n {
		want = append(want, fmt.Sprint(i))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// nth kills at the nth packet of a kind.
func nth(dir byte, kind byte, n int32) func(byte, []byte) bool {
	var seen atomic.Int32
	return func(d byte, p []byte) bool { return d == dir && p[0]>>4 == kind && seen.Add(1) == n }
}

var states = []struct {
	name      string
	dir, kind byte
}{{"before PUBLISH", '>', publish}, {"before PUBREC", '<', pubrec}, {"before PUBREL", '>', pubrel}, {"before PUBCOMP", '<', pubcomp}}

// TestSenderDies kills the sending process at every state of the flow at QoS 2.
func TestSenderDies(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for _, version := range []byte{session.V5, session.V311} {
		for _, st := range states {
			t.Run(fmt.Sprintf("version %d %s", version, st.name), func(t *testing.T) {
				a, b := newClient(t, m, "a "+t.Name()), newClient(t, m, "b "+t.Name())
				a.cfg.Version, b.cfg.Version = version, version
				b.up()
				b.subscribe("lane/#")
				a.start(nth(st.dir, st.kind, 7))
				l := &lane{c: a, qos: 2, n: 20, done: map[int]bool{}}
				lives := l.deliver(t, func() func(byte, []byte) bool { return nil })
				if lives != 2 {
					t.Errorf("%d lives; the death was not where it was meant to be", lives)
				}
				exactlyOnce(t, b, 20)
				b.kill()
			})
		}
	}
}

// TestReceiverDies kills the receiving process at every state of the flow at QoS 2.
func TestReceiverDies(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for _, version := range []byte{session.V5, session.V311} {
		for _, st := range states {
			dir := '<' + '>' - st.dir // the other side
			t.Run(fmt.Sprintf("version %d %s", version, st.name), func(t *testing.T) {
				a, b := newClient(t, m, "a "+t.Name()), newClient(t, m, "b "+t.Name())
				a.cfg.Version, b.cfg.Version = version, version
				b.up()
				b.subscribe("lane/#")
				b.kill()
				b.start(nth(dir, st.kind, 7))
				died := b.life
				a.up()
				(&lane{c: a, qos: 2, n: 20, done: map[int]bool{}}).deliver(t, nil)
				b.await("death", func() bool { return died.dead.Load() })
				b.kill()
				b.up()
				exactlyOnce(t, b, 20)
				b.kill()
				t.Logf("%d repeats were recognised", b.repeats)
			})
		}
	}
}

// TestReceiverDiesTwice has the receiving process die before PUBCOMP, and then, in
// its next life, right after CONNECT. mosquitto (2.0.11) forgets by that that it had
// PUBREC, and repeats PUBLISH where PUBREL is due (against MQTT 5 §4.3.3): in the
// third life the messages come again whose release is on disk. lives is how many
// die before PUBCOMP; from the second on the process does not know the message.
func TestReceiverDiesTwice(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for _, version := range []byte{session.V5, session.V311} {
		for _, lives := range []int{1, 2} {
			t.Run(fmt.Sprintf("version %d, %d before PUBCOMP", version, lives), func(t *testing.T) {
				a, b := newClient(t, m, "a "+t.Name()), newClient(t, m, "b "+t.Name())
				a.cfg.Version, b.cfg.Version = version, version
				b.up()
				b.subscribe("lane/#")
				b.kill()
				a.up()
				const n = 5
				(&lane{c: a, qos: 2, n: n, done: map[int]bool{}}).hand(t)
				for range lives {
					b.start(nth('>', pubcomp, 1))
					died := b.life
					b.await("death", func() bool { return died.dead.Load() })
					b.kill()
				}
				var again atomic.Int32
				dieAfterConnect(t, m, b.cfg)
				b.start(func(dir byte, p []byte) bool {
					if dir == '<' && p[0]>>4 == publish && string(p[len(p)-1:]) == "0" {
						again.Add(1)
					}
					return false
				})
				a.publish("last", &session.Message{Topic: "lane/a", Payload: fmt.Append(nil, n), QoS: 2})
				exactlyOnce(t, b, n+1)
				b.kill()
				if again.Load() != 1 {
					t.Errorf("the broker repeated the first message %d times; this is no test of what is done about it", again.Load())
				}
			})
		}
	}
}

// dieAfterConnect is a life of which the broker sees CONNECT, and by then it is over.
func dieAfterConnect(t *testing.T, m *peertest.Mosquitto, cfg session.Config) {
	t.Helper()
	if err := m.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("tcp", cfg.Addr)
	if err != nil {
		t.Fatal(err)
	}
	b := append([]byte{0, 4}, "MQTT"...)
	if b = append(b, cfg.Version, 0, 0, 60); cfg.Version == session.V5 {
		b = append(b, 5, 0x11, 0xff, 0xff, 0xff, 0xff) // the session expiry interval
	}
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(cfg.ClientID))), cfg.ClientID...)
	_, err = nc.Write(append([]byte{0x10, byte(len(b))}, b...))
	if err = errors.Join(err, nc.Close(), m.Signal(syscall.SIGCONT)); err != nil {
		t.Fatal(err)
	}
}

var seeds = flag.Int("seeds", 6, "how many worlds TestRandomDeaths runs")

// TestRandomDeaths kills both processes at random packets, again and again: in the
// even worlds after some hundred packets, in the odd ones the receiver, and in every
// fourth the sender too, often before a connection has done what it was to do.
func TestRandomDeaths(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for seed := range *seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := func(mean int) func() func(byte, []byte) bool {
				rng := rand.New(rand.NewPCG(uint64(seed), uint64(mean)))
				return func() func(byte, []byte) bool {
					left := atomic.Int32{}
					left.Store(int32(5 + rng.IntN(2*mean)))
					return func(byte, []byte) bool { return left.Add(-1) == 0 }
				}
			}
			a, b := newClient(t, m, "a "+t.Name()), newClient(t, m, "b "+t.Name())
			b.up()
			b.subscribe("lane/#")
			b.kill()
			const n = 150
			meanA, meanB := 150, 120
			if seed%2 == 1 {
				meanB = 14
			}
			if seed%4 == 3 {
				meanA = 20
			}
			cutB := random(meanB)
			b.start(cutB())
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					case <-time.After(5 * time.Millisecond): // only how soon a death is noticed
					}
					if b.life.dead.Load() {
						b.kill()
						b.start(cutB())
					}
				}
			}()
			cutA := random(meanA)
			a.start(cutA())
			lives := (&lane{c: a, qos: 2, n: n, done: map[int]bool{}}).deliver(t, cutA)
			close(stop)
			<-stopped
			b.kill()
			b.up()
			a.kill()
			a.up()
			a.publish("last", &session.Message{Topic: "lane/a", Payload: fmt.Append(nil, n), QoS: 2}) // behind all repeats
			exactlyOnce(t, b, n+1)
			b.kill()
			t.Logf("the sender had %d lives; the receiver %d connections and %d repeats", lives, len(b.ups), b.repeats)
		})
	}
}

// TestBrokerDies kills a broker that keeps its sessions on disk, with messages that
// the receiver has not acknowledged and more behind them.
func TestBrokerDies(t *testing.T) {
	for _, qos := range []byte{1, 2} {
		t.Run(fmt.Sprint("QoS ", qos), func(t *testing.T) {
			m := broker(t, peertest.MosquittoConfig{})
			a, b := newClient(t, m, "a"), newClient(t, m, "b")
			a.up()
			b.up()
			b.subscribe("lane/#")
			b.mu.Lock()
			b.hold = true
			b.mu.Unlock()
			const n = 50
			l := &lane{c: a, qos: qos, n: n, done: map[int]bool{}}
			l.hand(t)
			b.await("the first messages", func() bool { return len(b.messages()) >= 20 })
			// mosquitto writes after what it has read at a time: when it answers twice,
			// all of before is on disk.
			for range 2 {
				a.publish("", &session.Message{Topic: "barrier", QoS: 1})
			}
			if err := m.Kill(); err != nil {
				t.Fatal(err)
			}
			b.await("the end of the connection", func() bool { return len(b.downs) > 0 })
			b.mu.Lock()
			b.hold = false
			held := b.held
			b.mu.Unlock()
			for _, ack := range held {
				ack(nil)
			}
			if err := m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.await("another connection", func() bool { return len(b.ups) > 1 })
			b.await("all messages", func() bool {
				got := map[string]bool{}
				for _, m := range b.messages() {
					got[string(m.Payload)] = true
				}
				return len(got) == n
			})
			b.mu.Lock()
			resumed := b.ups[len(b.ups)-1].Resumed
			b.mu.Unlock()
			if !resumed {
				t.Error("the broker had lost the session")
			}
			if qos == 2 {
				exactlyOnce(t, b, n)
			}
		})
	}
}
