package matrix

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

const sendTarget = "/_matrix/federation/v1/send/1700000000%2B1"

// TestPeerRequestPasses: what the homeserver gets is what was signed, byte for byte.
func TestPeerRequestPasses(t *testing.T) {
	w := newInWorld(t)
	w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("X-Internal", "secret")
		rw.Header().Set("Set-Cookie", "a=b")
		rw.WriteHeader(http.StatusTeapot)
		io.WriteString(rw, `{"errcode":"M_TEAPOT"}`)
	})
	body := `{ "pdus": [ {"b":1, "a":"é\u00e9\/<&>\ud83d\ude00"} ],	"origin":"a.grid"}`
	header := http.Header{"User-Agent": {"Synapse/1"}, "Cookie": {"x=y"}, "X-Forwarded-For": {"1.2.3.4"}, "Range": {"bytes=0-"}}
	r := w.do(ask{method: "PUT", target: sendTarget + "?a=%7e&&b", body: body, header: header, server: "b.grid:8448"})
	if r.status != http.StatusTeapot || r.body != `{"errcode":"M_TEAPOT"}` || r.header.Get("X-Internal") != "" || r.header.Get("Set-Cookie") != "" {
		t.Errorf("answer %+v", r)
	}
	seen := w.home.requests()
	if len(seen) != 1 {
		t.Fatalf("%d requests", len(seen))
	}
	s := seen[0]
	if s.method != "PUT" || s.uri != sendTarget+"?a=%7e&&b" || s.host != "b.grid:8448" || s.body != body {
		t.Errorf("the homeserver got %+v", s)
	}
	for name, want := range map[string]string{
		"User-Agent": "Synapse/1", "Cookie": "", "X-Forwarded-For": "", "Range": "bytes=0-", "Content-Type": "application/json", "Accept-Encoding": "",
		headerServer: "", headerTarget: "", "Content-Length": strconv.Itoa(len(body)),
	} {
		if got := s.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !strings.HasPrefix(s.header.Get("Authorization"), `X-Matrix origin="a.grid",destination="b.grid:8448"`) {
		t.Errorf("Authorization %q", s.header.Get("Authorization"))
	}
	if n := w.keys.count("a.grid"); n != 1 {
		t.Errorf("%d fetches of keys", n)
	}
}

func TestRequestsWithoutProofPass(t *testing.T) {
	w := newInWorld(t)
	none := func(string) []string { return nil }
	for _, k := range []ask{
		{target: "/_matrix/federation/v1/version"},
		{target: "/_matrix/federation/v1/openid/userinfo?access_token=x"},
		{target: "/_matrix/key/v2/server"},
		{target: "/_matrix/key/v2/query/b.grid"},
		{method: "POST", target: "/_matrix/key/v2/query", body: `{"server_keys":{"b.grid":{}}}`},
		{target: "/_matrix/media/v3/download/b.grid:8448/x"},
	} {
		k.auth = none
		if r := w.do(k); r.status != 200 {
			t.Errorf("%s: %+v", k.target, r)
		}
	}
	if len(w.home.requests()) != 6 || w.keys.count("a.grid") != 0 {
		t.Errorf("%d requests, %d fetches", len(w.home.requests()), w.keys.count("a.grid"))
	}
	for _, s := range w.home.requests() {
		if got := s.header.Get("Accept-Encoding"); got != "" {
			t.Errorf("Accept-Encoding %q added", got)
		}
	}
	w.do(ask{target: "/_matrix/federation/v1/version", server: "c.grid", auth: none}).wants(t, "for a third grid", 403, "M_FORBIDDEN", "does not relay")
	w.do(ask{target: "/_matrix/federation/v1/version", header: http.Header{"User-Agent": {""}}, auth: none})
	if ua, ok := w.home.requests()[6].header["User-Agent"]; ok {
		t.Errorf("User-Agent %q added", ua)
	}
}

