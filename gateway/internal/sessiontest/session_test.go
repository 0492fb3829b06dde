//go:build integration

package sessiontest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// TestQoS sends and receives at each QoS with both versions of the protocol.
func TestQoS(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for name, version := range map[string]byte{"MQTT 5": session.V5, "MQTT 3.1.1": session.V311} {
		t.Run(name, func(t *testing.T) {
			a, b := newClient(t, m, "a-"+name), newClient(t, m, "b-"+name)
			a.cfg.Version, b.cfg.Version = version, version
			a.up()
			b.up()
			b.subscribe(name + "/#")
			for i := range 30 {
				qos := byte(i % 3)
				a.publish(fmt.Sprint("key ", i), &session.Message{Topic: fmt.Sprintf("%s/%d", name, qos), Payload: fmt.Append(nil, i), QoS: qos})
			}
			b.await("30 messages", func() bool { return len(b.messages()) == 30 })
			b.mu.Lock()
			defer b.mu.Unlock()
			next := [3]int{0, 1, 2}
			for _, got := range b.got {
				if isProbe(got) {
					continue
				}
				if want := fmt.Sprint(next[got.QoS]); string(got.Payload) != want || got.Topic != fmt.Sprintf("%s/%d", name, got.QoS) {
					t.Errorf("got %+v, want %s", got, want)
				}
				next[got.QoS] += 3
			}
			if b.ups[0].Version != version || a.s.Status().InFlight != 0 {
				t.Errorf("connections %+v, status %+v", b.ups, a.s.Status())
			}
		})
	}
}

