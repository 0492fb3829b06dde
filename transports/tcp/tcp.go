// Package tcp is a transport over loopback TCP, for tests. A node's identity
// is an IP literal within 127/8, which proves nothing: whoever may bind to an
// address is that node. It therefore refuses every other address, so that it
// cannot be put to use between machines.
package tcp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/yggate/yggate/transports"
)

// Network is the name of this network in a transports.Addr.
const Network = "tcp"

// backlog is how many streams may wait for Accept, per listener.
const backlog = 64

// Config says who a node is.
type Config struct {
	// IP is the node's identity, a literal within 127/8.
	IP string
	// Accept decides which nodes may open streams to this one; nil allows all.
	Accept func(from transports.Addr) bool
}

// Transport is one node.
type Transport struct {
	cfg   Config
	ip    netip.Addr
	ready chan struct{} // closed when Run starts
	ended chan struct{} // closed when Run is over

	mu      sync.Mutex
	started bool
	closed  bool
	open    map[interface{ Close() error }]struct{}
}

var _ transports.Transport = (*Transport)(nil)

// loopback is all that this transport speaks to.
var loopback = netip.MustParsePrefix("127.0.0.0/8")

func parseIP(node string) (netip.Addr, error) {
	ip, err := netip.ParseAddr(node)
	if err != nil || !loopback.Contains(ip) {
		return netip.Addr{}, fmt.Errorf("node %.80q: want an IP address within %v; this transport is for tests on one machine", node, loopback)
	}
	return ip, nil
}

// New checks the configuration.
func New(cfg Config) (*Transport, error) {
	ip, err := parseIP(cfg.IP)
	if err != nil {
		return nil, fmt.Errorf("configure %s: %w", Network, err)
	}
	return &Transport{
		cfg: cfg, ip: ip, ready: make(chan struct{}), ended: make(chan struct{}),
		open: map[interface{ Close() error }]struct{}{},
	}, nil
}

// Self is this node's address, Port zero.
func (t *Transport) Self() transports.Addr { return transports.Addr{Net: Network, Node: t.ip.String()} }

// Run works until ctx is done and then closes every stream and listener.
func (t *Transport) Run(ctx context.Context) error {
	t.mu.Lock()
	if t.started {
		t.mu.Unlock()
		return fmt.Errorf("run %s: a transport runs once; make a new one", Network)
	}
	t.started = true
	t.mu.Unlock()
	close(t.ready)
	<-ctx.Done()

	t.mu.Lock()
	t.closed = true
	open := t.open
	t.open = nil
	t.mu.Unlock()
	close(t.ended)
	var errs []error
	for c := range open {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("run %s: %w", Network, err)
	}
	return nil
}

// track remembers what the end of Run has to close; false when it is over.
func (t *Transport) track(c interface{ Close() error }) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.open[c] = struct{}{}
	}
	return !t.closed
}

func (t *Transport) forget(c interface{ Close() error }) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// Dial opens a stream from this node's own IP address.
func (t *Transport) Dial(ctx context.Context, to transports.Addr) (transports.Conn, error) {
	c, err := t.dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return c, nil
}

func (t *Transport) dial(ctx context.Context, to transports.Addr) (transports.Conn, error) {
	if to.Net != Network {
		return nil, fmt.Errorf("network %q: this transport dials %q only", to.Net, Network)
	}
	if to.Port == 0 {
		return nil, errors.New("port 0: name the port of the service")
	}
	ip, err := parseIP(to.Node)
	if err != nil {
		return nil, err
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		return nil, fmt.Errorf("transport is not running: %w", ctx.Err())
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: t.ip.AsSlice()}}
	nc, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(ip, to.Port).String())
	if err != nil {
		return nil, err
	}
	c := &conn{TCPConn: nc.(*net.TCPConn), t: t, remote: to}
	if !t.track(c) {
		return nil, errors.Join(net.ErrClosed, nc.Close())
	}
	return c, nil
}

// Status says that the loopback interface is up.
func (t *Transport) Status() transports.Status { return transports.Status{Self: t.Self(), Up: true} }

// conn is one stream.
type conn struct {
	*net.TCPConn
	t      *Transport
	remote transports.Addr
}

// Remote is the far end's IP address and port.
func (c *conn) Remote() transports.Addr { return c.remote }

func (c *conn) Close() error {
	c.t.forget(c)
	return c.TCPConn.Close()
}

// Listen accepts streams on a port of this node's IP address.
func (t *Transport) Listen(port uint16) (transports.Listener, error) {
	if port == 0 {
		return nil, fmt.Errorf("listen %s: port 0: name the port, there is nobody to tell a chosen one", Network)
	}
	nl, err := net.Listen("tcp", net.JoinHostPort(t.ip.String(), strconv.Itoa(int(port))))
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", Network, err)
	}
	l := &listener{TCPListener: nl.(*net.TCPListener), t: t, port: port}
	if err := l.setBacklog(); err != nil {
		return nil, fmt.Errorf("listen %s: %w", Network, errors.Join(err, nl.Close()))
	}
	if !t.track(l) {
		return nil, fmt.Errorf("listen %s: transport has ended: %w", Network, errors.Join(net.ErrClosed, nl.Close()))
	}
	return l, nil
}

type listener struct {
	*net.TCPListener
	t    *Transport
	port uint16
}

// setBacklog calls listen(2) once more, which changes the length of the queue.
// Package net asks for the longest there is.
func (l *listener) setBacklog() error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := raw.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), backlog) }); err != nil {
		return err
	}
	return lerr
}

// Accept waits for a stream and resets those that are refused; net.ErrClosed
// after Close or the end of Run.
func (l *listener) Accept() (transports.Conn, error) {
	for {
		nc, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		from := nc.RemoteAddr().(*net.TCPAddr).AddrPort()
		c := &conn{TCPConn: nc, t: l.t, remote: transports.Addr{Net: Network, Node: from.Addr().Unmap().String(), Port: from.Port()}}
		if l.admit(c) && l.t.track(c) {
			return c, nil
		}
		c.reset()
	}
}

func (l *listener) admit(c *conn) bool {
	if _, err := parseIP(c.remote.Node); err != nil {
		return false
	}
	return l.t.cfg.Accept == nil || l.t.cfg.Accept(transports.Addr{Net: Network, Node: c.remote.Node})
}

// reset closes a stream that nobody has seen; the far end gets an RST.
func (c *conn) reset() {
	// Errors would be the far end's, which is gone either way.
	_ = c.SetLinger(0)
	_ = c.Close()
}

// Addr is this node with the listener's port.
func (l *listener) Addr() transports.Addr {
	return transports.Addr{Net: Network, Node: l.t.ip.String(), Port: l.port}
}

// Close frees the port and resets streams that nobody has accepted.
func (l *listener) Close() error {
	l.t.forget(l)
	return l.TCPListener.Close()
}