func TestPeerRefusals(t *testing.T) {
	w := newInWorld(t, func(c *Config) { c.MaxBody = 1 << 10 })
	body := func(n int) string { return `{"a":"` + strings.Repeat("x", n-8) + `"}` }
	other := `{"b":1}`
	one := func(s string) func(string) []string { return func(string) []string { return []string{s} } }
	edit := func(old, new string) func(string) []string {
		return func(h string) []string { return []string{strings.Replace(h, old, new, 1)} }
	}
	put := func(k ask) ask { k.method, k.target = "PUT", sendTarget; return k }
	notary := func(body string) ask {
		return ask{method: "POST", target: "/_matrix/key/v2/query", body: body}
	}
	for name, c := range map[string]struct {
		ask
		status int
		code   string
		text   string
	}{
		"signature by another key":    {ask{key: carolKey}, 401, "M_UNAUTHORIZED", "has no key"},
		"bad signature":               {ask{auth: edit(`sig="`, `sig="AA`)}, 401, "M_UNAUTHORIZED", "the signature of a.grid is wrong"},
		"signature of another body":   {put(ask{body: `{"a":1}`, signedBody: &other}), 401, "M_UNAUTHORIZED", "signature of a.grid is wrong"},
		"signature of another target": {ask{signedTarget: sendTarget}, 401, "M_UNAUTHORIZED", "signature of a.grid is wrong"},
		"signature of another method": {put(ask{body: `{}`, auth: one(xmatrix(t, aliceKey, "POST", sendTarget, "a.grid", "b.grid", `{}`))}), 401, "M_UNAUTHORIZED", "signature of a.grid is wrong"},
		"signature for another":       {ask{auth: one(strings.ReplaceAll(xmatrix(t, aliceKey, "GET", sendTarget, "a.grid", "c.grid", ""), "c.grid", "b.grid"))}, 401, "M_UNAUTHORIZED", "signature of a.grid is wrong"},
		"no header":                   {ask{auth: func(string) []string { return nil }}, 401, "M_UNAUTHORIZED", "no Authorization"},
		"two headers":                 {ask{auth: func(h string) []string { return []string{h, h} }}, 401, "M_UNAUTHORIZED", "more than one"},
		"a token":                     {ask{auth: one("Bearer secret")}, 401, "M_UNAUTHORIZED", "not X-Matrix"},
		"unknown origin":              {ask{origin: "x.grid"}, 403, "M_FORBIDDEN", "not one that your grid holds"},
		"an origin of another peer":   {ask{origin: "c.grid", key: carolKey}, 403, "M_FORBIDDEN", "not one that your grid holds"},
		"the same by its holder":      {ask{origin: "c.grid", key: carolKey, peer: "carol"}, 200, "", ""},
		"our own origin":              {ask{origin: "b.grid"}, 403, "M_FORBIDDEN", "not one that your grid holds"},
		"an origin with a port":       {ask{origin: "a.grid:1"}, 403, "M_FORBIDDEN", "not one that your grid holds"},
		"an origin in capitals":       {ask{origin: "A.grid"}, 403, "M_FORBIDDEN", "lower case"},
		"an origin that is none":      {ask{origin: "127.0.0.1"}, 403, "M_FORBIDDEN", "no server name"},
		"another destination":         {ask{destination: "b.grid:8448"}, 401, "M_UNAUTHORIZED", `destination in X-Matrix is "b.grid:8448"`},
		"a destination twice":         {ask{auth: func(h string) []string { return []string{h + `,destination="b.grid"`} }}, 401, "M_UNAUTHORIZED", "twice"},
		"a third grid's name":         {ask{server: "c.grid"}, 403, "M_FORBIDDEN", "does not relay"},
		"an unknown name":             {ask{server: "x.grid"}, 403, "M_FORBIDDEN", "does not relay"},
		"a name and port":             {ask{server: "b.grid:1"}, 403, "M_FORBIDDEN", "does not relay"},
		"an address":                  {ask{server: "127.0.0.1:22"}, 403, "M_FORBIDDEN", "does not relay"},
		"media of a third grid":       {ask{target: "/_matrix/media/v3/download/c.grid/x"}, 403, "M_FORBIDDEN", "does not relay"},
		"keys of a third grid":        {ask{target: "/_matrix/key/v2/query/c.grid"}, 403, "M_FORBIDDEN", "does not relay"},
		"the same by POST":            {notary(`{"server_keys":{"b.grid":{},"c.grid":{}}}`), 403, "M_FORBIDDEN", "no notary"},
		"in another spelling":         {notary(`{"Server_Keys":{"c.grid":{}}}`), 403, "M_FORBIDDEN", "no notary"},
		"a query that is none":        {notary(`{"server_keys":[]}`), 400, "M_BAD_JSON", "query for keys"},
		"a query that is no JSON":     {notary(`{`), 400, "M_NOT_JSON", "no JSON"},
		"a body of most bytes":        {put(ask{body: body(1 << 10)}), 200, "", ""},
		"a byte more":                 {put(ask{body: body(1<<10 + 1)}), 413, "M_TOO_LARGE", "1024 bytes"},
		"of unknown length, most":     {put(ask{body: body(1 << 10), reader: struct{ io.Reader }{strings.NewReader(body(1 << 10))}, length: -1}), 200, "", ""},
		"of unknown length, more":     {put(ask{body: body(1<<10 + 1), reader: struct{ io.Reader }{strings.NewReader(body(1<<10 + 1))}, length: -1}), 413, "M_TOO_LARGE", "1024 bytes"},
		"of unknown length, no end":   {put(ask{body: "{}", reader: endless{}, length: -1}), 413, "M_TOO_LARGE", "1024 bytes"},
		"compressed, most":            {zipped(put(ask{body: body(1 << 10)})), 200, "", ""},
		"compressed, more":            {zipped(put(ask{body: body(1<<10 + 1)})), 413, "M_TOO_LARGE", "1024 bytes"},
		"a compression bomb":          {zipped(put(ask{body: body(32 << 20), signedBody: &other})), 413, "M_TOO_LARGE", "1024 bytes"},
		"compressed, cut short":       {cut(zipped(put(ask{body: body(500)}))), 400, "M_NOT_JSON", "cannot be read"},
		"another compression":         {put(ask{body: "{}", header: http.Header{"Content-Encoding": {"br"}}}), 415, "M_UNKNOWN", `"br"`},
		"a depth bomb":                {put(ask{body: nested("[", "", "]", 65)}), 400, "M_BAD_JSON", "nested"},
		"a depth bomb without proof":  {notary(nested(`{"a":`, "1", "}", 65)), 400, "M_BAD_JSON", "nested"},
		"half a surrogate pair":       {put(ask{body: `{"a":"\ud83d"}`}), 400, "M_BAD_JSON", "surrogate"},
		"no JSON":                     {put(ask{body: `{"a"`}), 400, "M_NOT_JSON", "no JSON"},
		"GET with a body":             {ask{body: "{}"}, 400, "M_BAD_JSON", "has no body"},
		"DELETE":                      {ask{method: "DELETE"}, 405, "M_UNRECOGNIZED", "method"},
		"client API":                  {ask{target: "/_matrix/client/v3/login"}, 404, "M_UNRECOGNIZED", "only the federation"},
		"admin API":                   {ask{target: "/_synapse/admin/v1/users"}, 404, "M_UNRECOGNIZED", "only the federation"},
		"path trick":                  {ask{target: "/_matrix/federation/../client/v3/login"}, 404, "M_UNRECOGNIZED", "dot segment"},
		"encoded slash":               {ask{target: "/_matrix/federation/v1/..%2f..%2fclient"}, 404, "M_UNRECOGNIZED", "encoded slash"},
		"absolute form":               {ask{target: "http://127.0.0.1:22/_matrix/federation/v1/version"}, 404, "M_UNRECOGNIZED", "no absolute path"},
	} {
		before := len(w.home.requests())
		r := w.do(c.ask)
		r.wants(t, name, c.status, c.code, c.text)
		if passed := len(w.home.requests()) > before; passed != (c.status == 200) {
			t.Errorf("%s: reached the homeserver: %v", name, passed)
		}
	}
	if n := w.keys.count("c.grid"); n != 1 { // by its holder
		t.Errorf("keys of c.grid were fetched %d times", n)
	}
	for _, peer := range w.keys.asked {
		if peer != w.alice.ID && peer != w.carol.ID {
			t.Errorf("keys were asked of %s", peer)
		}
	}
}

