//go:build integration

package sessiontest

import (
	"net"
	"sync"
)

// cutConn watches the packets of a connection.
type cutConn struct {
	net.Conn
	cut func(dir byte, packet []byte) bool
	die func()

	mu      sync.Mutex
	out, in []byte // of a packet that is not whole
}

// whole takes the first packet off b, nil if it is not whole.
func whole(b []byte) (packet, rest []byte) {
	length, n := 0, 1
	for {
		if n >= len(b) {
			return nil, b
		}
		length |= int(b[n]&0x7f) << (7 * (n - 1))
		n++
		if b[n-1]&0x80 == 0 {
			break
		}
	}
	if len(b) < n+length {
		return nil, b
	}
	return b[:n+length], b[n+length:]
}

// Write lets whole packets through up to the one that kills.
func (c *cutConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out = append(c.out, b...)
	for {
		p, rest := whole(c.out)
		if p == nil {
			return len(b), nil
		}
		if c.cut('>', p) {
			c.die()
			return 0, net.ErrClosed
		}
		if _, err := c.Conn.Write(p); err != nil {
			return 0, err
		}
		c.out = append([]byte(nil), rest...)
	}
}

// Read likewise.
func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		return n, err
	}
	c.in = append(c.in, b[:n]...)
	for {
		p, rest := whole(c.in)
		if p == nil {
			return n, nil
		}
		if c.cut('<', p) {
			c.die()
			return 0, net.ErrClosed
		}
		c.in = append([]byte(nil), rest...)
	}
}
