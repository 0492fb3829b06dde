package pairing

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
)

// gateway is one grid's side of pairing, served over real TLS on its own loopback
// address.
type gateway struct {
	*Pairing
	reg   *federation.Registry
	id    *federation.Identity
	store *store.Store
	ip    string // its node
	addr  string // ip:port
	keys  string // directory of its keys
	sheet string // recovery sheet

	mu  sync.Mutex
	now time.Time
}

func (g *gateway) clock() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.now
}

// advance moves the clock, by which also the limiter counts.
func (g *gateway) advance(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.now = g.now.Add(d)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newGateway(t *testing.T, ip string, domains ...string) *gateway {
	t.Helper()
	g := &gateway{ip: ip, now: time.Now(), keys: filepath.Join(t.TempDir(), "keys")}
	var err error
	g.id, g.sheet, err = federation.CreateIdentity(g.keys)
	must(t, err)
	g.store, err = store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { must(t, g.store.Close()) })
	g.openRegistry(t, domains...)
	g.Pairing = New(Config{
		Registry: g.reg, Store: g.store, Key: g.id.Key(), Now: g.clock,
		Nodes:    func() []transports.Addr { return []transports.Addr{{Net: "tcp", Node: ip}} },
		Peerings: func() []string { return []string{"tls://192.0.2.1:443"} },
	})
	g.addr = serveTLS(t, ip, g.id, g.Handler())
	return g
}

func (g *gateway) openRegistry(t *testing.T, domains ...string) {
	t.Helper()
	var err error
	g.reg, err = federation.OpenRegistry(t.Context(), federation.RegistryConfig{
		Store: g.store, Identity: g.id, Name: "grid of " + g.ip, Now: g.clock,
		Own:   map[federation.Protocol][]string{federation.XMPP: domains},
		Nodes: []federation.Node{{ID: "n1", SPKI: g.id.NodeSPKI(), Addrs: []string{"tcp:" + g.ip}}},
		Policy: func(name string) federation.Policy {
			return federation.Policy{Allow: map[federation.Protocol]bool{federation.XMPP: name != "mute"}}
		},
	})
	must(t, err)
}

// rotate makes the next grid key current, as a restart after `yggate rotate` does.
func (g *gateway) rotate(t *testing.T) {
	t.Helper()
	id, err := federation.Rotate(g.keys, g.sheet, func(sheet string) error { g.sheet = sheet; return nil })
	must(t, err)
	g.id = id
}

// serveTLS serves a handler with the identity's leaf, as link does.
func serveTLS(t *testing.T, ip string, id *federation.Identity, h http.Handler) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", ip+":0")
	must(t, err)
	srv := &http.Server{
		Handler:  h,
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, NextProtos: []string{"h2"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return id.Leaf(transports.Addr{Net: "tcp", Node: ip})
			},
		},
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() {
		must(t, srv.Close())
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// dialer dials the gateways of a test by their node.
type dialer struct {
	t    *testing.T
	from *gateway
	to   map[string]string // node -> ip:port
	leaf *tls.Certificate  // nil: that of from
}

func (g *gateway) dialer(t *testing.T, others ...*gateway) *dialer {
	d := &dialer{t: t, from: g, to: map[string]string{}}
	for _, o := range others {
		d.to[o.ip] = o.addr
	}
	return d
}

func (d *dialer) DialPinned(ctx context.Context, addr transports.Addr, grid ed25519.PublicKey) (*http.ClientConn, tls.ConnectionState, error) {
	leaf := d.leaf
	if leaf == nil {
		var err error
		if leaf, err = d.from.id.Leaf(transports.Addr{Net: "tcp", Node: d.from.ip}); err != nil {
			return nil, tls.ConnectionState{}, err
		}
	}
	to, ok := d.to[addr.Node]
	if !ok {
		return nil, tls.ConnectionState{}, errors.New("no route")
	}
	raw, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(d.from.ip)}}).DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, tls.ConnectionState{}, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*leaf},
		InsecureSkipVerify: true, // VerifyConnection pins the grid key
		VerifyConnection: func(s tls.ConnectionState) error {
			p, err := federation.VerifyChain(s.PeerCertificates, time.Now())
			if err == nil && !p.Key.Equal(grid) {
				err = fmt.Errorf("%w: %w", federation.ErrUnknownGrid, &federation.WrongKeyError{Got: p.Key, Want: grid})
			}
			return err
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, tls.ConnectionState{}, errors.Join(err, raw.Close())
	}
	h2 := new(http.Protocols)
	h2.SetHTTP2(true)
	tr := &http.Transport{Protocols: h2, DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	cc, err := tr.NewClientConn(ctx, "https", "yggate:443")
	return cc, conn.ConnectionState(), err
}

// ask sends one request over a session of its own and returns the refusal, or nil.
func (d *dialer) ask(to *gateway, path string, body func(s *session) any, answer any) error {
	d.t.Helper()
	conn, state, err := d.DialPinned(d.t.Context(), transports.Addr{Net: "tcp", Node: to.ip}, to.id.Key())
	must(d.t, err)
	s := &session{conn, state}
	defer s.close()
	return s.post(d.t.Context(), path, body(s), answer)
}

// wantRefusal checks status and text of a refusal.
func wantRefusal(t *testing.T, err error, status int) *Error {
	t.Helper()
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Status != status {
		t.Fatalf("got %v, want a refusal with %d", err, status)
	}
	return refusal
}

func audited(t *testing.T, g *gateway, event string) (n int) {
	t.Helper()
	entries, err := store.Audit(t.Context(), g.store.Read(), 1000)
	must(t, err)
	for _, e := range entries {
		if e.Event == event {
			n++
		}
	}
	return n
}

// forgedLeaf makes a chain of fresh keys that claims to be of a grid.
func forgedLeaf(t *testing.T, claimed federation.GridID, ip string) *tls.Certificate {
	t.Helper()
	uris := func(names ...string) (out []*url.URL) {
		for _, n := range names {
			u, err := url.Parse(n)
			must(t, err)
			out = append(out, u)
		}
		return out
	}
	rootPub, rootKey, err := ed25519.GenerateKey(nil)
	must(t, err)
	leafPub, leafKey, err := ed25519.GenerateKey(nil)
	must(t, err)
	root := &x509.Certificate{
		Subject: pkix.Name{CommonName: "forged"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
		URIs: uris("grid:" + string(claimed)),
	}
	leaf := &x509.Certificate{
		NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        uris("grid:"+string(claimed), "tcp:"+ip),
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootPub, rootKey)
	must(t, err)
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafPub, rootKey)
	must(t, err)
	return &tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: leafKey}
}
