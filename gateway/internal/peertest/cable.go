package peertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
)

// Cable is a TCP forwarder between two programs. It can be cut, and stalled as a
// line is on which packets get lost and nobody says so.
type Cable struct {
	listener net.Listener
	to       string
	watch    func() (there, back func([]byte))
	work     sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	cut   bool
	flow  chan struct{} // closed while bytes flow
}

// NewCable forwards from one address to another until Close.
func NewCable(from, to string) (*Cable, error) {
	return NewWatchedCable(from, to, func() (there, back func([]byte)) {
		return func([]byte) {}, func([]byte) {}
	})
}

// NewWatchedCable is NewCable, and asks watch at each connection for what is to see
// its bytes, each way, before they go on.
func NewWatchedCable(from, to string, watch func() (there, back func([]byte))) (*Cable, error) {
	l, err := net.Listen("tcp", from)
	if err != nil {
		return nil, fmt.Errorf("lay a cable: %w", err)
	}
	c := &Cable{listener: l, to: to, watch: watch, conns: map[net.Conn]struct{}{}, flow: make(chan struct{})}
	close(c.flow)
	c.work.Go(c.accept)
	return c, nil
}

// Addr is where the cable begins.
func (c *Cable) Addr() string { return c.listener.Addr().String() }

func (c *Cable) accept() {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return // closed
		}
		c.work.Go(func() { c.forward(conn) })
	}
}

func (c *Cable) forward(near net.Conn) {
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
	there, back := c.watch()
	both.Go(func() {
		defer end()
		c.copy(ctx, far, near, there)
	})
	both.Go(func() {
		defer end()
		c.copy(ctx, near, far, back)
	})
	both.Wait()
}

// copy carries bytes one way until either end is closed.
func (c *Cable) copy(ctx context.Context, to, from net.Conn, watch func([]byte)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case <-c.flowing():
			case <-ctx.Done():
				return
			}
			watch(buf[:n])
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (c *Cable) flowing() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flow
}

func (c *Cable) enter(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		return false
	}
	c.conns[conn] = struct{}{}
	return true
}

func (c *Cable) leave(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

// Cut resets every connection (RST) and lets none begin.
func (c *Cable) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for conn := range c.conns {
		_ = conn.(*net.TCPConn).SetLinger(0) // fails on one that is closed already
		conn.Close()
	}
}

// Stall keeps the connections and carries nothing.
func (c *Cable) Stall() {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.flow:
		c.flow = make(chan struct{})
	default: // stalled already
	}
}

// Mend ends a cut or a stall.
func (c *Cable) Mend() {
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
func (c *Cable) Close() error {
	err := c.listener.Close()
	c.Cut()
	c.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