// endless is JSON that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func gzipped(s string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, s)
	z.Close()
	return b.Bytes()
}

func zipped(k ask) ask {
	k.reader, k.length = bytes.NewReader(gzipped(k.body)), -1
	k.header = http.Header{"Content-Encoding": {"gzip"}}
	return k
}

func cut(k ask) ask {
	raw, _ := io.ReadAll(k.reader)
	k.reader = bytes.NewReader(raw[:len(raw)-5])
	return k
}

func TestHeadersBetweenGateways(t *testing.T) {
	w := newInWorld(t)
	for name, change := range map[string]func(http.Header){
		"no target":   func(h http.Header) { h.Del(headerTarget) },
		"two targets": func(h http.Header) { h.Add(headerTarget, sendTarget) },
		"no server":   func(h http.Header) { h.Del(headerServer) },
		"two servers": func(h http.Header) { h.Add(headerServer, "c.grid") },
	} {
		req := ask{}.request(t, w.link.URL)
		change(req.Header)
		res, err := w.link.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound || len(w.home.requests()) > 0 {
			t.Errorf("%s: %d", name, res.StatusCode)
		}
	}
}

func TestPeerThatMayNot(t *testing.T) {
	deny := func(names ...string) map[string]bool {
		m := map[string]bool{}
		for _, n := range names {
			m[n] = true
		}
		return m
	}
	for name, c := range map[string]struct {
		change func(*federation.Peer)
		text   string
	}{
		"paused":           {func(p *federation.Peer) { p.State = federation.StatePaused }, "does not take Matrix"},
		"without Matrix":   {func(p *federation.Peer) { p.Policy.Allow = nil }, "does not take Matrix"},
		"its server":       {func(p *federation.Peer) { p.Policy.Matrix.DenyServers = deny("a.grid") }, "does not let a.grid"},
		"only another":     {func(p *federation.Peer) { p.Policy.Matrix.Servers = deny("a2.grid") }, "does not let a.grid"},
		"not that other":   {func(p *federation.Peer) { p.Policy.Matrix.DenyServers = deny("a2.grid") }, ""},
		"that one, listed": {func(p *federation.Peer) { p.Policy.Matrix.Servers = deny("a.grid") }, ""},
	} {
		w := newInWorld(t)
		w.change(c.change)
		r := w.do(ask{})
		if c.text == "" {
			if r.status != 200 {
				t.Errorf("%s: %+v", name, r)
			}
			continue
		}
		r.wants(t, name, 403, "M_FORBIDDEN", c.text)
		if w.keys.count("a.grid") != 0 || len(w.home.requests()) != 0 {
			t.Errorf("%s: keys or the homeserver were asked", name)
		}
	}
	w := newInWorld(t)
	w.change(func(p *federation.Peer) { p.State = federation.StatePaused })
	w.do(ask{target: "/_matrix/key/v2/server"}).wants(t, "paused, without proof", 403, "M_FORBIDDEN", "does not take Matrix")
	w.dir.Publish(federation.NewSnapshot(nil, nil, map[federation.Protocol][]string{federation.Matrix: {"b.grid"}}))
	w.do(ask{target: "/_matrix/key/v2/server"}).wants(t, "a peer that is gone", 403, "M_FORBIDDEN", "does not take Matrix")
}

