package s2s

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/yggate/yggate/federation/xmpp/frame"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// counter is a Handler that only counts.
type counter struct {
	n    atomic.Int64
	tell atomic.Int64 // tell done when n reaches it
	done chan struct{}
}

func (c *counter) Open(string, string) error { return nil }

func (c *counter) Stanzas(_ context.Context, _, _ string, batch [][]byte, settled func()) error {
	defer settled()
	if c.n.Add(int64(len(batch))) == c.tell.Load() {
		c.done <- struct{}{}
	}
	return nil
}

func (c *counter) Skipped(_ context.Context, _, _ string, s *frame.Skipped, _ func()) error { return s }

func (c *counter) Failed(_, _ string, stanzas [][]byte, err error) { panic(err) }

func (*counter) LocalLost(string) {}

func (*counter) LocalBack(string) {}

// BenchmarkStream is the way of a stanza from Send over TLS on loopback to the
// Handler at the other end: what one gateway spends on a stanza in both
// directions together, system calls included. Each op is one stanza.
func BenchmarkStream(b *testing.B) {
	for _, c := range []struct {
		name  string
		size  int
		batch int
	}{{"chat one by one", 370, 1}, {"chat in 16s", 370, 16}, {"iq 20 KiB", 20 << 10, 1}} {
		b.Run(c.name, func(b *testing.B) {
			ca := openCA(b)
			count := &counter{done: make(chan struct{}, 1)}
			addr := freeAddr()
			config := Config{CA: ca, Handler: count, Listen: addr, Servers: []Server{{Addr: addr}}, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()}
			s, err := New(config)
			if err != nil {
				b.Fatal(err)
			}
			run(b, s)
			stanza := []byte("<message from='alice@b.grid/x' to='bob@a.grid' type='chat' id='1'><body>" + strings.Repeat("x", c.size-88) + "</body></message>")
			batch := make([][]byte, c.batch)
			for i := range batch {
				batch[i] = stanza
			}
			once := func(n int) {
				count.tell.Store(count.n.Load() + int64(n))
				for sent := 0; sent < n; sent += c.batch {
					if err := s.Send(b.Context(), "b.grid", "a.grid", batch[:min(c.batch, n-sent)]...); err != nil {
						b.Fatal(err)
					}
				}
				<-count.done
			}
			once(1) // the handshake
			b.ReportAllocs()
			b.SetBytes(int64(len(stanza)))
			b.ResetTimer()
			once(b.N)
		})
	}
}

// repeated is a connection from which n stanzas can be read.
type repeated struct {
	net.Conn
	stanza string
	n      int
	slow   bool // one at a time
	rest   string
}

func (c *repeated) Read(b []byte) (n int, err error) {
	for n < len(b) {
		if c.rest == "" {
			if c.n == 0 {
				return n, io.EOF
			}
			c.rest = c.stanza
			c.n--
		}
		k := copy(b[n:], c.rest)
		c.rest = c.rest[k:]
		n += k
		if c.slow && c.rest == "" {
			break
		}
	}
	return n, nil
}

func (c *repeated) Write(b []byte) (int, error) { return len(b), nil }

func (c *repeated) SetWriteDeadline(time.Time) error { return nil }

func (c *repeated) SetReadDeadline(time.Time) error { return nil }

// BenchmarkRelay is an inbound stream without the connection below it, with and
// without stream management. Each op is one stanza.
func BenchmarkRelay(b *testing.B) {
	for _, c := range []struct {
		name    string
		size    int
		slow    bool
		managed bool
	}{
		{"chat", 370, false, false}, {"chat managed", 370, false, true},
		{"chat one by one", 370, true, false}, {"chat one by one managed", 370, true, true},
		{"iq 20 KiB", 20 << 10, false, false}, {"iq 20 KiB managed", 20 << 10, false, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, err := New(Config{CA: openCA(b), Handler: &counter{done: make(chan struct{}, 1)}, Servers: []Server{{Addr: freeAddr()}}})
			if err != nil {
				b.Fatal(err)
			}
			stanza := "<message from='alice@b.grid/x' to='bob@a.grid' type='chat' id='1'><body>" + strings.Repeat("x", c.size-88) + "</body></message>"
			in := &inbound{stream: newStream(&repeated{stanza: stanza, n: b.N, slow: c.slow}, time.Second), s: s}
			if c.managed {
				in.handled = newHandled(s.limits.Unsettled, in.write, func() { b.Error("broken") })
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(stanza)))
			b.ResetTimer()
			if err := in.lastAck(b.Context(), in.relay(b.Context())); !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		})
	}
}
