package matrix

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
)

// A homeserver that has both is given HTTP/1.1, which is faster here.
func TestHTTP1IsPreferred(t *testing.T) {
	s := newSide(t)
	s.publish("b.grid")
	s.links.serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	c := s.client(false)
	c.Transport.(*http.Transport).Protocols.SetHTTP2(true)
	if res := s.do(c, http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil); res.ProtoMajor != 1 || res.StatusCode != http.StatusOK {
		t.Errorf("answer over %s: %s", res.Proto, res.Status)
	}
}

// TestRequestPasses sends what homeservers send, by each way in, and looks at what
// the peer's gateway gets: nothing that was signed may have changed.
func TestRequestPasses(t *testing.T) {
	s := newSide(t)
	type seen struct {
		method, target, server, body string
		header                       http.Header
	}
	got := make(chan seen, 1)
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got <- seen{r.Method, r.Header.Get(headerTarget), r.Header.Get(headerServer), string(raw), r.Header}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Server", "not for you")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, `{"said":"so"}`)
	})
	const target = "/_matrix/federation/v1/event/%24ab%2Fc?a=%7e&b=1+2&a=x%20y"
	for _, h2 := range []bool{false, true} {
		res := s.do(s.client(h2), http.MethodPost, "https://b.grid"+target, strings.NewReader(`{"b": 1 }`),
			"Authorization", `X-Matrix origin="a.grid",key="ed25519:1",sig="x"`, "X-Forwarded-For", "10.0.0.1", "Content-Type", "application/json")
		if res.StatusCode != http.StatusTeapot || res.body != `{"said":"so"}` || (res.ProtoMajor == 2) != h2 {
			t.Errorf("h2 %v: answer %d %s %q", h2, res.ProtoMajor, res.Status, res.body)
		}
		if res.Header.Get("Server") != "" || res.ContentLength != 13 {
			t.Errorf("answer header %v", res.Header)
		}
		is := <-got
		if is.method != http.MethodPost || is.target != target || is.server != "b.grid" || is.body != `{"b": 1 }` {
			t.Errorf("h2 %v: the peer got %+v", h2, is)
		}
		if is.header.Get("X-Forwarded-For") != "" || !strings.HasPrefix(is.header.Get("Authorization"), "X-Matrix origin=") {
			t.Errorf("h2 %v: the peer got the header %v", h2, is.header)
		}
	}
}

func TestWellKnown(t *testing.T) {
	s := newSide(t)
	s.links.down(errors.New("nothing of this is the peer's business"))
	check := func(host, want string) {
		t.Helper()
		res := s.do(s.client(false), http.MethodGet, "https://"+host+"/.well-known/matrix/server", nil)
		if res.StatusCode != http.StatusOK || res.body != `{"m.server":"`+want+`"}` {
			t.Errorf("%s: %s %q, want %s", host, res.Status, res.body, want)
		}
	}
	check("b.grid", "b.grid:443")
	s.publish("b.grid", "b.grid:443", "b.grid:8448", "c.grid:8449")
	check("b.grid:444", "b.grid:444")
	// c.grid:8449 has a port: nothing is to be asked for c.grid itself.
	if res := s.do(s.client(false), http.MethodGet, "https://c.grid:8449/.well-known/matrix/server", nil); res.StatusCode != http.StatusNotFound {
		t.Errorf("c.grid:8449: %s %q", res.Status, res.body)
	}
}

