package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// cable is a TCP forwarder between two programs. It can be cut, and stalled as a
// line is on which packets get lost and nobody says so.
type cable struct {
	listener net.Listener
	to       string
	work     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	cut   bool
	flow  chan struct{} // closed while bytes flow
}

// newCable forwards from one address to another until Close.
func newCable(from, to string) (*cable, error) {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return nil, fmt.Errorf("lay a cable: %w", err)
	}
	c := &cable{listener: l, to: to, conns: map[net.Conn]struct{}{}, flow: make(chan struct{})}
	close(c.flow)
	c.work.Go(c.accept)
	return c, nil
}

// Addr is where the cable begins.
func (c *cable) Addr() string { return c.listener.Addr().String() }

func (c *cable) accept() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return // closed
		}
		c.work.Go(func() { c.forward(conn) })
	}
}

func (c *cable) forward(near net.Conn) {
	defer near.Close()
	if !c.enter(near) {
		return
	}
	defer c.leave(near)
	far, err := net.Dial("tcp", c.to)
	if err != nil {
		return // nobody is there, and the near end will see that
	}
	defer far.Close()
	if !c.enter(far) {
		return
	}
	defer c.leave(far)
	ctx, end := context.WithCancel(context.Background())
	defer end()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			defer end()
			c.copy(ctx, pair[0], pair[1])
		})
	}
	both.Wait()
}

// copy carries bytes one way until either end is closed.
func (c *cable) copy(ctx context.Context, to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case <-c.flowing():
			case <-ctx.Done():
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *cable) flowing() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flow
}

func (c *cable) enter(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *cable) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// Cut ends every connection and lets none begin.
func (c *cable) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for conn := range c.conns {
		conn.Close()
	}
}

// Stall keeps the connections and carries nothing.
func (c *cable) Stall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.flow:
		c.flow = make(chan struct{})
	default: // stalled already
	}
}

// Mend ends a cut or a stall.
func (c *cable) Mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = false
	select {
	case <-c.flow:
	default:
		close(c.flow)
	}
}

// Close takes the cable away.
func (c *cable) Close() error {
	err := c.listener.Close()
	c.Cut()
	c.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
