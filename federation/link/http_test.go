package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

const livePath = livePrefix + "test"

// livePair returns two linked gateways, of which the second grants streams to the
// first and answers live requests by h.
func livePair(t testing.TB, streams int, h http.HandlerFunc, opts ...option) (from, to *testGateway) {
	t.Helper()
	from, to = newGateway(t, append([]option{quick}, opts...)...), newGateway(t, append([]option{quick}, opts...)...)
	to.Handle(livePath, h)
	to.knows(from, federation.StateActive)
	to.change(from.id.ID(), func(p *federation.Peer) { p.Policy.Limits.Streams = streams })
	from.knows(to, federation.StateActive)
	from.await(true)
	to.await(true)
	return from, to
}

// ask sends a live request of g.
func (g *testGateway) ask(ctx context.Context, to *testGateway, method string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequest(method, livePath, body)
	if err != nil {
		return nil, err
	}
	return g.RoundTrip(ctx, to.id.ID(), req)
}

// liveTo returns the connection for live requests to the only peer.
func (g *testGateway) liveTo(to *testGateway) *liveConn {
	g.t.Helper()
	s, err := g.session(context.Background(), to.id.ID())
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := s.liveConn(limited(g.t))
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// asking is how many live requests wait for a place.
func (g *testGateway) asking(to *testGateway) int {
	g.t.Helper()
	s, err := g.session(context.Background(), to.id.ID())
	if err != nil {
		g.t.Fatal(err)
	}
	return int(s.asking.Load())
}

func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestLiveRequestArrivesAsItIs(t *testing.T) {
	type arrived struct {
		method, path, query string
		header              http.Header
		body                []byte
		length              int64
		peer                *federation.Peer
	}
	last := make(chan arrived, 1)
	reply := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{1}).Read(reply)
	a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("read body: %v", err)
		}
		last <- arrived{r.Method, r.URL.Path, r.URL.RawQuery, r.Header, body, r.ContentLength, PeerFrom(r.Context())}
		w.Header().Set("X-Answer", strings.Repeat("a", 5<<10))
		w.Header().Set("Location", "https://elsewhere.invalid/")
		w.WriteHeader(http.StatusTemporaryRedirect)
		w.Write(reply)
	})
	target := "/_matrix//federation/v1/%2e%2e/a%2Fb/%24x?a=%20&b=+&&" + strings.Repeat("%c3%a4", 500)
	for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
		for _, size := range []int{0, 1, 64<<10 + 1, 3 << 20} {
			body := make([]byte, size)
			rand.NewChaCha8([32]byte{2}).Read(body)
			req, err := http.NewRequest(method, livePath+"?q=%2f", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = http.Header{
				"Yggate-Target": {target}, "Authorization": {"X-Matrix " + strings.Repeat("k", 4<<10)}, "X-Two": {"1", "2"},
				"Connection": {"close, x-hop"}, "X-Hop": {"1"}, "Te": {"trailers"}, "Transfer-Encoding": {"identity"}, "Upgrade": {"x"},
			}
			req.Close = true
			res, err := a.RoundTrip(limited(t), b.id.ID(), req)
			if err != nil {
				t.Fatalf("%s %d: %v", method, size, err)
			}
			got := <-last
			answer, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(answer, reply) || res.StatusCode != 307 || len(res.Header.Get("X-Answer")) != 5<<10 {
				t.Errorf("%s %d: answer %v of %d bytes, %v", method, size, res.Status, len(answer), err)
			}
			res.Body.Close()
			if got.method != method || got.path != livePath || got.query != "q=%2f" || !bytes.Equal(got.body, body) || got.length != int64(size) {
				t.Errorf("%s %d: got %s %s?%s, %d bytes, length %d", method, size, got.method, got.path, got.query, len(got.body), got.length)
			}
			if got.peer == nil || got.peer.ID != a.id.ID() {
				t.Errorf("peer %v", got.peer)
			}
			want := http.Header{"Yggate-Target": {target}, "Authorization": req.Header["Authorization"], "X-Two": {"1", "2"}}
			if size > 0 || method == "PUT" || method == "POST" {
				want["Content-Length"] = []string{fmt.Sprint(size)}
			}
			if fmt.Sprint(got.header) != fmt.Sprint(want) {
				t.Errorf("%s %d: header %.300v", method, size, got.header)
			}
		}
	}
	if err := talk(a.lane(b), "one session"); err != nil || a.Status()[0].Attempts != 0 {
		t.Fatalf("%v, %+v", err, a.Status())
	}
	waitFor(t, "the places to be free", func() bool { return a.liveTo(b).used.Load() == 0 })
}

