//go:build integration

package gateway_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	mautrixfed "maunium.net/go/mautrix/federation"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/matrix"
	"github.com/yggate/yggate/gateway/config"
)

// matrixMallory is mallory as the gateway of a homeserver, m.grid.test, of which only
// the signing key is there.
type matrixMallory struct {
	*mallory
	key *mautrixfed.SigningKey

	mu     sync.Mutex
	answer http.HandlerFunc // for what is not a question for keys
}

func newMatrixMallory(t *testing.T, p *parlour) *matrixMallory {
	t.Helper()
	m := &matrixMallory{key: mautrixfed.GenerateSigningKey()}
	m.mallory = newMallory(t, p.a, filepath.Join(t.TempDir(), "mallory"), federation.Matrix, liveHandler{matrix.Endpoint, m})
	return m
}

// ServeHTTP is the homeserver.
func (m *matrixMallory) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if target := r.Header.Get("Yggate-Target"); !strings.HasPrefix(target, "/_matrix/key/v2/server") {
		m.mu.Lock()
		answer := m.answer
		m.mu.Unlock()
		if answer == nil {
			answer = http.NotFound
		}
		answer(w, r)
		return
	}
	keys := map[string]any{
		"server_name": "m.grid.test", "valid_until_ts": time.Now().Add(time.Hour).UnixMilli(), "old_verify_keys": map[string]any{},
		"verify_keys": map[string]any{string(m.key.ID): map[string]any{"key": m.key.Pub}},
	}
	sig, err := m.key.SignJSON(keys)
	if err != nil {
		panic(err)
	}
	keys["signatures"] = map[string]any{"m.grid.test": map[string]any{string(m.key.ID): sig}}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(keys); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// answers replaces what the homeserver does.
func (m *matrixMallory) answers(h http.HandlerFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = h
}

// forgery is a request of mallory's: what is left out is as it should be.
type forgery struct {
	method, target, server, origin, destination, body string
	auth                                              func(header string) []string
	header                                            http.Header
	reader                                            io.Reader // in place of body
	length                                            int64     // of reader
}

const profile = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aa.grid.test"

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// request makes a signed request.
func (m *matrixMallory) request(t *testing.T, f forgery) *http.Request {
	t.Helper()
	f.method, f.target, f.server = or(f.method, "GET"), or(f.target, profile), or(f.server, "a.grid.test")
	f.origin, f.destination = or(f.origin, "m.grid.test"), or(f.destination, f.server)
	signed := map[string]any{"method": f.method, "uri": f.target, "origin": f.origin, "destination": f.destination}
	if json.Valid([]byte(f.body)) && len(f.body) < 1<<20 {
		signed["content"] = json.RawMessage(f.body)
	}
	sig, err := m.key.SignJSON(signed)
	if err != nil {
		t.Fatal(err)
	}
	auth := []string{mautrixfed.XMatrixAuth{Origin: f.origin, Destination: f.destination, KeyID: m.key.ID, Signature: sig}.String()}
	if f.auth != nil {
		auth = f.auth(auth[0])
	}
	r := &http.Request{
		Method: f.method, URL: &url.URL{Scheme: "https", Host: "peer", Path: matrix.Endpoint}, Header: http.Header{
			"Yggate-Target": {f.target}, "Yggate-Server": {f.server}, "Authorization": auth, "Content-Type": {"application/json"},
		},
	}
	for name, values := range f.header {
		r.Header[name] = values
	}
	switch {
	case f.reader != nil:
		r.Body, r.ContentLength = io.NopCloser(f.reader), f.length
	case f.body != "":
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(f.body)), int64(len(f.body))
	}
	return r
}

// ask sends a request over the link and returns status and errcode.
func (m *matrixMallory) ask(t *testing.T, f forgery) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		res, err := m.links.RoundTrip(ctx, m.grid, m.request(t, f))
		if err == nil {
			return read(t, res)
		}
		if ctx.Err() != nil || f.reader != nil {
			t.Fatal(err)
		}
		wait(ctx, 50*time.Millisecond) // the link comes up
	}
}

// answer is what there is to see of one.
type answer struct {
	status int
	code   string
	header http.Header
	body   string
}

func (a answer) String() string { return strings.TrimSpace(fmt.Sprintf("%d %s", a.status, a.code)) }

func read(t *testing.T, res *http.Response) answer {
	t.Helper()
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	var e struct {
		Code string `json:"errcode"`
	}
	if len(raw) > 0 && res.StatusCode >= 400 {
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Errorf("%s: %.200q is no Matrix error", res.Status, raw)
		}
	}
	return answer{res.StatusCode, e.Code, res.Header, string(raw)}
}

