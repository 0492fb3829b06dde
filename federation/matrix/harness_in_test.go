package matrix

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	mautrixfed "maunium.net/go/mautrix/federation"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/store"
)

// inWorld is the gateway of b.grid, with its homeserver behind it and in front of
// it the link, of which the near end is an HTTP/2 client. Its peers are alice, with
// a.grid and a2.grid, and carol, with c.grid.
type inWorld struct {
	t       testing.TB
	a       *Adapter
	dir     *federation.Directory
	alice   *federation.Peer
	carol   *federation.Peer
	claims  []federation.Claim
	store   *store.Store
	log     *inLog
	metrics *prometheus.Registry
	link    *httptest.Server
	home    *homeserver
	keys    *keyServers
}

// keyServers are the far ends of the links, for fetches of keys.
type keyServers struct {
	mu      sync.Mutex
	answer  map[string]func() (*http.Response, error) // by server name
	fetches map[string]int
	asked   []federation.GridID
}

func (k *keyServers) RoundTrip(_ context.Context, peer federation.GridID, req *http.Request) (*http.Response, error) {
	server := req.Header.Get(headerServer)
	k.mu.Lock()
	k.asked = append(k.asked, peer)
	k.fetches[server]++
	answer := k.answer[server]
	k.mu.Unlock()
	if req.URL.Path != Endpoint || req.Header.Get(headerTarget) != keyTarget || req.Method != http.MethodGet {
		return nil, fmt.Errorf("unexpected request %v %v", req.URL, req.Header)
	}
	if answer == nil {
		return nil, federation.ErrPeerDown
	}
	return answer()
}

func (k *keyServers) count(server string) int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fetches[server]
}

func (k *keyServers) set(server string, answer func() (*http.Response, error)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.answer[server] = answer
}