func TestLiveBodiesStreamBothWaysAtOnce(t *testing.T) {
	a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		buf := make([]byte, 1000)
		for {
			n, err := r.Body.Read(buf)
			if _, werr := w.Write(buf[:n]); err != nil || werr != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	})
	up, w := io.Pipe()
	res, err := a.ask(limited(t), b, "POST", up)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for range 100 {
		if err := talk(struct {
			io.Reader
			io.Writer
		}{res.Body, w}, "there and back"); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
		t.Fatalf("%q, %v", rest, err)
	}
}

// stuck is a body like that of net/http's server: its Close waits for its Read.
type stuck struct {
	mu      sync.Mutex
	reading chan struct{}
	release chan struct{}
	closed  chan struct{}
}

func newStuck() *stuck {
	return &stuck{reading: make(chan struct{}), release: make(chan struct{}), closed: make(chan struct{})}
}

func (s *stuck) Read([]byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.reading)
	<-s.release
	return 0, io.ErrUnexpectedEOF
}

func (s *stuck) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.closed)
	return nil
}

func TestLiveRequestCancelled(t *testing.T) {
	for _, when := range []string{"before the answer", "in the answer, by context", "in the answer, by Close"} {
		for _, body := range []string{"none", "endless", "stuck"} {
			t.Run(when+", body "+body, func(t *testing.T) {
				began, ended := make(chan struct{}), make(chan struct{})
				a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
					defer close(ended)
					if when != "before the answer" {
						w.Write([]byte("x"))
						w.(http.Flusher).Flush()
					}
					close(began)
					<-r.Context().Done()
				})
				ctx, cancel := context.WithCancel(limited(t))
				var up io.Reader
				st := newStuck()
				switch body {
				case "endless":
					up = endless{}
				case "stuck":
					up = st
				}
				if when == "before the answer" {
					go func() { <-began; cancel() }()
				}
				res, err := a.ask(ctx, b, "POST", up)
				switch when {
				case "before the answer":
					if !errors.Is(err, context.Canceled) || errors.Is(err, federation.ErrPeerDown) {
						t.Errorf("got %v", err)
					}
				case "in the answer, by context":
					if err != nil {
						t.Fatal(err)
					}
					cancel()
					if _, err := io.ReadAll(res.Body); !errors.Is(err, context.Canceled) {
						t.Errorf("read: %v", err)
					}
				default:
					if err != nil {
						t.Fatal(err)
					}
					if err := res.Body.Close(); err != nil {
						t.Error(err)
					}
					if _, err := res.Body.Read(make([]byte, 1)); err == nil || err == io.EOF {
						t.Errorf("read after close: %v", err)
					}
				}
				cancel()
				select {
				case <-ended:
				case <-time.After(patience):
					t.Fatal("the handler was not told")
				}
				waitFor(t, "the place", func() bool { return a.liveTo(b).used.Load() == 0 })
				close(st.release)
				if body == "stuck" {
					<-st.closed
				}
				if err := talk(a.lane(b), "unharmed"); err != nil || a.Status()[0].Attempts != 0 {
					t.Fatalf("%v, %+v", err, a.Status())
				}
			})
		}
	}
}