// tricks are request-targets that lead out of what servers may ask, if anything on
// the way understands them in another way.
var tricks = []string{
	"/_matrix/federation/v1/../../client/v3/login",
	"/_matrix/federation/v1/%2e%2e/%2e%2e/client/v3/login",
	"/_matrix/federation/v1/event/..%2f..%2f..%2fclient%2fv3%2flogin",
	"/_matrix/federation/v1/event/%252e%252e%252fclient",
	"/_matrix/federation/v1/event/x%5c..%5cclient",
	"/_matrix/federation%2fv1/version",
	"/_matrix/federation/v1//send/1",
	"//evil.test/_matrix/federation/v1/version",
	"/_matrix/client/v3/login",
	"/_matrix/client/versions",
	"/_matrix/client/v3/directory/room/%23x%3Ab.grid.test",
	"/_matrix/app/v1/transactions/1",
	"/_matrix/media/v3/upload",
	"/_matrix/media/v3/preview_url?url=http%3A%2F%2F127.0.0.1",
	"/_matrix/key/v2/../../client/versions",
	"/_synapse/admin/v1/users",
	"/_dendrite/admin/refreshDevices/x",
	"/.well-known/matrix/client",
	"/metrics",
	"/",
}

// TestMatrixHostilePeer lets an approved peer whose gateway is under an attacker's
// control ask what it should not. Each time it is refused in Matrix's terms, the
// gateway's memory stays bounded, and the neighbours do not notice.
func TestMatrixHostilePeer(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	m := newMatrixMallory(t, p)
	const limit = 16 << 20
	send := func(body string) forgery {
		return forgery{method: "PUT", target: "/_matrix/federation/v1/send/1", body: body}
	}
	attacks := []struct {
		name string
		f    forgery
		want string
	}{
		{"what it may do", forgery{}, "200"},
		{"no proof", forgery{auth: func(string) []string { return nil }}, "401 M_UNAUTHORIZED"},
		{"bad signature", forgery{auth: func(h string) []string {
			return []string{strings.Replace(h, `sig="`, `sig="AAAA`, 1)}
		}}, "401 M_UNAUTHORIZED"},
		{"signature of another request", forgery{auth: func(string) []string {
			return m.request(t, forgery{target: "/_matrix/federation/v1/query/profile?user_id=%40bob"}).Header["Authorization"]
		}}, "401 M_UNAUTHORIZED"},
		{"two proofs", forgery{auth: func(h string) []string { return []string{h, h} }}, "401 M_UNAUTHORIZED"},
		{"unknown origin", forgery{origin: "nobody.grid.test"}, "403 M_FORBIDDEN"},
		{"origin of another peer", forgery{origin: "b.grid.test"}, "403 M_FORBIDDEN"},
		{"origin of the victim", forgery{origin: "a.grid.test"}, "403 M_FORBIDDEN"},
		{"wrong destination", forgery{destination: "b.grid.test"}, "401 M_UNAUTHORIZED"},
		{"a third grid's name", forgery{server: "b.grid.test"}, "403 M_FORBIDDEN"},
		{"nobody's name", forgery{server: "matrix.org"}, "403 M_FORBIDDEN"},
		{"keys of a third grid", forgery{target: "/_matrix/key/v2/query/b.grid.test"}, "403 M_FORBIDDEN"},
		{"media of a third grid", forgery{target: "/_matrix/media/v3/download/b.grid.test/x"}, "403 M_FORBIDDEN"},
		{"a method of nobody's", forgery{method: "DELETE"}, "405 M_UNRECOGNIZED"},
		{"no JSON", send(`{"pdus":`), "400 M_NOT_JSON"},
		{"JSON that is 100,000 deep", send(`{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}"), "400 M_BAD_JSON"},
		{"JSON that is 2,000,000 deep", send(`{"a":` + strings.Repeat("[", 2_000_000) + strings.Repeat("]", 2_000_000) + "}"), "400 M_BAD_JSON"},
		{"half of a character", send(`{"a":"\ud800"}`), "400 M_BAD_JSON"},
		{"one byte over the limit", send(`{"a":"` + strings.Repeat("x", limit-7) + `"}`), "413 M_TOO_LARGE"},
		{"a long proof", forgery{auth: func(h string) []string { return []string{h + `,x="` + strings.Repeat("x", 4000) + `"`} }}, "401 M_UNAUTHORIZED"},
		{"a long target", forgery{target: profile + "&x=" + strings.Repeat("x", 12<<10)}, "413 M_TOO_LARGE"},
		{"an absolute target", forgery{target: "http://127.0.0.1:8008/_matrix/federation/v1/version"}, "404 M_UNRECOGNIZED"},
	}
	for _, target := range tricks {
		attacks = append(attacks, struct {
			name string
			f    forgery
			want string
		}{"target " + target, forgery{target: target}, "404 M_UNRECOGNIZED"})
	}
	bounded(t, p.a.Gateway, func() { p.lively(t) }) // what it takes without an attack
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			bounded(t, p.a.Gateway, func() {
				if got := m.ask(t, a.f); got.String() != a.want {
					t.Errorf("answered %s, want %s: %.300s", got, a.want, got.body)
				}
			})
		})
	}
	p.lively(t)
	t.Run("unending body", func(t *testing.T) { m.unending(t, p, limit) })
	t.Run("zip bomb", func(t *testing.T) { m.zipBomb(t, p) })
	t.Run("header flood", func(t *testing.T) { m.headerFlood(t, p) })
	t.Run("slow senders", func(t *testing.T) { m.slow(t, p) })
	t.Run("answers", func(t *testing.T) { m.answersBadly(t, p) })
	t.Run("flood", func(t *testing.T) { m.flood(t, p) })
}

// unending does not say how long the body is, and goes on over the limit.
func (m *matrixMallory) unending(t *testing.T, p *parlour, limit int64) {
	bounded(t, p.a.Gateway, func() {
		got := m.ask(t, forgery{method: "PUT", target: "/_matrix/federation/v1/send/2", reader: io.LimitReader(letters{}, 4*limit), length: -1})
		if got.String() != "413 M_TOO_LARGE" {
			t.Errorf("answered %s", got)
		}
	})
	p.lively(t)
}

// letters is text without an end.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func (m *matrixMallory) zipBomb(t *testing.T, p *parlour) {
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := io.Copy(z, io.LimitReader(letters{}, 256<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	bounded(t, p.a.Gateway, func() {
		got := m.ask(t, forgery{
			method: "PUT", target: "/_matrix/federation/v1/send/3", reader: &zipped, length: int64(zipped.Len()),
			header: http.Header{"Content-Encoding": {"gzip"}},
		})
		if got.String() != "413 M_TOO_LARGE" {
			t.Errorf("answered %s", got)
		}
	})
	p.lively(t)
}

// headerFlood goes past the own link, which would not send so much.
func (m *matrixMallory) headerFlood(t *testing.T, p *parlour) {
	bounded(t, p.a.Gateway, func() {
		for range 20 {
			cc, _, err := m.links.DialPinned(t.Context(), m.to, m.grid.Key())
			if err != nil {
				t.Fatal(err)
			}
			r := m.request(t, forgery{}).WithContext(t.Context())
			for i := range 200 {
				r.Header.Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 4000))
			}
			res, err := cc.RoundTrip(r)
			if err == nil {
				res.Body.Close()
				if res.StatusCode < 400 {
					t.Errorf("answered %s", res.Status)
				}
			}
			if err := cc.Close(); err != nil {
				t.Log(err)
			}
		}
	})
	p.lively(t)
}

// slow keeps requests open whose bodies do not come. The others' pass meanwhile, and
// in the end each is told.
func (m *matrixMallory) slow(t *testing.T, p *parlour) {
	const requests = 24
	bounded(t, p.a.Gateway, func() {
		never, end := io.Pipe()
		defer end.Close()
		answers := make(chan answer, requests)
		for range requests {
			go func() {
				r := m.request(t, forgery{method: "PUT", target: "/_matrix/federation/v1/send/4", reader: never, length: 1000})
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				res, err := m.links.RoundTrip(ctx, m.grid, r)
				if err != nil {
					answers <- answer{code: err.Error()}
					return
				}
				answers <- read(t, res)
			}()
		}
		p.lively(t)
		for range requests {
			if got := (<-answers).String(); got != "408 M_UNKNOWN" {
				t.Errorf("answered %s", got)
			}
		}
	})
	p.lively(t)
}

// flood asks more than its limits allow.
func (m *matrixMallory) flood(t *testing.T, p *parlour) {
	p.configure(t, p.a, "peers:\n  mallory: {limits: {messages_per_second: 1, burst: 20}}\n")
	bounded(t, p.a.Gateway, func() {
		limited := 0
		for range 100 {
			got := m.ask(t, forgery{origin: "b.grid.test"})
			if got.status == http.StatusForbidden {
				continue
			}
			limited++
			var e struct {
				After int `json:"retry_after_ms"`
			}
			if err := json.Unmarshal([]byte(got.body), &e); err != nil || got.String() != "429 M_LIMIT_EXCEEDED" || e.After < 1 || got.header.Get("Retry-After") == "" {
				t.Fatalf("answered %s %v: %s", got, got.header, got.body)
			}
		}
		if limited == 0 {
			t.Error("100 requests were not too many")
		}
		p.lively(t)
	})
}

// answersBadly has the victim's homeserver ask, and gives it what no server may have.
func (m *matrixMallory) answersBadly(t *testing.T, p *parlour) {
	l := newLocal(t, p.a)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "http://"+p.a.Homeserver.HTTP.String()+"/_matrix/client/versions")
			w.WriteHeader(http.StatusFound)
		}, "502 M_UNKNOWN"},
		"redirect for good": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "https://b.grid.test/_matrix/federation/v1/version")
			w.WriteHeader(http.StatusPermanentRedirect)
		}, "502 M_UNKNOWN"},
		"no gzip": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "hello")
		}, "502 M_UNKNOWN"},
		"unknown encoding": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, "hello")
		}, "502 M_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			m.answers(c.answer)
			bounded(t, p.a.Gateway, func() {
				if got := l.get(t, "m.grid.test", "/_matrix/federation/v1/version"); got.String() != c.want || got.header.Get("Location") != "" {
					t.Errorf("answered %s %v: %s", got, got.header, got.body)
				}
			})
		})
	}
	p.lively(t)
}

// matrixConfig is the section matrix of a gateway's configuration.
func matrixConfig(t *testing.T, file string) *config.Matrix {
	t.Helper()
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return c.Matrix
}
