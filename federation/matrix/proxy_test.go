package matrix

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// raw opens a connection that is written to byte by byte.
func raw(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn, bufio.NewReader(conn)
}

// established answers a CONNECT.
const established = "HTTP/1.1 200 Connection established\r\n\r\n"

// tunnel opens a connection through CONNECT and ends its TLS.
func (s *side) tunnel(authority, sni string) (*tls.Conn, *bufio.Reader) {
	s.t.Helper()
	conn, _ := raw(s.t, s.proxy)
	fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, authority)
	got := make([]byte, len(established))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != established {
		s.t.Fatalf("CONNECT %s: %q, %v", authority, got, err)
	}
	c := tls.Client(conn, &tls.Config{RootCAs: s.ca.Roots(), ServerName: sni, InsecureSkipVerify: sni == ""})
	if err := c.HandshakeContext(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

func TestConnectDecides(t *testing.T) {
	s := newSide(t)
	s.publish("b.grid", "c.grid:8449", "xn--bcher-kva.grid")
	for _, c := range []struct{ request, want string }{
		{"CONNECT b.grid:443 HTTP/1.1\r\nHost: b.grid:443\r\n\r\n", "200 Connection established"},
		{"CONNECT B.GRID:8448 HTTP/1.1\r\nHost: evil.example:1\r\n\r\n", "200 "},
		{"CONNECT c.grid:8449 HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
		{"CONNECT xn--bcher-kva.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "200 "},
		{"CONNECT c.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "403 yggate: no peer of this gateway holds c.grid: pair with"},
		{"CONNECT matrix.org:443 HTTP/1.1\r\nHost: b.grid:443\r\n\r\n", "403 yggate: no peer of this gateway holds matrix.org"},
		{"CONNECT sub.b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "403 "},
		{"CONNECT a.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "403 yggate: a.grid is this grid's own server name"},
		{"CONNECT localhost:6379 HTTP/1.1\r\nHost: x\r\n\r\n", "403 "},
		{"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT [::1]:22 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT 2130706433:22 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid:0 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid:0443 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid:65979 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT u@b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid:443/x HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT b.grid:443?x HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT evil.example:443#@b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"CONNECT /x HTTP/1.1\r\nHost: b.grid:443\r\n\r\n", "400 "},
		{"CONNECT http://b.grid:443/ HTTP/1.1\r\nHost: x\r\n\r\n", "400 "},
		{"GET http://b.grid/ HTTP/1.1\r\nHost: b.grid\r\n\r\n", "405 "},
		{"GET / HTTP/1.1\r\nHost: b.grid\r\n\r\n", "405 "},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "405 "},
		{"CONNECT " + strings.Repeat("x", 10<<10) + ":443 HTTP/1.1\r\nHost: x\r\n\r\n", "431 "},
		{"CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 3000) + "\r\n", "431 "},
		{"CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n", "400 "},
	} {
		conn, r := raw(t, s.proxy)
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.") || !strings.HasPrefix(line[len("HTTP/1.1 "):], c.want) {
			t.Errorf("%.60q: %q, %v, want %q", c.request, line, err, c.want)
		}
		conn.Close()
	}
}

// TestEarlyHello is a client that does not wait for the answer to its CONNECT, and
// one that sends no SNI.
func TestEarlyHelloAndNoSNI(t *testing.T) {
	s := newSide(t)
	conn, _ := raw(t, s.proxy)
	early := &earlyWriter{Conn: conn, before: "CONNECT b.grid:443 HTTP/1.1\r\nHost: b.grid:443\r\n\r\n", skip: len(established)}
	c := tls.Client(early, &tls.Config{RootCAs: s.ca.Roots(), ServerName: "b.grid"})
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Error(err)
	}
	bare, _ := s.tunnel("b.grid:443", "")
	if leaf := bare.ConnectionState().PeerCertificates[0]; leaf.VerifyHostname("b.grid") != nil {
		t.Errorf("the leaf without SNI is for %v", leaf.DNSNames)
	}
	// CONNECT is what was decided on; SNI cannot lead elsewhere.
	odd, err := func() (*tls.Conn, error) {
		conn, _ := raw(t, s.proxy)
		fmt.Fprint(conn, "CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, len(established))); err != nil {
			return nil, err
		}
		c := tls.Client(conn, &tls.Config{ServerName: "matrix.org", InsecureSkipVerify: true})
		return c, c.HandshakeContext(t.Context())
	}()
	if err != nil {
		t.Fatal(err)
	}
	if names := odd.ConnectionState().PeerCertificates[0].DNSNames; len(names) != 1 || names[0] != "b.grid" {
		t.Errorf("with another SNI: %v", names)
	}
}

// earlyWriter writes a CONNECT in one piece with the first bytes after it.
type earlyWriter struct {
	net.Conn
	before string
	skip   int
}

func (e *earlyWriter) Write(p []byte) (int, error) {
	n := len(p)
	if e.before != "" {
		p, e.before = append([]byte(e.before), p...), ""
	}
	_, err := e.Conn.Write(p)
	return n, err
}

func (e *earlyWriter) Read(p []byte) (int, error) {
	if e.skip > 0 {
		if _, err := io.ReadFull(e.Conn, make([]byte, e.skip)); err != nil {
			return 0, err
		}
		e.skip = 0
	}
	return e.Conn.Read(p)
}

func TestListener(t *testing.T) {
	s := newSide(t)
	s.publish("b.grid", "c.grid:"+port(t, s.direct))
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Header.Get(headerServer)+" "+r.Header.Get(headerTarget))
	})
	for _, h2 := range []bool{false, true} {
		tr := &http.Transport{
			Protocols: only(h2), TLSClientConfig: &tls.Config{RootCAs: s.ca.Roots()},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { // what /etc/hosts does
				return (&net.Dialer{}).DialContext(ctx, "tcp", s.direct)
			},
		}
		c := &http.Client{Transport: tr, Timeout: patience}
		for host, want := range map[string]string{"b.grid": "b.grid", "c.grid": "c.grid:" + port(t, s.direct)} {
			res := s.do(c, http.MethodGet, "https://"+host+":8448/_matrix/key/v2/server", nil)
			if res.body != want+" /_matrix/key/v2/server" || (res.ProtoMajor == 2) != h2 {
				t.Errorf("h2 %v: %q, want %s", h2, res.body, want)
			}
		}
		tr.CloseIdleConnections()
	}
	for _, sni := range []string{"", "a.grid", "matrix.org", "x.b.grid"} {
		c, err := tls.Dial("tcp", s.direct, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		if err == nil {
			t.Errorf("SNI %q: got %v", sni, c.ConnectionState().PeerCertificates[0].DNSNames)
			c.Close()
		}
	}
	eventually(t, "the log names what was asked for", func() bool { return strings.Contains(s.log.String(), "a name that no peer holds") })
}

// slowToClose is a listener whose Close takes until gate is closed, but for Accept, which
// fails at once.
type slowToClose struct {
	net.Listener
	gate chan struct{}
}

func (l *slowToClose) Close() error {
	err := l.Listener.Close()
	<-l.gate
	return err
}

// TestPortIsFreeAtTheEnd: the next life wants to listen there at once.
func TestPortIsFreeAtTheEnd(t *testing.T) {
	s := newSide(t)
	ctx, cancel := context.WithCancel(t.Context())
	l := &slowToClose{listen(t), make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- s.a.out.acceptArrivals(ctx, l) }()
	cancel()
	select {
	case err := <-ended:
		close(l.gate)
		t.Fatalf("it has ended (%v) before its listener was closed", err)
	case <-time.After(200 * time.Millisecond): // right code passes however slow the machine is
	}
	close(l.gate)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// tired is a listener that at first cannot accept.
type tired struct {
	net.Listener
	fails atomic.Int64
}

func (l *tired) Accept() (net.Conn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

// TestListenerThatCannotAcceptNow is not the end of the gateway: there may be too many open
// files for a while.
func TestListenerThatCannotAcceptNow(t *testing.T) {
	s := newSide(t)
	ctx, cancel := context.WithCancel(t.Context())
	l := &tired{Listener: listen(t)}
	l.fails.Store(3)
	ended := make(chan error, 1)
	go func() { ended <- s.a.out.acceptArrivals(ctx, l) }()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", l.Addr().String(), &tls.Config{ServerName: "b.grid", RootCAs: s.ca.Roots()})
	if err != nil {
		t.Errorf("a connection after that: %v", err)
	} else {
		conn.Close()
	}
	if !strings.Contains(s.log.String(), "too many open files") {
		t.Error("the log does not say why")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	closed := listen(t)
	closed.Close()
	if err := s.a.out.acceptArrivals(t.Context(), closed); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a listener that was closed: %v", err)
	}
}

func port(t *testing.T, addr string) string {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestUntrustedCA tells the operator what a homeserver's log hides.
func TestUntrustedCA(t *testing.T) {
	s := newSide(t)
	c := s.client(false)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{}
	if _, err := c.Get("https://b.grid/"); err == nil {
		t.Error("the certificate is accepted without its CA")
	}
	eventually(t, "the log says that the CA is not trusted", func() bool { return strings.Contains(s.log.String(), "must trust the local CA") })
}

func TestStrangers(t *testing.T) {
	s := newSide(t, func(c *Config) { c.AllowFrom = []netip.Prefix{netip.MustParsePrefix("127.9.0.0/16")} })
	conn, r := raw(t, s.proxy)
	fmt.Fprint(conn, "CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n") // may fail already
	if got, err := io.ReadAll(r); len(got) > 0 || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the proxy answers %q, %v, want the end", got, err)
	}
	conn, _ = raw(t, s.direct)
	if err := tls.Client(conn, &tls.Config{RootCAs: s.ca.Roots(), ServerName: "b.grid"}).HandshakeContext(t.Context()); err == nil {
		t.Error("the listener answers")
	}
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, 1, 1)}}
	friend, err := dialer.DialContext(t.Context(), "tcp", s.proxy)
	if err != nil {
		t.Fatal(err)
	}
	defer friend.Close()
	fmt.Fprint(friend, "CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n")
	if line, err := bufio.NewReader(friend).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
		t.Errorf("an allowed source gets %q, %v", line, err)
	}
}

// TestNoOtherServerInsideTheTunnel tries to get, on a connection to b.grid, at
// anything else.
func TestNoOtherServerInsideTheTunnel(t *testing.T) {
	s := newSide(t)
	s.publish("b.grid", "c.grid")
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		raw, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Header.Get(headerServer), r.Header.Get(headerTarget), raw)
	})
	const to = "/_matrix/federation/v1/send/1"
	for _, c := range []struct{ request, want string }{
		{"GET https://c.grid/_matrix/federation/v1/version HTTP/1.1\r\nHost: c.grid\r\n\r\n", "421"},
		{"GET https://b.grid/_matrix/federation/v1/version HTTP/1.1\r\nHost: b.grid\r\n\r\n", "404"},
		{"GET http://127.0.0.1/_matrix/federation/v1/version HTTP/1.1\r\nHost: b.grid\r\n\r\n", "421"},
		{"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: c.grid\r\n\r\n", "421"},
		{"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: b.grid\r\nHost: c.grid\r\n\r\n", "400"},
		{"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: b.grid\r\nX-Forwarded-Host: c.grid\r\nYggate-Server: c.grid\r\nYggate-Target: /_synapse/admin\r\n\r\n", "200 b.grid /_matrix/federation/v1/version "},
		// What URL libraries would write in another way stays as it was signed.
		{"GET /_matrix/federation/v1/event/{b}|^%7e?<a> HTTP/1.1\r\nHost: b.grid\r\n\r\n", "200 b.grid /_matrix/federation/v1/event/{b}|^%7e?<a> "},
		{"CONNECT c.grid:443 HTTP/1.1\r\nHost: b.grid\r\n\r\n", "421"},
		{"CONNECT b.grid:443 HTTP/1.1\r\nHost: b.grid\r\n\r\n", "404"},
		{"OPTIONS * HTTP/1.1\r\nHost: b.grid\r\n\r\n", "404"},
		// A length beside chunks is void (RFC 9112 §6.3); what follows them is the next request.
		{"PUT " + to + " HTTP/1.1\r\nHost: b.grid\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "200 b.grid " + to + " hi"},
		{"PUT " + to + " HTTP/1.1\r\nHost: b.grid\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"},
		{"PUT " + to + " HTTP/1.1\r\nHost: b.grid\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501"},
		{"PUT " + to + " HTTP/1.1\r\nHost: b.grid\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "501"},
		{"GET /_matrix/federation/v1/version HTTP/1.1\r\nHost: b.grid\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431"},
	} {
		conn, r := s.tunnel("b.grid:443", "b.grid")
		if _, err := io.WriteString(conn, c.request); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Errorf("%.90q: %v", c.request, err)
			continue
		}
		body, err := io.ReadAll(res.Body)
		if got := fmt.Sprintf("%d %s", res.StatusCode, body); err != nil || !strings.HasPrefix(got, c.want) {
			t.Errorf("%.90q: %q, %v, want %q", c.request, got, err, c.want)
		}
		conn.Close()
	}
	// The request that is smuggled after a body is one like any other.
	conn, r := s.tunnel("b.grid:443", "b.grid")
	fmt.Fprint(conn, "PUT "+to+" HTTP/1.1\r\nHost: b.grid\r\nContent-Length: 55\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+
		"GET /_synapse/admin/v1/rooms HTTP/1.1\r\nHost: b.grid\r\n\r\n")
	for _, want := range []int{200, 404} {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			break // that the connection ends is as good
		}
		if io.Copy(io.Discard, res.Body); res.StatusCode != want {
			t.Errorf("smuggled: %s, want %d", res.Status, want)
		}
	}
}

