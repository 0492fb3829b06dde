package matrix

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/store"
)

const patience = 20 * time.Second

// side is the homeserver's side of a gateway that is up, with a fake link.
type side struct {
	t      *testing.T
	a      *Adapter
	dir    *federation.Directory
	bob    federation.Peer
	ca     *localca.CA
	links  *fakeLinks
	outbox *fakeOutbox
	hs     *fakeServer
	log    *logBuffer
	proxy  string // address of the proxy
	direct string // address of a TLS listener
	stop   func()
}

// fakeServer is the own homeserver's client API.
type fakeServer struct {
	*httptest.Server
	handler atomic.Pointer[http.HandlerFunc]
}

func (f *fakeServer) serve(h http.HandlerFunc) { f.handler.Store(&h) }

// newSide starts a gateway of a.grid with the peer bob of b.grid.
func newSide(t *testing.T, change ...func(*Config)) *side {
	t.Helper()
	return newPatientSide(t, headerPatience, change...)
}

// newPatientSide waits for that long for headers and handshakes.
func newPatientSide(t *testing.T, wait time.Duration, change ...func(*Config)) *side {
	t.Helper()
	s := &side{t: t, dir: federation.NewDirectory(), log: &logBuffer{}, outbox: &fakeOutbox{}, hs: &fakeServer{}}
	s.bob = federation.Peer{
		ID: "bobs-grid", Name: "bob", State: federation.StateActive,
		Policy: federation.Policy{Allow: map[federation.Protocol]bool{federation.Matrix: true}},
	}
	s.publish("b.grid")
	s.links = newFakeLinks(t)
	s.hs.serve(func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) })
	s.hs.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.hs.handler.Load())(w, r) }))
	t.Cleanup(s.hs.Close)
	server, err := url.Parse(s.hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	if s.ca, err = localca.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	cfg := Config{
		Directory: s.dir, Links: s.links, Store: db, CA: s.ca, Server: server,
		Proxy: netip.MustParseAddrPort("127.0.0.1:1"), Metrics: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&cfg)
	}
	if s.a, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	s.a.Connect(s.outbox)
	s.a.out.wakes.pace = pace{time.Millisecond, 5 * time.Millisecond, time.Hour, time.Millisecond, upPatience}
	s.a.out.patience = wait
	s.start()
	return s
}

func (s *side) start() {
	proxy, direct := listen(s.t), listen(s.t)
	s.proxy, s.direct = proxy.Addr().String(), direct.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.a.out.run(ctx, proxy, []net.Listener{direct}) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				s.t.Errorf("run: %v", err)
			}
		case <-time.After(patience):
			s.t.Error("run does not end")
		}
	})
	s.t.Cleanup(s.stop)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// publish makes bob, as he is now, hold the names.
func (s *side) publish(names ...string) {
	bob := s.bob
	var claims []federation.Claim
	for _, n := range names {
		claims = append(claims, federation.Claim{Protocol: federation.Matrix, Domain: n, Grid: bob.ID, Status: federation.ClaimActive})
	}
	s.dir.Publish(federation.NewSnapshot([]*federation.Peer{&bob}, claims, map[federation.Protocol][]string{federation.Matrix: {"a.grid"}}))
}

// client is a homeserver's HTTP client, by way of the proxy.
func (s *side) client(h2 bool) *http.Client {
	proxy := &url.URL{Scheme: "http", Host: s.proxy}
	t := &http.Transport{
		Proxy: http.ProxyURL(proxy), Protocols: only(h2), DisableCompression: true,
		TLSClientConfig: &tls.Config{RootCAs: s.ca.Roots()}, ExpectContinueTimeout: patience,
	}
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// only is HTTP/2 or HTTP/1.1: of a client that has both, the gateway takes the latter.
func only(h2 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP2(h2)
	p.SetHTTP1(!h2)
	return p
}

// answer is what came back.
type answer struct {
	*http.Response
	body string
}

func (s *side) do(c *http.Client, method, url string, body io.Reader, header ...string) answer {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("%s %s: read the answer: %v", method, url, err)
	}
	return answer{res, string(raw)}
}

// fakeLinks has a peer whose gateway is a handler, over HTTP/2.
type fakeLinks struct {
	server *httptest.Server
	fail   atomic.Pointer[error]
	handle atomic.Pointer[http.HandlerFunc]
}

func newFakeLinks(t *testing.T) *fakeLinks {
	f := &fakeLinks{}
	f.serve(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{}`) })
	f.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*f.handle.Load())(w, r) }))
	f.server.EnableHTTP2 = true
	f.server.StartTLS()
	t.Cleanup(f.server.Close)
	return f
}

func (f *fakeLinks) serve(h http.HandlerFunc) { f.handle.Store(&h) }

func (f *fakeLinks) down(err error) { f.fail.Store(&err) }

func (f *fakeLinks) up() { f.fail.Store(nil) }

func (f *fakeLinks) RoundTrip(ctx context.Context, peer federation.GridID, req *http.Request) (*http.Response, error) {
	if err := f.fail.Load(); err != nil {
		return nil, *err
	}
	if peer != "bobs-grid" || req.URL.Path != Endpoint {
		return nil, errors.New("not for bob's endpoint")
	}
	to := req.Clone(ctx)
	to.URL.Host = f.server.Listener.Addr().String()
	t := f.server.Client().Transport.(*http.Transport)
	t.DisableCompression = true
	return t.RoundTrip(to)
}

// fakeOutbox keeps what is put, or fails.
type fakeOutbox struct {
	mu    sync.Mutex
	items []lane.Item
	lanes []lane.Name
	put   error // of Put
	disk  error // told to stored
	wait  int64
}

func (f *fakeOutbox) Put(_ context.Context, _ federation.GridID, name lane.Name, stored func(error), items ...lane.Item) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.put != nil {
		return f.put
	}
	if f.disk == nil {
		f.items = append(f.items, items...)
		f.lanes = append(f.lanes, name)
	}
	stored(f.disk)
	return nil
}

func (f *fakeOutbox) Waiting(federation.GridID, lane.Name) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wait
}

func (f *fakeOutbox) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fakeOutbox) taken() []lane.Item {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]lane.Item(nil), f.items...)
}

// logBuffer is a log to be looked at.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
