package s2s

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A stream that brings at least busyStanzas in gatherPause rests that long: what
// comes meanwhile is taken together, and goes together to the peer and into the
// store. Whoever sends one after the other, waiting for answers, is not held up.
const (
	gatherPause = 3 * time.Millisecond
	busyStanzas = 6
)

// pace says when a stream is busy, by periods of gatherPause or a rest.
type pace struct {
	since        time.Time // the period's beginning
	now, earlier int       // stanzas in it, and in the one before
}

// busy notes a batch that came at that time. That one period was busy is enough:
// Nagle's algorithm keeps back what follows a server's first stanza until that has
// been read, so that a rest may be followed by one stanza, and then by many.
func (p *pace) busy(batch [][]byte, at time.Time) bool {
	if d := at.Sub(p.since); d > gatherPause {
		p.earlier = p.now
		if d > 3*gatherPause {
			p.earlier = 0
		}
		p.since, p.now = at, 0
	}
	for _, b := range batch {
		if isStanza(b) {
			p.now++
		}
	}
	return max(p.now, p.earlier) >= busyStanzas
}

// rest waits gatherPause, or until ctx is done.
func rest(ctx context.Context) {
	timer := time.NewTimer(gatherPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// arrivals is a TCP connection that can be read without waiting.
type arrivals struct {
	*net.TCPConn
	raw  syscall.RawConn
	only bool // reads return errNotYet where they would wait
}

// newArrivals is for the connections that a listener for TCP accepts.
func newArrivals(conn *net.TCPConn) (*arrivals, error) {
	raw, err := conn.SyscallConn()
	return &arrivals{TCPConn: conn, raw: raw}, err
}

// errNotYet is temporary in the sense of net.Error, which is how crypto/tls knows
// that the stream goes on.
var errNotYet net.Error = notYet{}

type notYet struct{}

func (notYet) Error() string   { return "nothing has arrived" }
func (notYet) Timeout() bool   { return true }
func (notYet) Temporary() bool { return true }

func (a *arrivals) Read(p []byte) (n int, err error) {
	if !a.only {
		return a.TCPConn.Read(p)
	}
	if e := a.raw.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), p)
		return true
	}); e != nil {
		return 0, e
	}
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, errNotYet
	case err != nil:
		return 0, &net.OpError{Op: "read", Net: "tcp", Source: a.LocalAddr(), Addr: a.RemoteAddr(), Err: os.NewSyscallError("read", err)}
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// hurry makes the kernel acknowledge at once what comes next.
func (a *arrivals) hurry() error {
	var err error
	if e := a.raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	}); e != nil {
		return e // it is closed
	}
	return err
}

// gathering reads all that has arrived in one go, whereas a TLS connection gives
// one record at a time, and stock servers make one of each stanza.
type gathering struct {
	io.Reader // TLS
	below     *arrivals
	err       error // found behind what the last Read returned
}

func (g *gathering) Read(p []byte) (n int, err error) {
	if err, g.err = g.err, nil; err != nil {
		return 0, err
	}
	if n, err = g.Reader.Read(p); err != nil {
		return n, err
	}
	g.below.only = true
	defer func() { g.below.only = false }()
	for n < len(p) {
		more, err := g.Reader.Read(p[n:])
		n += more
		if err != nil {
			if !errors.Is(err, errNotYet) {
				g.err = err
			}
			break
		}
	}
	return n, nil
}