func TestDeniedRooms(t *testing.T) {
	w := newInWorld(t)
	w.change(func(p *federation.Peer) { p.Policy.Matrix.DenyRooms = map[string]bool{"!bad:a.grid": true} })
	const bad, good = "!bad:a.grid", "!good:a.grid"
	event := func(room string) string { return `{"event":{"type":"m.room.member","room_id":"` + room + `"}}` }
	for _, c := range []struct {
		ask
		status int
	}{
		{ask{method: "PUT", target: "/_matrix/federation/v2/invite/%21bad%3aa.grid/$e", body: event(bad)}, 403},
		{ask{method: "PUT", target: "/_matrix/federation/v2/invite/" + good + "/$e", body: event(bad)}, 403},
		{ask{method: "PUT", target: "/_matrix/federation/v2/invite/" + good + "/$e", body: `{"event":{"room\u005fid":"!bad:a.grid","room_id":"!x"}}`}, 403},
		{ask{method: "PUT", target: "/_matrix/federation/v2/invite/" + good + "/$e", body: event(good)}, 200},
		{ask{target: "/_matrix/federation/v1/make_join/" + bad + "/@u:a.grid"}, 403},
		{ask{target: "/_matrix/federation/v1/make_join/" + good + "/@u:a.grid"}, 200},
		{ask{method: "PUT", target: "/_matrix/federation/v2/send_join/" + bad + "/$e", body: "{}"}, 403},
		{ask{method: "PUT", target: "/_matrix/federation/v1/send_join/" + good + "/$e", body: `{"room_id":"!bad:a.grid"}`}, 403},
		{ask{target: "/_matrix/federation/v1/make_knock/" + bad + "/@u:a.grid"}, 403},
		{ask{method: "PUT", target: "/_matrix/federation/v1/send_knock/" + bad + "/$e", body: "{}"}, 403},
		{ask{target: "/_matrix/federation/v1/make_leave/" + bad + "/@u:a.grid"}, 200},
		{ask{method: "PUT", target: "/_matrix/federation/v2/send_leave/" + bad + "/$e", body: event(bad)}, 200},
		{ask{method: "PUT", target: sendTarget, body: event(bad)}, 200}, // what is signed as a whole cannot be thinned out
	} {
		if r := w.do(c.ask); r.status != c.status || (c.status == 403) != (r.errcode == "M_FORBIDDEN") {
			t.Errorf("%s %s: %+v, want %d", c.target, c.body, r, c.status)
		}
	}
}

