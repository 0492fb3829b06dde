package matrix

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
)

const (
	// connectHeader bounds a CONNECT request; net/http adds 4 KiB to it.
	connectHeader = 4 << 10
	// headerPatience is how long a homeserver may take for the header of a request
	// or for its part of a TLS handshake.
	headerPatience = 10 * time.Second
)

// connect is the handler of the proxy. It knows CONNECT alone, and decides by the
// name: a peer's is answered here, in the peer's stead; all else is the operator's
// own proxy's, or nobody's. No name is ever resolved.
func (o *outbound) connect(w http.ResponseWriter, r *http.Request) {
	if !o.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer o.handlers.leave()
	if r.Method != http.MethodConnect {
		w.Header().Set("Allow", http.MethodConnect)
		o.metrics.refusedConnect.WithLabelValues("method").Inc()
		http.Error(w, "This is yggate's proxy for the homeserver's federation requests. It answers CONNECT only.", http.StatusMethodNotAllowed)
		return
	}
	host, port, err := splitAuthority(r.RequestURI)
	if err != nil {
		o.refuseConnect(w, "target", http.StatusBadRequest, "want CONNECT HOST:PORT: "+err.Error())
		return
	}
	now := o.cfg.Directory.Now()
	name, peer := holder(now, host, port)
	switch {
	case peer != nil:
		o.metrics.connects.WithLabelValues("peer").Inc()
		o.takeOver(r.Context(), w, host, port)
	case ownName(now, host, port):
		o.refuseConnect(w, "own", http.StatusForbidden, name+" is this grid's own server name, not a peer's")
	case o.cfg.UpstreamProxy != nil:
		o.metrics.connects.WithLabelValues("upstream").Inc()
		o.pass(r.Context(), w, r.RequestURI)
	default:
		o.refuseConnect(w, "unknown", http.StatusForbidden, "no peer of this gateway holds "+host+
			": pair with the grid that has it (yggate invite --name NAME --expect-domain "+host+"), or set matrix.upstream_proxy for servers outside of the grids")
	}
}

// takeOver answers a CONNECT and has the connection served as one to the peer.
func (o *outbound) takeOver(ctx context.Context, w http.ResponseWriter, host string, port uint16) {
	conn, err := hijack(w)
	if err != nil {
		o.log.Debug("a connection of the homeserver was lost", "err", err)
		return
	}
	if err := writeStatus(conn, http.StatusOK, "Connection established"); err != nil {
		conn.Close()
		return
	}
	o.arrive(ctx, &arrival{Conn: conn, host: host, port: port})
}

// refuseConnect says no in the status line, since that is the part of the answer
// that finds its way into a homeserver's log.
func (o *outbound) refuseConnect(w http.ResponseWriter, rule string, status int, why string) {
	o.metrics.refusedConnect.WithLabelValues(rule).Inc()
	o.log.Debug("a CONNECT request of the homeserver is refused", "status", status, "reason", why)
	conn, err := hijack(w)
	if err != nil {
		return
	}
	defer conn.Close()
	if err := writeStatus(conn, status, "yggate: "+why, "Content-Length: 0", "Connection: close"); err != nil {
		o.log.Debug("a CONNECT request is not answered", "err", err)
	}
}

// hijack takes the connection from the server, without its deadlines, and with
// what the client has already sent after its request.
func hijack(w http.ResponseWriter) (net.Conn, error) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, err
	}
	if buf.Reader.Buffered() == 0 {
		return conn, nil
	}
	early, err := buf.Reader.Peek(buf.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &earlyConn{conn, early}, nil
}

// earlyConn is a connection of which some was read before.
type earlyConn struct {
	net.Conn
	early []byte
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	c.early = c.early[n:]
	return n, nil
}

// writeStatus writes an answer without a body. reason is one line of ASCII.
func writeStatus(conn net.Conn, status int, reason string, header ...string) error {
	if err := conn.SetWriteDeadline(time.Now().Add(headerPatience)); err != nil {
		return err
	}
	b := bufio.NewWriter(conn)
	fmt.Fprintf(b, "HTTP/1.1 %d %s\r\n", status, reason)
	for _, line := range header {
		b.WriteString(line + "\r\n")
	}
	b.WriteString("\r\n")
	if err := b.Flush(); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}

// splitAuthority reads the target of a CONNECT (RFC 9110 §9.3.6). The host comes
// back normalised; it is a name, because no grid can hold an address.
func splitAuthority(target string) (host string, port uint16, err error) {
	i := strings.LastIndexByte(target, ':')
	if i < 0 {
		return "", 0, errors.New("the port is missing")
	}
	name, digits := target[:i], target[i+1:]
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != digits {
		return "", 0, fmt.Errorf("port %.10q is no number from 1 to 65535", digits)
	}
	if host, err = federation.NormalizeDomain(name); err != nil {
		return "", 0, err
	}
	return host, uint16(n), nil
}

// holder says which server name of a peer is meant by a host and a port, and whose
// it is. A server name with a port is reached at just that port (server-server API,
// "Resolving server names", step 2); without one at any, because .well-known says
// where. Nil, with the plain host, if it is nobody's.
func holder(now *federation.Snapshot, host string, port uint16) (name string, peer *federation.Peer) {
	name = host + ":" + strconv.Itoa(int(port))
	if peer = now.Owner(federation.Matrix, name); peer != nil {
		return name, peer
	}
	return host, now.Owner(federation.Matrix, host)
}

func ownName(now *federation.Snapshot, host string, port uint16) bool {
	return now.Own(federation.Matrix, host) || now.Own(federation.Matrix, host+":"+strconv.Itoa(int(port)))
}
