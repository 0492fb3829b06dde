package ygg

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"

	"github.com/yggate/yggate/transports"
)

// conn is one stream. Besides transports.Conn it has CloseRead and CloseWrite.
type conn struct {
	*gonet.TCPConn
	ep            tcpip.Endpoint
	local, remote transports.Addr
	far           *remote
	release       func() // gives back what the stream counts for
	opened        time.Time
	closed        atomic.Bool
}

var _ transports.Conn = (*conn)(nil)

// Remote is the full key of the far end, proven by its session.
func (c *conn) Remote() transports.Addr { return c.remote }

// RemoteAddr and LocalAddr are transports.Addr, since the IPv6 address holds
// only a part of the key.
func (c *conn) RemoteAddr() net.Addr { return c.remote }

// LocalAddr is this node's end.
func (c *conn) LocalAddr() net.Addr { return c.local }

// Read reports net.ErrClosed, not the netstack's io.EOF, after Close.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.mend("read", err)
}

// Write reports net.ErrClosed after Close.
func (c *conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.mend("write", err)
}

// mend gives the netstack's errors the form that those of package net have.
func (c *conn) mend(op string, err error) error {
	var timeout net.Error
	switch {
	case err == nil:
		return nil
	case c.closed.Load():
		return c.opError(op, net.ErrClosed)
	case errors.Is(err, io.EOF):
		return io.EOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return c.opError(op, os.ErrDeadlineExceeded)
	}
	return err
}

func (c *conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: Network, Source: c.local, Addr: c.remote, Err: err}
}

// Close sends what is buffered and ends the stream both ways.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return c.opError("close", net.ErrClosed)
	}
	defer c.release()
	c.far.detach(c)
	return c.TCPConn.Close()
}

// abort resets a stream that the application never saw.
func (c *conn) abort() {
	if !c.closed.Swap(true) {
		c.far.detach(c)
		c.ep.Abort()
		c.release()
	}
}
