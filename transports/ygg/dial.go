package ygg

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/yggate/yggate/transports"
)

const (
	// warm is how recently a node must have been heard for a SYN to go out
	// without waiting for an answer to a probe.
	warm = 2 * time.Second
	// blindAfter is when SYNs start to be tried at a node that answers no
	// probes: it may be a stock one.
	blindAfter = time.Second
	// blindTime is how long such a try lasts, two SYNs. The netstack would
	// space further ones ever wider.
	blindTime = 2 * time.Second
	// provenTime is how long a try lasts once the path has answered.
	provenTime = 8 * time.Second
	// answerGrace is how long the first SYN that should arrive has before a further
	// answer to a probe, which has overtaken it, has a fresh one replace it. The
	// netstack itself would wait for a second, then for two. Each later one has
	// twice as long, since the way may be slow.
	answerGrace = 250 * time.Millisecond
)

// parseNode reads a node's name: the 64 hex digits of its public key.
func parseNode(node string) (publicKey, error) {
	b, err := hex.DecodeString(node)
	if err != nil || len(b) != len(publicKey{}) || strings.ToLower(node) != node {
		return publicKey{}, fmt.Errorf("node %.80q: want the 64 lower-case hex digits of its public key", node)
	}
	return publicKey(b), nil
}

// Dial opens a stream to a service of another node. It probes the node until it
// answers and only then sends a SYN, so that the stream opens within a few round
// trips of the path; at nodes that answer no probe it tries SYNs as well.
func (n *Node) Dial(ctx context.Context, to transports.Addr) (transports.Conn, error) {
	c, err := n.dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", to, err)
	}
	return c, nil
}

func (n *Node) dial(ctx context.Context, to transports.Addr) (*conn, error) {
	if to.Net != Network {
		return nil, fmt.Errorf("network %q: this transport dials %q only", to.Net, Network)
	}
	if to.Port == 0 {
		return nil, errors.New("port 0: name the port of the service")
	}
	key, err := parseNode(to.Node)
	if err != nil {
		return nil, err
	}
	if key == n.public {
		return nil, errors.New("that is this node itself")
	}
	select {
	case <-n.ready:
	case <-n.ended:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("node is not running: %w", ctx.Err())
	}
	r, release, err := n.table.hold(key)
	if err != nil {
		return nil, err
	}
	d := dialer{node: n, remote: r, port: to.Port, release: release, tries: make(chan try), grace: answerGrace}
	c, err := d.run(ctx)
	if err != nil {
		release()
		return nil, err
	}
	return c, nil
}

// dialer is one Dial in progress. At most one try is under way at a time.
type dialer struct {
	node    *Node
	remote  *remote
	port    uint16
	release func()

	tries  chan try
	stop   context.CancelFunc // ends the try under way, nil when there is none
	serial int                // of the latest try

	answered bool          // the node has answered a probe
	proven   bool          // it has done so since the latest try began that relied on it
	patience time.Time     // until then no answer ends the try under way
	grace    time.Duration // that the next one is given
	sought   time.Time     // when the way was last looked for, once that is rare
}

type try struct {
	serial int
	conn   *conn
	err    error
}

// drop ends a stream that nobody waits for any more. The hold on the node is the
// dial's, not this try's.
func (t try) drop() {
	if t.conn != nil {
		t.conn.far.detach(t.conn)
		t.conn.ep.Abort()
	}
}

func (d *dialer) run(ctx context.Context) (*conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answer := d.remote.nextAnswer()
	began := time.Now()
	d.node.lookForWay(d.remote)
	if err := d.ask(began); err != nil {
		return nil, err
	}
	probe := time.NewTicker(fastProbe)
	defer probe.Stop()
	// next is when the try under way is given up for a fresh one.
	next := time.NewTimer(blindAfter)
	defer next.Stop()
	if d.remote.heardWithin(warm) {
		d.begin(ctx)
		d.patience = began.Add(d.grace)
		next.Reset(blindTime)
	}
	for {
		select {
		case <-ctx.Done():
			return nil, d.why(ctx.Err())
		case <-d.node.ended:
			return nil, net.ErrClosed
		case <-probe.C:
			if err := d.ask(began); err != nil {
				return nil, err
			}
		case <-answer:
			answer = d.remote.nextAnswer()
			d.answered, d.proven = true, true
			// A try that has only just begun may still succeed.
			if time.Now().After(d.patience) {
				next.Reset(0)
			}
		case <-next.C:
			next.Reset(d.try(ctx))
		case t := <-d.tries:
			if t.serial == d.serial {
				return t.conn, t.err
			}
			t.drop() // it came through as it was being given up
		}
	}
}

