package link

import (
	"context"
	"io"
	"net"
	"runtime"
	"testing"

	"github.com/yggate/yggate/federation"
)

const bulk = 1 << 20

// BenchmarkBulk is one lane stream against the bare stream under it.
func BenchmarkBulk(b *testing.B) {
	b.Run("link", func(b *testing.B) {
		sink := func(c *Config, g *testGateway) {
			c.ServeLane = func(_ context.Context, _ *federation.Peer, _ string, s io.ReadWriteCloser) error {
				_, err := io.Copy(io.Discard, s)
				return err
			}
		}
		from, to := newGateway(b, quick), newGateway(b, sink)
		link(from, to)
		from.await(true)
		pour(b, from.lane(to))
	})
	b.Run("bare", func(b *testing.B) {
		ln, err := net.Listen("tcp", net.JoinHostPort(newIP(), "9001"))
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		go func() {
			if c, err := ln.Accept(); err == nil {
				io.Copy(io.Discard, struct{ io.Reader }{c})
			}
		}()
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		pour(b, c)
	})
}

func pour(b *testing.B, w io.Writer) {
	buf := make([]byte, bulk)
	b.SetBytes(bulk)
	for b.Loop() {
		if _, err := w.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRoundTrip is a short line on a lane stream and its echo.
func BenchmarkRoundTrip(b *testing.B) {
	from, to := newGateway(b, quick), newGateway(b, quick)
	link(from, to)
	from.await(true)
	s := from.lane(to)
	line := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(line); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, line); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdlePeer reports what a peer costs that is only up, both ends of two
// connections together.
func BenchmarkIdlePeer(b *testing.B) {
	hub := newGateway(b, quick)
	var m0, m1 runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m0)
	n := 0
	for b.Loop() {
		p := newGateway(b, quick)
		link(hub, p)
		p.await(true)
		hub.await(true)
		n++
	}
	runtime.GC()
	runtime.ReadMemStats(&m1)
	b.ReportMetric(float64(m1.HeapInuse+m1.StackInuse-m0.HeapInuse-m0.StackInuse)/float64(n)/1024, "KiB/peer")
}