func TestRedirectsDoNotPass(t *testing.T) {
	w := newInWorld(t)
	for _, status := range []int{301, 302, 303, 307, 308, 300} {
		w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Location", "http://127.0.0.1:1/secret")
			rw.WriteHeader(status)
		})
		r := w.do(ask{})
		r.wants(t, strconv.Itoa(status), 502, "M_UNKNOWN", "answers "+strconv.Itoa(status))
		if r.header.Get("Location") != "" {
			t.Errorf("Location %q", r.header.Get("Location"))
		}
	}
	w.home.answers(func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(http.StatusNotModified) })
	if r := w.do(ask{target: "/_matrix/media/v3/download/b.grid/x"}); r.status != http.StatusNotModified {
		t.Errorf("304: %+v", r)
	}
}

func TestHomeserverDown(t *testing.T) {
	w := newInWorld(t)
	w.home.Close()
	w.do(ask{}).wants(t, "down", 502, "M_UNKNOWN", "the homeserver of b.grid cannot be reached")
}

func TestProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	if os.Getenv("HTTP_PROXY") != "" {
		t.Fatal("HTTP_PROXY is set: net/http reads it once")
	}
	w := newInWorld(t)
	if w.a.in.server.Proxy != nil {
		t.Error("the way to the homeserver has a proxy")
	}
}

func TestHomeserverThatDoesNotAnswer(t *testing.T) {
	w := newInWorld(t)
	w.a.in.server.ResponseHeaderTimeout = 50 * time.Millisecond
	stop := make(chan struct{})
	w.home.answers(func(http.ResponseWriter, *http.Request) { <-stop })
	defer close(stop)
	w.do(ask{}).wants(t, "silent", 504, "M_UNKNOWN", "the homeserver of b.grid does not answer in time")
}