// TestIdleConnectionsAreBounded opens more connections than there is room for. They
// cost no more than the bound, and others get through when they end.
func TestIdleConnectionsAreBounded(t *testing.T) {
	s := newSide(t)
	before := runtime.NumGoroutine()
	var idle []net.Conn
	for range 1000 {
		conn, err := net.Dial("tcp", s.proxy)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, conn)
	}
	// Some of those before may be of earlier tests, and end.
	eventually(t, "as many are served as may be", func() bool { return runtime.NumGoroutine() >= maxConnections })
	if n := runtime.NumGoroutine() - before; n > maxConnections+100 {
		t.Errorf("%d goroutines for %d connections", n, len(idle))
	}
	for _, c := range idle {
		c.Close()
	}
	if res := s.do(s.client(false), http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil); res.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %s", res.Status)
	}
}

// TestSlowClientsAreDropped opens connections on which nothing, or not enough, comes.
func TestSlowClientsAreDropped(t *testing.T) {
	s := newPatientSide(t, 2*time.Second)
	half, _ := s.tunnel("b.grid:443", "b.grid")
	fmt.Fprint(half, "GET /_matrix/federation/v1/version HTTP/1.1\r\nHo")
	ends := map[string]net.Conn{"half a request in the tunnel": half}
	for name, c := range map[string]struct{ addr, sent string }{
		"silent to the proxy":    {s.proxy, ""},
		"half a CONNECT":         {s.proxy, "CONNECT b.grid:443 HTTP/1.1\r\nHost"},
		"CONNECT and no TLS":     {s.proxy, "CONNECT b.grid:443 HTTP/1.1\r\nHost: x\r\n\r\n"},
		"silent to the listener": {s.direct, ""},
		"half a hello":           {s.direct, "\x16\x03\x01\x02\x00\x01"},
	} {
		conn, _ := raw(t, c.addr)
		if _, err := io.WriteString(conn, c.sent); err != nil {
			t.Fatal(err)
		}
		ends[name] = conn
	}
	for name, conn := range ends {
		// What net/http says on the way out does not matter.
		if got, err := io.ReadAll(conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %q, %v, want the end", name, got, err)
		}
	}
}

