package ygg

import (
	"fmt"
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/yggate/yggate/transports"
)

const (
	// backlog is how many accepted streams may wait for Accept, per listener.
	backlog = 64
	// maxHandshakes bounds handshakes in progress, over all nodes.
	maxHandshakes = 1024
	// maxPending bounds those of one node, so that it cannot take the others'.
	maxPending = 32
	// maxInbound bounds the accepted streams that one node has open.
	maxInbound = 256
	// handshakeTime is how long the far end has for the last step. The
	// netstack itself would hold the endpoint for two minutes.
	handshakeTime = 10 * time.Second
)

// listener queues accepted streams of one port.
type listener struct {
	node  *Node
	port  uint16
	queue chan *conn
	done  chan struct{}

	mu     sync.Mutex
	closed bool
}

var _ transports.Listener = (*listener)(nil)

// Accept waits for a stream; net.ErrClosed after Close or the end of Run.
func (l *listener) Accept() (transports.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: Network, Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Addr is this node with the listener's port.
func (l *listener) Addr() transports.Addr { return l.node.public.addr(l.port) }

// Close frees the port and resets streams that nobody has accepted.
func (l *listener) Close() error {
	if !l.shut() {
		return &net.OpError{Op: "close", Net: Network, Addr: l.Addr(), Err: net.ErrClosed}
	}
	l.node.mu.Lock()
	defer l.node.mu.Unlock()
	delete(l.node.listeners, l.port)
	return nil
}

// shut ends Accept and empties the queue; false when that was done before.
func (l *listener) shut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.closed = true
	close(l.done)
	for {
		select {
		case c := <-l.queue:
			c.abort()
		default:
			return true
		}
	}
}

// offer queues c; false when the listener is closed or its queue is full.
func (l *listener) offer(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	select {
	case l.queue <- c:
		return true
	default:
		return false
	}
}

// Listen accepts streams on a port of this node's address.
func (n *Node) Listen(port uint16) (transports.Listener, error) {
	if port == 0 {
		return nil, fmt.Errorf("listen %s: port 0: name the port, there is nobody to tell a chosen one", Network)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == stateEnded {
		return nil, fmt.Errorf("listen %s port %d: node has ended: %w", Network, port, net.ErrClosed)
	}
	if n.listeners[port] != nil {
		return nil, fmt.Errorf("listen %s port %d: already listened on", Network, port)
	}
	l := &listener{node: n, port: port, queue: make(chan *conn, backlog), done: make(chan struct{})}
	n.listeners[port] = l
	return l, nil
}

// takeSYN completes the handshake of one stream that the bridge has admitted
// and queues it on its listener. It runs in a goroutine of its own, at most
// maxHandshakes at a time.
func (n *Node) takeSYN(s *stack.Stack, req *tcp.ForwarderRequest) {
	id := req.ID()
	n.mu.Lock()
	l := n.listeners[id.LocalPort]
	n.mu.Unlock()
	if l == nil {
		req.Complete(true)
		return
	}
	r := n.table.ip(id.RemoteAddress.As16())
	if r == nil {
		req.Complete(false)
		return
	}
	c, err := n.shakeHands(s, req, r)
	if err != nil {
		req.Complete(false)
		n.log.Debug("stream refused", "peer", r.key.addr(0).Node, "port", id.LocalPort, "err", err)
		return
	}
	// Only now may another SYN with the same ports count as a new one.
	req.Complete(false)
	if !l.offer(c) {
		c.abort()
		n.log.Warn("stream reset: too many wait to be accepted", "peer", c.remote.Node, "port", id.LocalPort)
	}
}

func (n *Node) shakeHands(s *stack.Stack, req *tcp.ForwarderRequest, r *remote) (*conn, error) {
	defer r.pending.Add(-1)
	if r.pending.Add(1) > maxPending {
		return nil, fmt.Errorf("%d handshakes of this node are pending", maxPending)
	}
	if r.inbound.Add(1) > maxInbound {
		r.inbound.Add(-1)
		return nil, fmt.Errorf("%d streams of this node are open", maxInbound)
	}
	drop := r.hold()
	release := func() { r.inbound.Add(-1); drop() }

	id := req.ID()
	late := time.AfterFunc(handshakeTime, func() {
		if ep := s.FindTransportEndpoint(ipv6.ProtocolNumber, tcp.ProtocolNumber, id, nic); ep != nil {
			ep.Abort()
		}
	})
	defer late.Stop()
	var wq waiter.Queue
	ep, err := req.CreateEndpoint(&wq)
	if err != nil {
		release()
		return nil, fmt.Errorf("handshake: %s", err)
	}
	c, kerr := n.newConn(&wq, ep, r, id.LocalPort, id.RemotePort, release)
	if kerr != nil {
		ep.Abort()
		release()
		return nil, kerr
	}
	return c, nil
}

// newConn wraps an established endpoint.
func (n *Node) newConn(wq *waiter.Queue, ep tcpip.Endpoint, r *remote, port, remotePort uint16, release func()) (*conn, error) {
	if err := setKeepalive(ep); err != nil {
		return nil, fmt.Errorf("set keepalive: %w", err)
	}
	c := &conn{
		TCPConn: gonet.NewTCPConn(wq, ep), ep: ep, far: r,
		local: n.public.addr(port), remote: r.key.addr(remotePort), release: release, opened: time.Now(),
	}
	r.attach(c)
	return c, nil
}