// TestServerNameOfConnection tells a server name with a port from one without.
func TestServerNameOfConnection(t *testing.T) {
	s := newSide(t)
	s.publish("b.grid", "b.grid:8449")
	s.links.serve(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get(headerServer)) })
	for host, want := range map[string]string{"b.grid": "b.grid", "b.grid:8448": "b.grid", "b.grid:8449": "b.grid:8449"} {
		if res := s.do(s.client(true), http.MethodGet, "https://"+host+"/_matrix/key/v2/server", nil); res.body != want {
			t.Errorf("%s: for %q, want %q", host, res.body, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	down := func(err error) func(*side) { return func(s *side) { s.links.down(err) } }
	policy := func(change func(*federation.Peer)) func(*side) {
		return func(s *side) { change(&s.bob); s.publish("b.grid") }
	}
	far := func(status int, header ...string) func(*side) {
		return func(s *side) {
			s.links.serve(func(w http.ResponseWriter, r *http.Request) {
				for i := 0; i < len(header); i += 2 {
					w.Header().Set(header[i], header[i+1])
				}
				w.WriteHeader(status)
				io.WriteString(w, "no gzip at all")
			})
		}
	}
	const version = "/_matrix/federation/v1/version"
	for name, c := range map[string]struct {
		prepare      func(*side)
		method, path string
		header       []string
		body         string
		status       int
		code, text   string
	}{
		"peer down":        {prepare: down(fmt.Errorf("x: %w", federation.ErrPeerDown)), status: 504, code: "M_UNKNOWN", text: "bob"},
		"link busy":        {prepare: down(fmt.Errorf("x: %w", link.ErrBusy)), status: 429, code: "M_LIMIT_EXCEEDED", text: "bob"},
		"header too large": {prepare: down(fmt.Errorf("x: %w", link.ErrHeaderTooLarge)), status: 431, code: "M_TOO_LARGE"},
		"link fault":       {prepare: down(errors.New("stream reset")), status: 502, code: "M_UNKNOWN", text: "bob"},
		"peer paused":      {prepare: policy(func(p *federation.Peer) { p.State = federation.StatePaused }), status: 504, code: "M_UNKNOWN", text: "paused"},
		"not allowed":      {prepare: policy(func(p *federation.Peer) { p.Policy.Allow = nil }), status: 403, code: "M_FORBIDDEN", text: "bob"},
		"server denied": {prepare: policy(func(p *federation.Peer) {
			p.Policy.Matrix.DenyServers = map[string]bool{"b.grid": true}
		}), status: 403, code: "M_FORBIDDEN", text: "b.grid"},
		"room denied": {prepare: policy(func(p *federation.Peer) {
			p.Policy.Matrix.DenyRooms = map[string]bool{"!x:b.grid": true}
		}), path: "/_matrix/federation/v1/make_join/%21x%3Ab.grid/%40u%3Aa.grid", status: 403, code: "M_FORBIDDEN", text: "room"},
		"client API":      {path: "/_matrix/client/v3/sync", status: 404, code: "M_UNRECOGNIZED"},
		"admin API":       {path: "/_synapse/admin/v1/rooms", status: 404, code: "M_UNRECOGNIZED"},
		"dot segments":    {path: "/_matrix/federation/v1/../../client/v3/sync", status: 404, code: "M_UNRECOGNIZED"},
		"method":          {method: "DELETE", status: 405, code: "M_UNRECOGNIZED"},
		"other host":      {header: []string{"Host", "c.grid"}, status: 421, code: "M_UNKNOWN", text: "b.grid"},
		"encoded body":    {method: "PUT", path: "/_matrix/federation/v1/send/1", header: []string{"Content-Encoding", "gzip"}, body: "x", status: 415, code: "M_UNKNOWN"},
		"body too large":  {method: "PUT", path: "/_matrix/federation/v1/send/1", body: strings.Repeat("x", 1<<20+1), status: 413, code: "M_TOO_LARGE", text: "1048576"},
		"redirect":        {prepare: far(302, "Location", "https://evil.example/"), status: 502, code: "M_UNKNOWN", text: "302"},
		"false gzip":      {prepare: far(200, "Content-Encoding", "gzip"), status: 502, code: "M_UNKNOWN", text: "gzip"},
		"unasked coding":  {prepare: far(200, "Content-Encoding", "br"), status: 502, code: "M_UNKNOWN", text: "br"},
		"claim went away": {prepare: func(s *side) { s.publish() }, status: 403, code: "M_FORBIDDEN", text: "b.grid"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSide(t, func(c *Config) { c.MaxBody = 1 << 20 })
			client := s.client(false)
			if res := s.do(client, http.MethodGet, "https://b.grid"+version, nil); res.StatusCode != http.StatusOK {
				t.Fatalf("before: %s", res.Status) // and the connection is there
			}
			if c.prepare != nil {
				c.prepare(s)
			}
			if c.path == "" {
				c.path = version
			}
			req, err := http.NewRequestWithContext(t.Context(), c.method, "https://b.grid"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
				if c.header[i] == "Host" {
					req.Host = c.header[i+1]
				}
			}
			res, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			var e struct{ Errcode, Error string }
			if err := json.NewDecoder(res.Body).Decode(&e); err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != c.status || e.Errcode != c.code || !strings.Contains(e.Error, c.text) || e.Error == "" {
				t.Errorf("got %s %+v, want %d %s with %q", res.Status, e, c.status, c.code, c.text)
			}
			if res.Header.Get("Location") != "" || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("got the header %v", res.Header)
			}
			if c.status == http.StatusTooManyRequests && res.Header.Get("Retry-After") != "1" {
				t.Errorf("got the header %v", res.Header)
			}
		})
	}
}

// TestBodyOverLimitWithoutLength is a body that says nothing of its length.
func TestBodyOverLimitWithoutLength(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := newSide(t, func(c *Config) { c.MaxBody = 1 << 20 })
		s.links.serve(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		res := s.do(s.client(h2), http.MethodPut, "https://b.grid/_matrix/federation/v1/send/1", io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20+1))))
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("h2 %v: %s %s", h2, res.Status, res.body)
		}
	}
}