// TestUpstream sends what is no peer's through the operator's own proxy, which may
// want a password.
func TestUpstream(t *testing.T) {
	far := listen(t)
	defer far.Close()
	asked := make(chan *http.Request, 8)
	go func() {
		for {
			conn, err := far.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				asked <- req
				if strings.HasPrefix(req.RequestURI, "down.") {
					io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnone")
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\nhello ") // with the first bytes at once
				io.Copy(conn, r)
			}()
		}
	}()
	proxy := &url.URL{Scheme: "http", Host: far.Addr().String(), User: url.UserPassword("me", "secret")}
	s := newSide(t, func(c *Config) { c.UpstreamProxy = proxy })
	conn, r := raw(t, s.proxy)
	fmt.Fprint(conn, "CONNECT matrix.org:8448 HTTP/1.1\r\nHost: x\r\n\r\n")
	if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, " 200 ") {
		t.Fatalf("%q %v", line, err)
	}
	req := <-asked
	user, password, _ := (&http.Request{Header: http.Header{"Authorization": req.Header["Proxy-Authorization"]}}).BasicAuth()
	if req.Method != http.MethodConnect || req.RequestURI != "matrix.org:8448" || req.Host != "matrix.org:8448" || user != "me" || password != "secret" {
		t.Errorf("upstream is asked %s %s %s as %s", req.Method, req.RequestURI, req.Host, user)
	}
	io.WriteString(conn, "world")
	conn.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(r); err != nil || string(got) != "\r\nhello world" {
		t.Errorf("through the tunnel came %q, %v", got, err)
	}

	for authority, want := range map[string]string{
		"down.example:443": "502 yggate: matrix.upstream_proxy does not connect", "a.grid:443": "403 ", "127.0.0.1:80": "400 ",
	} {
		conn, r := raw(t, s.proxy)
		fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", authority)
		if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+want) {
			t.Errorf("%s: %q, %v", authority, line, err)
		}
	}
	// A peer's name stays off it.
	for len(asked) > 0 {
		<-asked
	}
	if res := s.do(s.client(true), http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil); res.StatusCode != http.StatusOK || len(asked) > 0 {
		t.Errorf("%s, and upstream was asked %d times", res.Status, len(asked))
	}
	// Open tunnels end with the gateway.
	open, or := raw(t, s.proxy)
	fmt.Fprint(open, "CONNECT matrix.org:8448 HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := or.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if _, err := io.ReadAll(or); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the tunnel of a gateway that ended: %v", err)
	}
}

func TestUpstreamIsChecked(t *testing.T) {
	for _, u := range []string{"https://127.0.0.1:1", "socks5://127.0.0.1:1", "http://127.0.0.1"} {
		proxy, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newOutbound(&Config{UpstreamProxy: proxy}); err == nil || !strings.Contains(err.Error(), "http://HOST:PORT") {
			t.Errorf("%s: %v", u, err)
		}
	}
}
