package s2s

import (
	"bufio"
	"crypto/tls"
	"net"
	"time"
)

const (
	// gatherFor is the least time between two reads of a connection: what a busy
	// server writes stanza by stanza is then read, and goes on, in batches. The
	// first read after a pause does not wait.
	gatherFor = time.Millisecond
	// gatherBytes is what one read takes at most.
	gatherBytes = 16 << 10
)

// gatherer reads below TLS, which by itself would ask the kernel for each record.
type gatherer struct {
	net.Conn
	buf  *bufio.Reader
	next time.Time
}

func gather(conn net.Conn) *gatherer {
	return &gatherer{Conn: conn, buf: bufio.NewReaderSize(conn, gatherBytes)}
}

// gatheringServer is tls.Server on a gathered connection.
func gatheringServer(conn net.Conn, config *tls.Config) *tls.Conn {
	return tls.Server(gather(conn), config)
}

// Read implements net.Conn.
func (g *gatherer) Read(p []byte) (int, error) {
	if g.buf.Buffered() == 0 {
		if wait := time.Until(g.next); wait > 0 {
			time.Sleep(wait)
		}
		defer func() { g.next = time.Now().Add(gatherFor) }()
	}
	return g.buf.Read(p)
}