// TestAnswerToOneWhoIsWriting is a homeserver that looks for the answer when all of the
// body is out.
func TestAnswerToOneWhoIsWriting(t *testing.T) {
	const size = 24 << 20
	for name, c := range map[string]struct {
		header string
		write  func(io.Writer) error
	}{
		"known length": {fmt.Sprint("Content-Length: ", size), func(w io.Writer) error {
			_, err := w.Write(make([]byte, size))
			return err
		}},
		"chunks": {"Transfer-Encoding: chunked", func(w io.Writer) error {
			chunks := httputil.NewChunkedWriter(w)
			_, err := chunks.Write(make([]byte, size))
			_, last := io.WriteString(w, "0\r\n\r\n")
			return errors.Join(err, last)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSide(t, func(c *Config) { c.MaxBody = 1 << 20 })
			s.a.out.linger = patience // not of this machine's speed
			s.links.serve(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
			conn, err := tls.Dial("tcp", s.direct, &tls.Config{ServerName: "b.grid", RootCAs: s.ca.Roots()})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, "PUT /_matrix/federation/v1/send/1 HTTP/1.1\r\nHost: b.grid\r\n"+c.header+"\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if err := c.write(conn); err != nil {
				t.Errorf("write the body: %v", err)
			}
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != http.StatusRequestEntityTooLarge || res.ContentLength != int64(len(body)) {
				t.Errorf("answered %s: %s, %v, of length %d", res.Status, body, err, res.ContentLength)
			}
		})
	}
}

func TestGzipOnTheLink(t *testing.T) {
	s := newSide(t)
	random := make([]byte, 100<<10)
	for i := range random {
		random[i] = "0123456789abcdef"[rand.IntN(16)]
	}
	large := `{"x":"` + string(random) + `"}`
	wire := make(chan int, 1)
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		wire <- len(raw)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(bytes.NewReader(raw))
			if err != nil {
				t.Error(err)
				return
			}
			if raw, err = io.ReadAll(z); err != nil {
				t.Error(err)
			}
		}
		if r.Header.Get("Accept-Encoding") != "gzip" {
			t.Errorf("answers may not be compressed: %v", r.Header)
		}
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "application/json")
		z := gzip.NewWriter(w)
		z.Write(raw)
		z.Close()
	})
	put := func(kind, body string) int {
		t.Helper()
		res := s.do(s.client(true), http.MethodPut, "https://b.grid/_matrix/federation/v1/send/1", strings.NewReader(body), "Content-Type", kind)
		if res.StatusCode != http.StatusOK || res.body != body || res.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s of %d bytes: got %s %v and %d bytes", kind, len(body), res.Status, res.Header, len(res.body))
		}
		return <-wire
	}
	if n := put("application/json", large); n > len(large)*3/4 {
		t.Errorf("%d bytes on the link for %d", n, len(large))
	}
	if n := put("application/json", `{"small":1}`); n != len(`{"small":1}`) {
		t.Errorf("%d bytes on the link for a small body", n)
	}
	if n := put("image/png", large); n != len(large) {
		t.Errorf("%d bytes on the link for what is no JSON", n)
	}
}

// TestUnzippedIsBounded has a peer answer with more than may come out.
func TestUnzippedIsBounded(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	if _, err := z.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]error{1 << 20: nil, 1<<20 - 1: errUnzipped} {
		r, err := newGunzip(bytes.NewReader(bomb.Bytes()), limit)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, r); !errors.Is(err, want) || n > limit {
			t.Errorf("limit %d: %d bytes, %v", limit, n, err)
		}
		res := &http.Response{Header: http.Header{"Content-Encoding": {"gzip"}}, Body: io.NopCloser(bytes.NewReader(bomb.Bytes()))}
		if raw, err := readAnswer(res, limit); !errors.Is(err, want) || int64(len(raw)) > limit+1 {
			t.Errorf("limit %d: %d bytes, %v", limit, len(raw), err)
		}
	}
}

// TestAnswerBreaksOff checks that half an answer does not look like a whole one.
func TestAnswerBreaksOff(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := newSide(t)
		s.links.serve(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "half of it")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		res, err := s.client(h2).Get("https://b.grid/_matrix/federation/v1/version")
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("h2 %v: got %q as if it were all", h2, raw)
		}
		res.Body.Close()
	}
}

