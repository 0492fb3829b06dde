//go:build integration

package gateway_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// local speaks to a gateway as its homeserver does.
type local struct {
	proxy  string
	roots  *tls.Config
	client *http.Client
}

func newLocal(t *testing.T, g *peertest.Grid) *local {
	t.Helper()
	issued, err := g.Gateway.Setup(t.Context(), "dendrite")
	if err != nil {
		t.Fatal(err)
	}
	l := &local{proxy: matrixConfig(t, g.Gateway.Config).Proxy.String(), roots: &tls.Config{RootCAs: issued.Pool}}
	transport := &http.Transport{
		Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: l.proxy}), TLSClientConfig: l.roots.Clone(), DisableCompression: true,
	}
	t.Cleanup(transport.CloseIdleConnections)
	l.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return l
}

// get asks a server what any server may ask.
func (l *local) get(t *testing.T, server, target string) answer {
	t.Helper()
	return l.do(t, "GET", server, target, nil, 0, nil)
}

func (l *local) do(t *testing.T, method, server, target string, body io.Reader, length int64, header http.Header) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "https://"+server, body)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque = target // is written as it stands
	for name, values := range header {
		r.Header[name] = values
	}
	if body != nil {
		r.ContentLength = length
	}
	res, err := l.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, res)
}

// dial opens a connection to the proxy.
func (l *local) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", l.proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// connect opens a connection to a server by the proxy.
func (l *local) connect(t *testing.T, server string) net.Conn {
	t.Helper()
	conn := l.dial(t)
	if status := ask(t, conn, "CONNECT "+server+":443 HTTP/1.1\r\nHost: "+server+"\r\n\r\n"); status != http.StatusOK {
		t.Fatalf("CONNECT is answered %d", status)
	}
	return conn
}

// secure begins TLS.
func (l *local) secure(t *testing.T, conn net.Conn, server string) *tls.Conn {
	t.Helper()
	roots := l.roots.Clone()
	roots.ServerName = server
	secured := tls.Client(conn, roots)
	if err := secured.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return secured
}

// ask writes a raw request and returns the status of the answer.
func ask(t *testing.T, conn net.Conn, raw string) int {
	t.Helper()
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode
}

// raw asks a server with a request line as given.
func (l *local) raw(t *testing.T, server, line, host string) answer {
	t.Helper()
	conn := l.secure(t, l.connect(t, server), server)
	if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", line, host); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return read(t, res)
}

// TestMatrixRefusals is what the gateway refuses its own homeserver, or whatever else
// reaches the port that is for it.
func TestMatrixRefusals(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	l := newLocal(t, p.a)
	bounded(t, p.a.Gateway, func() { l.proxyRefuses(t) })
	p.lively(t)
	bounded(t, p.a.Gateway, func() { l.requestsRefused(t) })
	p.lively(t)
	t.Run("slow", func(t *testing.T) { l.slow(t, p) })
	t.Run("a homeserver that redirects", func(t *testing.T) { redirects(t, p, l) })
}

// proxyRefuses asks the proxy for what it is not there for.
func (l *local) proxyRefuses(t *testing.T) {
	for raw, want := range map[string]int{
		"CONNECT b.grid.test:443":                            200,
		"CONNECT B.GRID.TEST.:443":                           200,
		"CONNECT matrix.org:443":                             403,
		"CONNECT localhost:8008":                             403,
		"CONNECT a.grid.test:443":                            403,
		"CONNECT x.b.grid.test:443":                          403,
		"CONNECT 127.0.0.1:22":                               400,
		"CONNECT 2130706433:22":                              400,
		"CONNECT [::1]:22":                                   400,
		"CONNECT [200::1]:443":                               400,
		"CONNECT b.grid.test":                                400,
		"CONNECT b.grid.test:0":                              400,
		"CONNECT b.grid.test:65536":                          400,
		"GET http://b.grid.test/_matrix/key/v2/server":       405,
		"GET http://127.0.0.1:8008/_matrix/client/versions":  405,
		"GET /_matrix/key/v2/server":                         405,
		"OPTIONS *":                                          405,
		"PUT http://b.grid.test/_matrix/federation/v1/send/": 405,
	} {
		t.Run(raw, func(t *testing.T) {
			if got := ask(t, l.dial(t), raw+" HTTP/1.1\r\nHost: b.grid.test\r\n\r\n"); got != want {
				t.Errorf("answered %d, want %d", got, want)
			}
		})
	}
	t.Run("header flood", func(t *testing.T) {
		if got := ask(t, l.dial(t), "CONNECT b.grid.test:443 HTTP/1.1\r\nHost: b.grid.test\r\nX: "+strings.Repeat("x", 9<<10)); got != 431 {
			t.Errorf("answered %d, want 431", got)
		}
	})
}

