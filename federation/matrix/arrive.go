package matrix

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
)

// arrival is a connection on which the homeserver believes to speak to a peer's
// server: it came through CONNECT, or to a listener.
type arrival struct {
	net.Conn
	// host is what the connection is for: the name in CONNECT, or that of SNI.
	// port is the one it was made to.
	host string
	port uint16
}

// arrivalKey finds the arrival of a request in its context.
type arrivalKey struct{}

// arrivalOf is for the requests that the server of arrivals has.
func arrivalOf(ctx context.Context) *arrival {
	a, _ := ctx.Value(arrivalKey{}).(*arrival)
	return a
}

// withArrival is the ConnContext of that server.
func withArrival(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		if a, ok := t.NetConn().(*arrival); ok {
			return context.WithValue(ctx, arrivalKey{}, a)
		}
	}
	return ctx
}

// arrive ends TLS on a connection and has the requests on it served.
func (o *outbound) arrive(ctx context.Context, a *arrival) {
	conn := tls.Server(a, o.tls)
	within, cancel := context.WithTimeout(ctx, o.patience)
	err := conn.HandshakeContext(within)
	cancel()
	if err != nil {
		conn.Close()
		o.noHandshake(a, err)
		return
	}
	if !o.arrivals.give(conn) {
		conn.Close()
	}
}

// noHandshake tells the operator what only the operator can mend.
func (o *outbound) noHandshake(a *arrival, err error) {
	o.metrics.handshakes.Inc()
	var alert tls.AlertError
	var unknown *unknownName
	switch {
	case errors.As(err, &unknown):
		o.sometimes.Do(func() {
			o.log.Warn("a connection for a name that no peer holds is refused", "server", unknown.name, "local", a.LocalAddr().String(), "remote", a.RemoteAddr().String())
		})
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error"):
		o.sometimes.Do(func() {
			o.log.Warn("the homeserver does not accept the gateway's certificate: it must trust the local CA (yggate setup prints how)", "server", a.host, "err", err)
		})
	default:
		o.log.Debug("a TLS handshake of the homeserver failed", "server", a.host, "err", err)
	}
}

// unknownName refuses a handshake.
type unknownName struct{ name string }

func (e *unknownName) Error() string {
	if e.name == "" {
		return "the client names no server (SNI)"
	}
	return fmt.Sprintf("no peer holds the Matrix server name %q", e.name)
}

// certificate finds the leaf for a handshake. A connection that came by CONNECT is
// for the name given there, whatever SNI says: some clients send none.
func (o *outbound) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	a, ok := hello.Conn.(*arrival)
	if !ok {
		return nil, errors.New("not a connection of the homeserver")
	}
	if a.host == "" {
		host, err := federation.NormalizeDomain(hello.ServerName)
		if err != nil {
			return nil, &unknownName{hello.ServerName}
		}
		a.host = host
	}
	if _, peer := holder(o.cfg.Directory.Now(), a.host, a.port); peer == nil {
		return nil, &unknownName{a.host}
	}
	return o.cfg.CA.Mint(a.host)
}

// tlsConfig prefers HTTP/1.1 to HTTP/2, which has each message pass one more
// goroutine and each body cut into frames of 16 KiB: homeservers send a peer one
// transaction at a time, and would pay for that with 0.3 ms each.
func (o *outbound) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1", "h2"}, GetCertificate: o.certificate,
	}
}

// acceptPause is how long a listener that cannot accept is left alone; net/http has its own.
const acceptPause = 100 * time.Millisecond

// acceptArrivals takes connections of a TLS listener until ctx is done.
func (o *outbound) acceptArrivals(ctx context.Context, l net.Listener) error {
	// Accept fails before Close has returned, and the port is free only then: the
	// next life of the edge wants it at once. Whoever comes second here waits.
	closeListener := sync.OnceFunc(func() { l.Close() })
	defer closeListener()
	defer context.AfterFunc(ctx, closeListener)()
	var work sync.WaitGroup
	defer work.Wait()
	port := uint16(0)
	if addr, err := netip.ParseAddrPort(l.Addr().String()); err == nil {
		port = addr.Port()
	}
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		case err != nil: // it may pass, as too many open files do
			o.sometimes.Do(func() {
				o.log.Warn("connections of the homeserver cannot be accepted now; it is tried again", "local", l.Addr().String(), "err", err)
			})
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		work.Go(func() { o.arrive(ctx, &arrival{Conn: conn, port: port}) })
	}
}

// handoff is a listener whose connections are given to it.
type handoff struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandoff() *handoff { return &handoff{conns: make(chan net.Conn), closed: make(chan struct{})} }

// give hands a connection to whoever accepts, and says whether it was taken.
func (h *handoff) give(conn net.Conn) bool {
	select {
	case h.conns <- conn:
		return true
	case <-h.closed:
		return false
	}
}

func (h *handoff) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handoff) Addr() net.Addr { return &net.TCPAddr{} }

// allowed accepts connections of allowed sources and closes others.
type allowed struct {
	net.Listener
	from   []netip.Prefix
	refuse func(net.Addr)
}

func (a allowed) Accept() (net.Conn, error) {
	for {
		conn, err := a.Listener.Accept()
		if err != nil || a.may(conn.RemoteAddr()) {
			return conn, err
		}
		a.refuse(conn.RemoteAddr())
		conn.Close()
	}
}

func (a allowed) may(remote net.Addr) bool {
	addr, err := netip.ParseAddrPort(remote.String())
	if err != nil {
		return false
	}
	ip := addr.Addr().Unmap().WithZone("")
	return slices.ContainsFunc(a.from, func(p netip.Prefix) bool { return p.Contains(ip) })
}