// TestStreams checks that both bodies pass piece by piece.
func TestStreams(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := newSide(t)
		s.links.serve(func(w http.ResponseWriter, r *http.Request) {
			one := make([]byte, 1)
			for {
				if _, err := io.ReadFull(r.Body, one); err != nil {
					return
				}
				w.Write(one)
				http.NewResponseController(w).Flush()
			}
		})
		up, write := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://b.grid/_matrix/federation/v1/send/1", up)
		if err != nil {
			t.Fatal(err)
		}
		go func() { write.Write([]byte("a")) }()
		res, err := s.client(h2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		one := make([]byte, 1)
		for _, c := range []byte("abc") {
			if c != 'a' {
				write.Write([]byte{c})
			}
			if _, err := io.ReadFull(res.Body, one); err != nil || one[0] != c {
				t.Errorf("h2 %v: got %q, %v, want %q", h2, one, err, c)
			}
		}
		write.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 0 {
			t.Errorf("h2 %v: at the end %q, %v", h2, rest, err)
		}
		res.Body.Close()
	}
}

// TestCancelReachesThePeer checks that who does not wait any longer is not worked for.
func TestCancelReachesThePeer(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		s := newSide(t)
		begun, ended := make(chan struct{}), make(chan struct{})
		s.links.serve(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			close(ended)
		})
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil)
		if err != nil {
			t.Fatal(err)
		}
		failed := make(chan error, 1)
		go func() { _, err := s.client(h2).Do(req); failed <- err }()
		<-begun
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("h2 %v: %v", h2, err)
		}
		select {
		case <-ended:
		case <-time.After(patience):
			t.Errorf("h2 %v: the peer still works", h2)
		}
	}
}

// TestBodyDeadlines: what bounds the wait for a body must neither end the wait for
// the answer nor the next request on the connection.
func TestBodyDeadlines(t *testing.T) {
	d := &deadlines{}
	body := &requestBody{Reader: strings.NewReader("x"), left: 1, ctl: http.NewResponseController(d)}
	if _, err := io.ReadAll(body); err != nil {
		t.Fatal(err)
	}
	if len(d.set) < 2 || d.set[0].IsZero() || !d.set[len(d.set)-1].IsZero() {
		t.Errorf("deadlines %v: want some, and none when the body has ended", d.set)
	}
	body.end()
	before := len(d.set)
	if _, err := body.Read(make([]byte, 1)); !errors.Is(err, http.ErrBodyReadAfterClose) || len(d.set) != before {
		t.Errorf("a read after the request: %v, and deadlines of the next one: %v", err, d.set[before:])
	}
}

// deadlines is a connection that remembers what was set.
type deadlines struct {
	http.ResponseWriter
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error { d.set = append(d.set, t); return nil }

func TestHeadAndExpect(t *testing.T) {
	s := newSide(t)
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		if v := r.Header.Get("Expect") + r.Header.Get("Trailer"); v != "" || len(r.Trailer) > 0 {
			t.Errorf("on the link: %q %v", v, r.Trailer)
		}
		fmt.Fprintf(w, "%05d", len(raw))
	})
	for _, h2 := range []bool{false, true} {
		c := s.client(h2)
		if res := s.do(c, http.MethodHead, "https://b.grid/_matrix/federation/v1/version", nil); res.StatusCode != http.StatusMethodNotAllowed || res.body != "" {
			t.Errorf("HEAD: %s %q", res.Status, res.body)
		}
		if res := s.do(c, http.MethodPut, "https://b.grid/_matrix/federation/v1/send/1", strings.NewReader("1234"), "Expect", "100-continue"); res.body != "00004" {
			t.Errorf("Expect: %s %q", res.Status, res.body)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://b.grid/_matrix/federation/v1/send/1", io.MultiReader(strings.NewReader("123")))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Trick": {"1"}}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(res.Body); string(raw) != "00003" || err != nil {
			t.Errorf("trailer: %q %v", raw, err)
		}
		res.Body.Close()
	}
}

// TestLargeAnswerTakesNoMemory has 100 MB pass, which are nowhere kept.
func TestLargeAnswerTakesNoMemory(t *testing.T) {
	const size = 100 << 20
	s := newSide(t)
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "image/png")
		io.Copy(w, io.LimitReader(zeros{}, size))
	})
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	c := s.client(true)
	c.Timeout = 0
	res, err := c.Get("https://b.grid/_matrix/federation/v1/media/download/x")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var peak uint64
	var n int64
	for buf := make([]byte, 4<<20); ; {
		m, err := io.ReadFull(res.Body, buf)
		n += int64(m)
		runtime.ReadMemStats(&now)
		peak = max(peak, now.HeapInuse)
		if err != nil {
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatal(err)
			}
			break
		}
	}
	grown := int64(peak) - int64(before.HeapInuse)
	t.Logf("heap grew by %d MiB at most", grown>>20)
	if n != size || grown > 40<<20 {
		t.Errorf("%d bytes came, heap grew by %d", n, grown)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