func TestProperties(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	a, b := newClient(t, m, "a"), newClient(t, m, "b")
	a.up()
	b.up()
	b.subscribe("x/#")
	expiry := uint32(3600)
	want := session.Message{Topic: "x/ü", Payload: []byte("grün"), QoS: 2, Retain: true, Properties: session.Properties{
		UTF8: true, Expiry: &expiry, ContentType: "text/plain", ResponseTopic: "reply/to/me", Correlation: []byte{0, 1, 255},
		User: []session.UserProperty{{Key: "k", Value: "1"}, {Key: "j", Value: ""}, {Key: "k", Value: "2"}},
	}}
	a.publish("key", &want)
	b.await("a message", func() bool { return len(b.messages()) == 1 })
	b.mu.Lock()
	got := b.messages()[0]
	b.mu.Unlock()
	want.UID = got.UID
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestTLSAndUsers(t *testing.T) {
	ca, err := peertest.NewCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue("broker.test")
	if err != nil {
		t.Fatal(err)
	}
	m := broker(t, peertest.MosquittoConfig{Users: map[string]string{"gw": "secret"}, Cert: cert, ClientCA: ca.File})
	own, err := ca.Issue("gateway.test")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(own, own)
	if err != nil {
		t.Fatal(err)
	}
	a := newClient(t, m, "a")
	a.cfg.Addr, a.cfg.Username, a.cfg.Password = m.MQTTS.String(), "gw", "secret"
	a.cfg.TLS = &tls.Config{RootCAs: ca.Pool, ServerName: "broker.test", Certificates: []tls.Certificate{pair}}
	a.up()
	a.publish("k", &session.Message{Topic: "x", QoS: 2})
	for _, version := range []byte{session.V5, session.V311} {
		wrong := newClient(t, m, fmt.Sprint("wrong", version))
		wrong.cfg.Version, wrong.cfg.Username, wrong.cfg.Password = version, "gw", "guess"
		wrong.start(nil)
		wait(t, func() bool { return strings.Contains(wrong.s.Status().LastError, "refused: not authorized") })
	}
	bare := newClient(t, m, "bare")
	bare.cfg.Addr, bare.cfg.TLS = a.cfg.Addr, &tls.Config{RootCAs: ca.Pool, ServerName: "broker.test"}
	bare.start(nil)
	wait(t, func() bool { return strings.Contains(bare.s.Status().LastError, "certificate") })
}

// wait polls what nobody tells of.
func wait(t *testing.T, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

// TestSnapshot has more retained messages than mosquitto queues for a client.
func TestSnapshot(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{NoPersistence: true, Lines: []string{"max_queued_messages 100"}})
	a := newClient(t, m, "a")
	a.up()
	const n = 5000
	var left sync.WaitGroup
	for i := range n {
		left.Add(1)
		err := a.s.Send(t.Context(), "", &session.Message{Topic: fmt.Sprintf("r/%d/%d", i%2, i), Payload: make([]byte, 500), QoS: 1, Retain: true}, func(err error) {
			left.Done()
			if err != nil {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	left.Wait()
	got := map[string]int{}
	if err := a.s.Snapshot(t.Context(), []string{"r/0/#", "r/1/+"}, func(m *session.Message) error { got[m.Topic]++; return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != n {
		t.Errorf("%d retained messages of %d", len(got), n)
	}
}

// TestOtherFilter has a filter take the place of another, again and again, while messages
// come that both match.
func TestOtherFilter(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{})
	for _, version := range []byte{session.V5, session.V311} {
		a, b := newClient(t, m, fmt.Sprint("a", version)), newClient(t, m, fmt.Sprint("b", version))
		a.cfg.Version, b.cfg.Version = version, version
		a.up()
		b.up()
		b.subscribe("lane/a")
		stop, sent, failed := make(chan struct{}), make(chan int, 1), make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					sent <- i
					return
				default:
				}
				if err := a.s.Publish(t.Context(), fmt.Sprint("key ", i), &session.Message{Topic: "lane/a", Payload: fmt.Append(nil, i), QoS: 2}); err != nil {
					failed <- err
					return
				}
			}
		}()
		for i := range 20 {
			b.mu.Lock()
			before := len(b.refused)
			b.mu.Unlock()
			if err := b.s.SetSubscriptions([]session.Subscription{{Filter: []string{"lane/#", "lane/a"}[i%2], QoS: 2}}); err != nil {
				t.Fatal(err)
			}
			b.await("answer", func() bool { return len(b.refused) > before })
		}
		close(stop)
		n := 0
		select {
		case n = <-sent:
		case err := <-failed:
			t.Fatal(err)
		}
		a.publish("last", &session.Message{Topic: "lane/a", Payload: []byte("last"), QoS: 2})
		different := func() map[string]bool {
			got := map[string]bool{}
			for _, m := range b.messages() {
				got[string(m.Payload)] = true
			}
			return got
		}
		b.await("the last message", func() bool { return different()["last"] })
		b.kill()
		if got := len(different()); got != n+1 {
			t.Errorf("version %d: %d of %d arrived", version, got, n+1)
		}
		a.kill()
	}
}

// TestFlowControl sends far more than a broker takes at a time, and large ones.
func TestFlowControl(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{NoPersistence: true, Lines: []string{"max_inflight_messages 3", "max_packet_size 2000", "retain_available false"}})
	a, b := newClient(t, m, "a"), newClient(t, m, "b")
	b.cfg.ReceiveMaximum = 5
	a.up()
	b.up()
	b.subscribe("lane/#")
	(&lane{c: a, qos: 2, n: 200, done: map[int]bool{}}).hand(t)
	exactlyOnce(t, b, 200)
	for what, msg := range map[string]*session.Message{"large": {Topic: "x", Payload: make([]byte, 3000), QoS: 2}, "retained": {Topic: "x", QoS: 1, Retain: true}} {
		var refused *session.Refused
		if err := a.s.Publish(t.Context(), what, msg); !errors.As(err, &refused) || !refused.Permanent() {
			t.Errorf("%s: got %v", what, err)
		}
	}
	a.publish("after", &session.Message{Topic: "x", QoS: 2})
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.downs) > 0 {
		t.Errorf("connections ended: %v", a.downs)
	}
}

func TestKeepAlive(t *testing.T) {
	m := broker(t, peertest.MosquittoConfig{NoPersistence: true})
	a := newClient(t, m, "a")
	a.cfg.KeepAlive = time.Second
	a.up()
	if err := m.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.await("end of a silent connection", func() bool { return len(a.downs) > 0 })
	if err := m.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	a.await("another one", func() bool { return len(a.ups) > 1 })
	a.mu.Lock()
	defer a.mu.Unlock()
	if !strings.Contains(a.downs[0].Error(), "ping") {
		t.Errorf("got %v", a.downs[0])
	}
}

func BenchmarkPublish(b *testing.B) {
	for qos := range byte(3) {
		b.Run(fmt.Sprint("QoS ", qos), func(b *testing.B) {
			m := broker(b, peertest.MosquittoConfig{NoPersistence: true, Lines: []string{"max_inflight_messages 100"}})
			c := newClient(b, m, "a")
			c.up()
			slots := make(chan struct{}, 100)
			payload := make([]byte, 100)
			for i := 0; b.Loop(); i++ {
				slots <- struct{}{}
				err := c.s.Send(b.Context(), fmt.Sprint(i), &session.Message{Topic: "bench", Payload: payload, QoS: qos}, func(err error) {
					<-slots
					if err != nil {
						b.Error(err)
					}
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			for range cap(slots) {
				slots <- struct{}{}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
		})
	}
}