// TestAnswerThatBreaksOff: the peer sees that the rest is missing.
func TestAnswerThatBreaksOff(t *testing.T) {
	for _, encoding := range []string{"", "gzip"} {
		w := newInWorld(t)
		w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", "application/json")
			io.WriteString(rw, strings.Repeat("x", 10<<10))
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		w.home.Config.ErrorLog = w.link.Config.ErrorLog
		res, err := w.link.Client().Do(ask{header: http.Header{"Accept-Encoding": {encoding}}}.request(t, w.link.URL))
		if err != nil {
			continue // nothing of it had arrived
		}
		if _, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%q: the answer looks complete", encoding)
		}
		res.Body.Close()
	}
}

func TestHomeserverAnswersCompressed(t *testing.T) {
	w := newInWorld(t)
	large, small := `{"a":"`+strings.Repeat("x", gzipFrom)+`"}`, `{"a":"`+strings.Repeat("x", gzipFrom-9)+`"}`
	for name, c := range map[string]struct {
		accept, kind, body string
		length             bool
		zipped             bool
	}{
		"large":                     {"gzip", "application/json", large, true, true},
		"of unknown length":         {"br, gzip", "application/json; charset=utf-8", large, false, true},
		"small":                     {"gzip", "application/json", small, true, false},
		"small, of unknown length":  {"gzip", "application/json", small, false, false},
		"not asked for":             {"", "application/json", large, true, false},
		"media":                     {"gzip", "image/png", large, true, false},
		"media, of unknown length":  {"gzip", "", large, false, false},
		"empty, of unknown length ": {"gzip", "application/json", "", false, false},
	} {
		w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header()["Content-Type"] = []string{c.kind}
			if c.length {
				rw.Header().Set("Content-Length", strconv.Itoa(len(c.body)))
			}
			rw.WriteHeader(200)
			rw.(http.Flusher).Flush()
			io.WriteString(rw, c.body)
		})
		h := http.Header{}
		if c.accept != "" {
			h.Set("Accept-Encoding", c.accept)
		}
		r := w.do(ask{header: h})
		if got := r.header.Get("Content-Encoding") == "gzip"; got != c.zipped {
			t.Errorf("%s: compressed %v", name, got)
		}
		if c.zipped {
			z, err := gzip.NewReader(strings.NewReader(r.body))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(z)
			if err != nil {
				t.Fatal(err)
			}
			r.body = string(raw)
		} else if c.length && r.header.Get("Content-Length") != strconv.Itoa(len(c.body)) {
			t.Errorf("%s: Content-Length %q", name, r.header.Get("Content-Length"))
		}
		if r.body != c.body {
			t.Errorf("%s: %d bytes, want %d", name, len(r.body), len(c.body))
		}
	}
}

// TestHomeserverAnswersStream: what the homeserver has said is there before it says more.
func TestHomeserverAnswersStream(t *testing.T) {
	w := newInWorld(t)
	more := make(chan struct{})
	w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "image/png")
		io.WriteString(rw, "first")
		rw.(http.Flusher).Flush()
		<-more
		io.WriteString(rw, "second")
	})
	res, err := w.link.Client().Do(ask{}.request(t, w.link.URL))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var first [5]byte
	if _, err := io.ReadFull(res.Body, first[:]); err != nil || string(first[:]) != "first" {
		t.Fatalf("%q, %v", first, err)
	}
	close(more)
	if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "second" {
		t.Fatalf("%q, %v", rest, err)
	}
}

// TestPeerCancelReachesTheHomeserver: who gives up has the homeserver know.
func TestPeerCancelReachesTheHomeserver(t *testing.T) {
	w := newInWorld(t)
	begun, ended := make(chan struct{}), make(chan struct{})
	w.home.answers(func(rw http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
		close(ended)
	})
	r := ask{}.request(t, w.link.URL)
	ctx, cancel := contextOf(t)
	go func() {
		<-begun
		cancel()
	}()
	if res, err := w.link.Client().Do(r.WithContext(ctx)); err == nil {
		res.Body.Close()
		t.Fatal("answered")
	}
	<-ended
}