func TestHandlerBreaksOff(t *testing.T) {
	for _, why := range []any{http.ErrAbortHandler, "out of paper"} {
		var mu sync.Mutex
		var logged bytes.Buffer
		log := func(c *Config, _ *testGateway) {
			c.Log = slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
				mu.Lock()
				defer mu.Unlock()
				return logged.Write(p)
			}), &slog.HandlerOptions{Level: slog.LevelError}))
		}
		a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
			w.Write(make([]byte, 100<<10))
			panic(why)
		}, log)
		res, err := a.ask(limited(t), b, "GET", nil)
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil || errors.Is(err, federation.ErrPeerDown) {
			t.Fatalf("got %v", err)
		}
		if err := talk(a.lane(b), "unharmed"); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if text, told := logged.String(), why != http.ErrAbortHandler; strings.Contains(text, "out of paper") != told || strings.Contains(text, "TestHandlerBreaksOff") != told {
			t.Errorf("%v: logged %q", why, text)
		}
		mu.Unlock()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestBodyOfRequestFails(t *testing.T) {
	ended := make(chan error, 1)
	a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		ended <- err
	})
	fire := errors.New("printer is on fire")
	body := io.MultiReader(bytes.NewReader(make([]byte, 200<<10)), readerFunc(func([]byte) (int, error) { return 0, fire }))
	if _, err := a.ask(limited(t), b, "PUT", body); !errors.Is(err, fire) || errors.Is(err, federation.ErrPeerDown) {
		t.Fatalf("got %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler took the part for the whole")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// What ends the session ends what is sent, what is received and what waits.
func TestSessionEndsUnderLiveRequests(t *testing.T) {
	for name, end := range map[string]func(a, b *testGateway, p *proxy){
		"peer stops":         func(_, b *testGateway, _ *proxy) { b.stop() },
		"own gateway stops":  func(a, _ *testGateway, _ *proxy) { a.stop() },
		"peer paused here":   func(a, b *testGateway, _ *proxy) { a.setState(b, federation.StatePaused) },
		"paused by the peer": func(a, b *testGateway, _ *proxy) { b.setState(a, federation.StatePaused) },
		"silence":            func(_, _ *testGateway, p *proxy) { p.freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var begun, running atomic.Int32
			a, b := newGateway(t, quick), newGateway(t, quick)
			b.Handle(livePath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				running.Add(1)
				defer running.Add(-1)
				if r.Method == "GET" {
					w.Write([]byte("x"))
					w.(http.Flusher).Flush()
				}
				begun.Add(1)
				if r.Method == "PUT" {
					io.Copy(io.Discard, r.Body)
					return
				}
				<-r.Context().Done()
			}))
			p := newProxy(t, b.ip)
			a.net.via = func(string, uint16) string { return p.ln.Addr().String() }
			b.knows(a, federation.StateActive)
			b.change(a.id.ID(), func(p *federation.Peer) { p.Policy.Limits.Streams = 8 })
			a.knows(b, federation.StateActive)
			a.await(true)
			places := a.liveTo(b)
			failed := make(chan error, 10)
			for i := range 10 {
				go func() {
					switch i % 3 {
					case 0:
						_, err := a.ask(context.Background(), b, "POST", nil)
						failed <- err
					case 1:
						_, err := a.ask(context.Background(), b, "PUT", endless{})
						failed <- err
					default:
						res, err := a.ask(context.Background(), b, "GET", newStuck())
						if err == nil {
							_, err = io.ReadAll(res.Body)
							res.Body.Close()
						}
						failed <- err
					}
				}()
			}
			waitFor(t, "requests to run and to wait", func() bool { return begun.Load() == 8 && a.asking(b) == 2 })
			end(a, b, p)
			for range 10 {
				select {
				case err := <-failed:
					if !errors.Is(err, federation.ErrPeerDown) {
						t.Errorf("got %v", err)
					}
				case <-time.After(patience):
					t.Fatal("a request did not end")
				}
			}
			waitFor(t, "the handlers to be told", func() bool { return running.Load() == 0 })
			waitFor(t, "the places", func() bool { return places.used.Load() == 0 })
			a.stop()
			if _, err := a.ask(context.Background(), b, "GET", nil); !errors.Is(err, federation.ErrPeerDown) {
				t.Errorf("without a link: %v", err)
			}
		})
	}
}

func TestHeaderTooLarge(t *testing.T) {
	a, b := livePair(t, 64, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			w.Header().Set("X-Big", r.Header.Get("X-Big"))
			w.WriteHeader(http.StatusOK)
			w.Header().Set(http.TrailerPrefix+"X-Late", strings.Repeat("x", 17<<10))
			return
		}
		w.Header().Set("X-Big", strings.Repeat("x", 17<<10))
		if r.Method == "PUT" {
			return
		}
		if _, err := w.Write([]byte("body")); !errors.Is(err, ErrHeaderTooLarge) {
			t.Errorf("write: %v", err)
		}
	})
	req, err := http.NewRequest("GET", livePath, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Big", strings.Repeat("x", 16<<10))
	if _, err := a.RoundTrip(limited(t), b.id.ID(), req); !errors.Is(err, ErrHeaderTooLarge) {
		t.Errorf("request: %v", err)
	}
	for _, method := range []string{"GET", "HEAD", "PUT"} {
		res, err := a.ask(limited(t), b, method, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusBadGateway || method != "HEAD" && !strings.Contains(string(text), "too large") {
			t.Errorf("answer to %s: %s %q, %v", method, res.Status, text, err)
		}
	}
	// The largest that this side lets pass is one that the far side takes.
	big := strings.Repeat("x", liveHeaderMax-len(livePath)-len("X-Big")-32-len("User-Agent")-32)
	req.Header.Set("X-Big", big)
	req.Method = "POST"
	res, err := a.RoundTrip(limited(t), b.id.ID(), req)
	if err != nil {
		t.Fatalf("largest header: %v", err)
	}
	if _, err := io.ReadAll(res.Body); err != nil || res.Header.Get("X-Big") != big || len(res.Trailer) > 0 {
		t.Errorf("answer to the largest header: %v %v", res, err)
	}
	res.Body.Close()
	req.URL.Path = "/v1/hello"
	if _, err := a.RoundTrip(limited(t), b.id.ID(), req); err == nil || !strings.Contains(err.Error(), livePrefix) {
		t.Errorf("another endpoint: %v", err)
	}
	if err := talk(a.lane(b), "unharmed"); err != nil || a.Status()[0].Attempts != 0 {
		t.Fatalf("%v, %+v", err, a.Status())
	}
}