// requestsRefused asks a peer's server for what it may not be asked.
func (l *local) requestsRefused(t *testing.T) {
	const limit, server = 16 << 20, "b.grid.test"
	version := "/_matrix/federation/v1/version"
	send := "/_matrix/federation/v1/send/1"
	for _, c := range []struct {
		name, method, target string
		body                 io.Reader
		length               int64
		header               http.Header
		want                 string
	}{
		{"what it may do", "GET", version, nil, 0, nil, "200"},
		{"no proof", "GET", "/_matrix/federation/v1/query/profile?user_id=x", nil, 0, nil, "401 M_UNAUTHORIZED"},
		{"unknown method", "DELETE", version, nil, 0, nil, "405 M_UNRECOGNIZED"},
		{"one byte over the limit", "PUT", send, io.LimitReader(letters{}, limit+1), limit + 1, nil, "413 M_TOO_LARGE"},
		{"unending body", "PUT", send, io.LimitReader(letters{}, 4*limit), -1, http.Header{"Authorization": {"X-Matrix origin=a.grid.test,key=\"ed25519:1\",sig=\"x\""}}, "413 M_TOO_LARGE"},
		{"compressed body", "PUT", send, strings.NewReader("{}"), 2, http.Header{"Content-Encoding": {"gzip"}}, "415 M_UNKNOWN"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := l.do(t, c.method, server, c.target, c.body, c.length, c.header); got.String() != c.want {
				t.Errorf("answered %s, want %s: %.300s", got, c.want, got.body)
			}
		})
	}
	for _, target := range tricks {
		t.Run("target "+target, func(t *testing.T) {
			if got := l.raw(t, server, "GET "+target, server); got.String() != "404 M_UNRECOGNIZED" {
				t.Errorf("answered %s: %.300s", got, got.body)
			}
		})
	}
	for _, c := range []struct{ line, host, want string }{
		{"GET https://" + server + version, server, "404 M_UNRECOGNIZED"},
		{"GET http://127.0.0.1:8008" + version, server, "421 M_UNKNOWN"},
		{"GET https://evil.test" + version, server, "421 M_UNKNOWN"},
		{"GET " + version, "a.grid.test", "421 M_UNKNOWN"},
		{"GET " + version, "127.0.0.1", "421 M_UNKNOWN"},
	} {
		t.Run(c.line+" at "+c.host, func(t *testing.T) {
			if got := l.raw(t, server, c.line, c.host); got.String() != c.want {
				t.Errorf("answered %s, want %s: %.300s", got, c.want, got.body)
			}
		})
	}
	t.Run("header flood", func(t *testing.T) {
		conn := l.secure(t, l.connect(t, server), server)
		// net/http's own answer, before there is a request.
		if got := ask(t, conn, "GET "+version+" HTTP/1.1\r\nHost: "+server+"\r\nX: "+strings.Repeat("x", 64<<10)); got != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answered %d", got)
		}
	})
}

// slow opens connections on which nothing comes: the gateway ends them, and the
// homeserver's own requests pass meanwhile.
func (l *local) slow(t *testing.T, p *parlour) {
	const each = 50
	bounded(t, p.a.Gateway, func() {
		var conns []net.Conn
		for range each {
			silent := l.dial(t)
			half := l.dial(t)
			fmt.Fprint(half, "CONNECT b.grid.test:443 HT")
			noTLS := l.connect(t, "b.grid.test")
			fmt.Fprint(noTLS, "\x16\x03\x01")
			header := l.secure(t, l.connect(t, "b.grid.test"), "b.grid.test")
			fmt.Fprint(header, "GET /_matrix/key/v2/server HTTP/1.1\r\nHost: b.grid.te")
			conns = append(conns, silent, half, noTLS, header)
		}
		p.lively(t)
		for i, conn := range conns {
			// The end may be an answer before it, or a reset.
			_, err := io.Copy(io.Discard, conn)
			var failed net.Error
			if errors.As(err, &failed) && failed.Timeout() {
				t.Errorf("connection %d is not ended after %v", i, patience)
			}
		}
	})
	p.lively(t)
}

// redirects has a grid whose homeserver sends everybody elsewhere.
func redirects(t *testing.T, p *parlour, l *local) {
	ctx := t.Context()
	elsewhere := "http://" + p.a.Homeserver.HTTP.String() + "/_matrix/client/versions"
	stand := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, http.StatusFound) }))
	defer stand.Close()
	c, err := peertest.NewGateway(ctx, "c", filepath.Join(t.TempDir(), "c"), nil, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, c.Stop()) })
	if err := c.Init(ctx, "--name", "c", "--matrix", "c.grid.test", "--matrix-server", stand.URL,
		"--matrix-proxy", netip.AddrPortFrom(peertest.Loopback(), 8118).String()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	invite, err := p.a.Gateway.Invite(ctx, "c", "c.grid.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Accept(ctx, invite, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.a.AwaitUp(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	got := l.get(t, "c.grid.test", "/_matrix/federation/v1/version")
	if got.String() != "502 M_UNKNOWN" || got.header.Get("Location") != "" {
		t.Errorf("answered %s %v: %s", got, got.header, got.body)
	}
}
