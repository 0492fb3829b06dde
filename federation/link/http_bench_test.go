package link

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// bodyLen is how long the bodies of live requests are in benchmarks.
const bodyLen = 256 << 20

// serveBulk answers GET with a long body, and takes any other.
func serveBulk(w http.ResponseWriter, r *http.Request) {
	if r.Method == "GET" {
		io.Copy(w, io.LimitReader(endless{}, bodyLen))
		return
	}
	io.Copy(io.Discard, r.Body)
}

// transfer carries one long body over the link.
func transfer(ctx context.Context, from, to *testGateway, method string) (int64, error) {
	up := io.LimitReader(endless{}, bodyLen)
	if method == "GET" {
		up = nil
	}
	res, err := from.ask(ctx, to, method, up)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	return io.Copy(io.Discard, res.Body)
}

// BenchmarkLiveBulk is one long body of a live request; BenchmarkBulk/link is what
// a lane makes of the same link.
func BenchmarkLiveBulk(b *testing.B) {
	for _, method := range []string{"GET", "PUT"} {
		b.Run(method, func(b *testing.B) {
			from, to := livePair(b, 64, serveBulk)
			b.SetBytes(bodyLen)
			for b.Loop() {
				n, err := transfer(context.Background(), from, to, method)
				if err != nil || method == "GET" && n != bodyLen {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkLiveRoundTrip is a small request and its answer.
func BenchmarkLiveRoundTrip(b *testing.B) {
	from, to := livePair(b, 64, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	line := make([]byte, 300)
	b.ReportAllocs()
	for b.Loop() {
		res, err := from.ask(context.Background(), to, "PUT", bytes.NewReader(line))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); err != nil || n != int64(len(line)) {
			b.Fatal(n, err)
		}
		res.Body.Close()
	}
}

// BenchmarkLaneBesideBodies is what a short line on a lane and its echo suffer
// from long bodies on the same link.
func BenchmarkLaneBesideBodies(b *testing.B) {
	for _, c := range []struct {
		name    string
		methods []string
	}{{"none", nil}, {"GET", []string{"GET"}}, {"PUT", []string{"PUT"}}, {"8xGET", slices.Repeat([]string{"GET"}, 8)}, {"8xPUT", slices.Repeat([]string{"PUT"}, 8)}} {
		b.Run(c.name, func(b *testing.B) {
			from, to := livePair(b, 64, serveBulk)
			ctx, cancel := context.WithCancel(context.Background())
			var bodies sync.WaitGroup
			defer bodies.Wait()
			defer cancel()
			for _, method := range c.methods {
				bodies.Go(func() {
					for ctx.Err() == nil {
						if _, err := transfer(ctx, from, to, method); err != nil && ctx.Err() == nil {
							b.Error(err)
						}
					}
				})
			}
			s := from.lane(to)
			line := make([]byte, 300)
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				if _, err := s.Write(line); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(s, line); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}