// try begins a try, if there is a way to the node, and says how long it may take
// unless an answer comes.
func (d *dialer) try(ctx context.Context) time.Duration {
	switch {
	case d.proven:
		d.proven = false // the next one needs another answer
		d.patience = time.Now().Add(d.grace)
		d.grace = min(2*d.grace, provenTime)
		d.begin(ctx)
		return provenTime
	case d.remote.found.Load():
		d.patience = time.Time{}
		d.begin(ctx)
		return blindTime
	}
	// A SYN would push aside what opens the session, or answers its opening.
	return fastProbe
}

// ask looks for the way to the node and, when there is one, probes it; see probe.go
// for how often.
func (d *dialer) ask(began time.Time) error {
	self, other := d.node.public, d.remote.key
	interval := slowProbe
	if time.Since(began) < fastTime || d.node.peeredWithin(fastTime) {
		if !d.answered {
			d.node.bridge.seek(other)
		}
		interval = fastProbe
		if bytes.Compare(self[:], other[:]) > 0 {
			interval = otherProbe
		}
	} else if !d.remote.found.Load() && time.Since(d.sought) >= slowProbe {
		d.sought = time.Now()
		d.node.bridge.seek(other)
	}
	if !d.remote.found.Load() {
		return nil
	}
	return d.node.bridge.probe(d.remote, interval)
}

// begin starts a try and ends the one before it.
func (d *dialer) begin(ctx context.Context) {
	if d.stop != nil {
		d.stop()
	}
	d.serial++
	serial := d.serial
	ctx, d.stop = context.WithCancel(ctx)
	go func() {
		c, err := d.node.connect(ctx, d.remote, d.port, d.release)
		select {
		case d.tries <- try{serial, c, err}:
		case <-ctx.Done():
			try{conn: c}.drop()
		}
	}()
}

// why says what the dial was waiting for when its time ran out.
func (d *dialer) why(err error) error {
	switch {
	case d.node.links.count() == 0:
		return fmt.Errorf("no peering of this node is up: %w", err)
	case d.answered || d.remote.heardWithin(warm):
		return fmt.Errorf("node answers, but not on this port: %w", err)
	}
	return fmt.Errorf("node does not answer (it is down, or has not approved this node): %w", err)
}

// connect makes one TCP connection and waits for it until ctx is done.
func (n *Node) connect(ctx context.Context, r *remote, port uint16, release func()) (*conn, error) {
	var wq waiter.Queue
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv6.ProtocolNumber, &wq)
	if terr != nil {
		return nil, fmt.Errorf("create endpoint: %s", terr)
	}
	entry, writable := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	terr = ep.Connect(fullAddress(r.ip, port))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		case <-writable:
		}
		terr = ep.LastError()
	}
	if terr != nil {
		ep.Close()
		return nil, connectError(terr)
	}
	local, terr := ep.GetLocalAddress()
	if terr != nil {
		ep.Abort()
		return nil, fmt.Errorf("local address: %s", terr)
	}
	c, err := n.newConn(&wq, ep, r, local.Port, port, release)
	if err != nil {
		ep.Abort()
		return nil, err
	}
	return c, nil
}

// connectError gives the netstack's errors the form that callers test for.
func connectError(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return fmt.Errorf("nothing listens on that port: %w", syscall.ECONNREFUSED)
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrConnectionReset, *tcpip.ErrConnectionAborted:
		return syscall.ECONNRESET
	}
	return errors.New(err.String())
}