// serves has a server answer with a body.
func (k *keyServers) serves(server, body string) {
	k.set(server, func() (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
}

// keyAnswer is what a server says of its keys, signed by all of them.
func keyAnswer(t testing.TB, server string, until time.Time, keys ...*mautrixfed.SigningKey) string {
	t.Helper()
	verify := map[string]any{}
	for _, k := range keys {
		verify[string(k.ID)] = map[string]any{"key": k.Pub}
	}
	r := map[string]any{"server_name": server, "valid_until_ts": until.UnixMilli(), "verify_keys": verify, "old_verify_keys": map[string]any{}}
	signatures := map[string]string{}
	for _, k := range keys {
		sig, err := k.SignJSON(r)
		if err != nil {
			t.Fatal(err)
		}
		signatures[string(k.ID)] = sig
	}
	r["signatures"] = map[string]any{server: signatures}
	raw, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// homeserver is what stands behind the gateway.
type homeserver struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []seenRequest
	answer http.HandlerFunc
}

type seenRequest struct {
	method, uri, host, body string
	header                  http.Header
}

func (h *homeserver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	h.mu.Lock()
	h.seen = append(h.seen, seenRequest{r.Method, r.RequestURI, r.Host, string(body), r.Header})
	answer := h.answer
	h.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"pdus":{}}`)
}

func (h *homeserver) answers(f http.HandlerFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = f
}

func (h *homeserver) requests() []seenRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]seenRequest(nil), h.seen...)
}

type noOutbox struct{}

func (noOutbox) Put(context.Context, federation.GridID, lane.Name, func(error), ...lane.Item) error {
	return lane.ErrFull
}

var (
	aliceKey = mautrixfed.GenerateSigningKey()
	carolKey = mautrixfed.GenerateSigningKey()
)

func newTestPeer(name string) *federation.Peer {
	pub := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32s", name))).Public().(ed25519.PublicKey)
	return &federation.Peer{
		ID: federation.NewGridID(pub), Name: name, Key: pub, State: federation.StateActive,
		Policy: federation.Policy{Allow: map[federation.Protocol]bool{federation.Matrix: true}, Limits: federation.DefaultLimits()},
	}
}

func newInWorld(t testing.TB, change ...func(*Config)) *inWorld {
	t.Helper()
	w := &inWorld{
		t: t, dir: federation.NewDirectory(), alice: newTestPeer("alice"), carol: newTestPeer("carol"), log: new(inLog),
		metrics: prometheus.NewRegistry(), keys: &keyServers{answer: map[string]func() (*http.Response, error){}, fetches: map[string]int{}},
	}
	w.claims = []federation.Claim{
		{Protocol: federation.Matrix, Domain: "a.grid", Grid: w.alice.ID, Status: federation.ClaimActive},
		{Protocol: federation.Matrix, Domain: "a2.grid", Grid: w.alice.ID, Status: federation.ClaimActive},
		{Protocol: federation.Matrix, Domain: "c.grid", Grid: w.carol.ID, Status: federation.ClaimActive},
	}
	w.publish()
	for server, key := range map[string]*mautrixfed.SigningKey{"a.grid": aliceKey, "a2.grid": aliceKey, "c.grid": carolKey} {
		w.keys.serves(server, keyAnswer(t, server, time.Now().Add(time.Hour), key))
	}
	w.home = &homeserver{}
	w.home.Server = httptest.NewServer(w.home)
	t.Cleanup(w.home.Close)
	w.open(filepath.Join(t.TempDir(), "db"), change...)
	w.link = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		peer := w.alice
		if r.Header.Get("Test-Peer") == "carol" {
			peer = w.carol
		}
		w.a.ServePeer(rw, r, peer)
	}))
	w.link.EnableHTTP2 = true
	w.link.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	w.link.StartTLS()
	t.Cleanup(w.link.Close)
	w.link.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	w.link.Client().Transport.(*http.Transport).DisableCompression = true
	return w
}

// open makes the adapter on a database.
func (w *inWorld) open(path string, change ...func(*Config)) {
	w.t.Helper()
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{Path: path})
	if err != nil {
		w.t.Fatal(err)
	}
	w.store = s
	w.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			w.t.Error(err)
		}
	})
	if w.metrics == nil {
		w.metrics = prometheus.NewRegistry()
	}
	ca, err := localca.Open(w.t.TempDir())
	if err != nil {
		w.t.Fatal(err)
	}
	home, err := url.Parse(w.home.URL)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := Config{
		Directory: w.dir, Links: w.keys, Outbox: noOutbox{}, Store: s, CA: ca, Server: home, Proxy: netip.MustParseAddrPort("127.0.0.1:8118"),
		Log: slog.New(slog.NewTextHandler(w.log, nil)), Metrics: w.metrics,
	}
	for _, f := range change {
		f(&cfg)
	}
	if w.a, err = New(cfg); err != nil {
		w.t.Fatal(err)
	}
	w.a.in.keys.waits = 0
}

// reopen is a restart on a database that is open.
func (w *inWorld) reopen(path string) {
	w.metrics = prometheus.NewRegistry()
	w.open(path, func(c *Config) { c.Metrics = w.metrics })
}

// inLog is a log to be looked at.
type inLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *inLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *inLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (w *inWorld) publish() {
	w.dir.Publish(federation.NewSnapshot([]*federation.Peer{w.alice, w.carol}, w.claims, map[federation.Protocol][]string{federation.Matrix: {"b.grid", "b.grid:8448"}}))
}

// change changes alice.
func (w *inWorld) change(f func(*federation.Peer)) {
	p := *w.alice
	f(&p)
	w.alice = &p
	w.publish()
}

// ask is a request of a peer, by default alice's a.grid to b.grid, signed.
type ask struct {
	method, target string
	server         string // Yggate-Server
	body           string
	origin         string
	destination    string // that is signed
	key            *mautrixfed.SigningKey
	auth           func(header string) []string // changes the header
	header         http.Header
	signedBody     *string // another body than that which is sent
	signedTarget   string
	reader         io.Reader // in place of body
	length         int64     // of reader
	peer           string
}

func or(s, d string) string {
	if s == "" {
		return d
	}
	return s
}

func (k ask) request(t testing.TB, base string) *http.Request {
	t.Helper()
	k.method, k.target, k.server, k.origin = or(k.method, "GET"), or(k.target, "/_matrix/federation/v1/backfill/!r:b.grid?v=%24x&limit=1"), or(k.server, "b.grid"), or(k.origin, "a.grid")
	k.destination, k.signedTarget = or(k.destination, k.server), or(k.signedTarget, k.target)
	if k.key == nil {
		k.key = aliceKey
	}
	signedBody := k.body
	if k.signedBody != nil {
		signedBody = *k.signedBody
	}
	var body io.Reader
	if k.body != "" {
		body = strings.NewReader(k.body)
	}
	if k.reader != nil {
		body = k.reader
	}
	r, err := http.NewRequestWithContext(t.Context(), k.method, base+Endpoint, body)
	if err != nil {
		t.Fatal(err)
	}
	if k.reader != nil {
		r.ContentLength = k.length
	}
	for name, v := range k.header {
		r.Header[name] = v
	}
	if body != nil && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set(headerTarget, k.target)
	r.Header.Set(headerServer, k.server)
	r.Header.Set("Test-Peer", k.peer)
	auth := xmatrix(t, k.key, k.method, k.signedTarget, k.origin, k.destination, signedBody)
	r.Header["Authorization"] = []string{auth}
	if k.auth != nil {
		r.Header["Authorization"] = k.auth(auth)
	}
	return r
}

// xmatrix signs as a homeserver does.
func xmatrix(t testing.TB, key *mautrixfed.SigningKey, method, target, origin, destination, body string) string {
	t.Helper()
	m := map[string]any{"method": method, "uri": target, "origin": origin, "destination": destination}
	if json.Valid([]byte(body)) {
		m["content"] = json.RawMessage(body)
	}
	sig, err := key.SignJSON(m)
	if err != nil {
		t.Fatal(err)
	}
	return mautrixfed.XMatrixAuth{Origin: origin, Destination: destination, KeyID: key.ID, Signature: sig}.String()
}

type reply struct {
	status  int
	header  http.Header
	body    string
	errcode string
	text    string
	retry   float64
}

func (w *inWorld) do(k ask) reply {
	w.t.Helper()
	res, err := w.link.Client().Do(k.request(w.t, w.link.URL))
	if err != nil {
		w.t.Fatalf("%+v: %v", k, err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("%+v: %v", k, err)
	}
	r := reply{status: res.StatusCode, header: res.Header, body: string(raw)}
	var e struct {
		Code  string  `json:"errcode"`
		Text  string  `json:"error"`
		Retry float64 `json:"retry_after_ms"`
	}
	if json.Unmarshal(raw, &e) == nil {
		r.errcode, r.text, r.retry = e.Code, e.Text, e.Retry
	}
	return r
}

// wants checks a refusal.
func (r reply) wants(t testing.TB, name string, status int, code, text string) {
	t.Helper()
	if r.status != status || r.errcode != code || !strings.Contains(r.text, text) {
		t.Errorf("%s: %d %s %q, want %d %s %q", name, r.status, r.errcode, r.text, status, code, text)
	}
}

func contextOf(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}
