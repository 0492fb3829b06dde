package link

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// Bounds of what is not, or not yet, a peer.
const (
	maxHandshakes       = 64 // at a time, from nodes of nobody
	maxHandshakesKnown  = 64 // at a time, from nodes of active peers: strangers cannot keep those out
	maxHandshakesSource = 4  // at a time, from one node
	maxUnknown          = 16 // connections of unknown grid keys
	maxUnknownSource    = 4  // of them from one node; who pairs makes three in turn, whose ends may be seen late
	maxPeerInbound      = 2  // connections of one peer, as while it brings a descriptor; a new one ends an old one
	maxPeerLive         = 1  // beside them, for live requests; likewise
	maxLearnt           = 4  // addresses remembered per peer
	maxEpochs           = 64 // nodes of one peer whose epoch is remembered

	acceptPause = 100 * time.Millisecond
	// closedPause is how long a transport that fails may take to say why, from when it
	// has closed its listeners.
	closedPause = 10 * time.Second
	// After a refusal the far end has a moment to read why. Closing at once would
	// reset the connection under the alert, because its request is on the way.
	lingerTime  = time.Second
	lingerBytes = 64 << 10
)

// gate counts handshakes in progress.
type gate struct {
	mu        sync.Mutex
	known     int
	unknown   int
	perSource map[string]int
}

func (g *gate) enter(source string, known bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	count, most := &g.unknown, maxHandshakes
	if known {
		count, most = &g.known, maxHandshakesKnown
	}
	if *count >= most || g.perSource[source] >= maxHandshakesSource {
		return false
	}
	*count++
	g.perSource[source]++
	return true
}

func (g *gate) leave(source string, known bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known {
		g.known--
	} else {
		g.unknown--
	}
	if g.perSource[source]--; g.perSource[source] == 0 {
		delete(g.perSource, source)
	}
}

// inbound is a connection that a far end has opened and proven itself on.
type inbound struct {
	conn    *tls.Conn
	raw     transports.Conn
	remote  transports.Addr
	proof   federation.Proof
	peer    federation.GridID // empty: an unknown grid key
	name    string            // the peer's, for people
	live    bool              // for live requests only
	greeted bool              // has said hello: a link, and no visit; needs Links.mu
	streams int
	opened  time.Time
	once    sync.Once
	done    chan struct{}
	life    *time.Timer
}

func (in *inbound) label() string {
	if in.peer == "" {
		return "unknown " + in.proof.Grid.Short()
	}
	return in.name
}

// close cuts the connection. It does not say goodbye: that could block on a far
// end that does not read.
func (in *inbound) close() { in.raw.Close() }

func (in *inbound) ended() { in.once.Do(func() { close(in.done) }) }

// stillAllowed says why the connection must end, if it must.
func (in *inbound) stillAllowed(now *federation.Snapshot) error {
	p, err := welcome(now, in.proof)
	switch {
	case err != nil:
		return err
	case in.peer == "":
		return nil // reaches UnknownPaths only, and not for long
	case p == nil || p.ID != in.peer:
		return errNotActive
	case streamsOf(p.Policy.Limits) != in.streams:
		return errors.New("the peer's limit of streams has changed")
	}
	return nil
}

// listen accepts on one transport until ctx is done.
func (l *Links) listen(ctx context.Context, t transports.Transport) error {
	ln, err := t.Listen(l.cfg.Port)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	// Accept fails before Close has returned, and the port is free only then: the
	// next life of the edge wants it at once. Whoever comes second here waits.
	closeListener := sync.OnceFunc(func() { ln.Close() })
	defer closeListener()
	defer context.AfterFunc(ctx, closeListener)()
	for {
		conn, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return l.listenerClosed(ctx, err)
			}
			l.log.Warn("accept failed", "transport", ln.Addr().Net, "err", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(acceptPause):
			}
			continue
		}
		l.admit(ctx, conn, ln.Addr())
	}
}

// listenerClosed says whether a listener that closed is a fault. When all ends, the
// transport may hear of it a moment sooner than this; and when the transport fails, it
// is its error that the operator needs, and not that there is no listener any more.
func (l *Links) listenerClosed(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(closedPause):
		return fmt.Errorf("accept: %w", err)
	}
}

// admit starts work on a new connection if there is room for it.
func (l *Links) admit(ctx context.Context, conn transports.Conn, self transports.Addr) {
	remote := conn.Remote()
	source := remote.ID()
	_, known := (*l.known.Load())[source]
	if !l.gate.enter(source, known) {
		l.metrics.refused.WithLabelValues("too_many_handshakes").Inc()
		conn.Close()
		return
	}
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.accepting.Add(1)
	}
	l.mu.Unlock()
	if closed {
		l.gate.leave(source, known)
		conn.Close()
		return
	}
	go func() {
		defer l.accepting.Done()
		defer conn.Close()
		in, err := l.handshake(ctx, conn, self)
		l.gate.leave(source, known)
		if err != nil {
			l.metrics.refused.WithLabelValues("handshake").Inc()
			l.log.Info("connection refused", "transport", remote.Net, "node", remote.Node, "err", err)
			return
		}
		l.serveInbound(in)
	}()
}

// handshake completes TLS in bounded time.
func (l *Links) handshake(ctx context.Context, conn transports.Conn, self transports.Addr) (*inbound, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timing.Handshake)
	defer cancel()
	in := &inbound{raw: conn, remote: conn.Remote(), opened: time.Now(), done: make(chan struct{})}
	in.conn = tls.Server(conn, l.serverTLS(self, in.remote, &in.proof))
	if err := in.conn.HandshakeContext(ctx); err != nil {
		if ctx.Err() == nil {
			linger(ctx, conn)
		}
		return nil, fmt.Errorf("handshake: %w", err)
	}
	// The directory may have changed since the handshake looked at it; from
	// here on apply sees the connection.
	if err := l.register(in); err != nil {
		return nil, err
	}
	return in, nil
}

// linger reads what the far end has sent meanwhile, until it closes.
func linger(ctx context.Context, conn net.Conn) {
	end := time.Now().Add(lingerTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if conn.SetReadDeadline(end) == nil {
		// Whatever ends this, the connection is closed next.
		_, _ = io.CopyN(io.Discard, conn, lingerBytes)
	}
}

// register makes the connection known, in place of older ones of the peer.
func (l *Links) register(in *inbound) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return errShutdown
	}
	p, err := welcome(l.cfg.Directory.Now(), in.proof)
	if err != nil {
		return err
	}
	in.live = p != nil && in.conn.ConnectionState().ServerName == liveName
	most := maxPeerInbound
	if in.live {
		most = maxPeerLive
	}
	var same []*inbound
	unknown, unknownSource := 0, 0
	for other := range l.inbound {
		switch {
		case other.peer == "":
			unknown++
			if other.remote.ID() == in.remote.ID() { // its port is another each time
				unknownSource++
			}
		case p != nil && other.peer == p.ID && other.live == in.live:
			same = append(same, other)
		}
	}
	if p == nil {
		if unknown >= maxUnknown || unknownSource >= maxUnknownSource {
			return errors.New("too many connections of unknown grid keys")
		}
		in.life = time.AfterFunc(l.cfg.Timing.UnknownLife, in.close)
	} else {
		in.peer, in.name, in.streams = p.ID, p.Name, streamsOf(p.Policy.Limits)
		in.life = time.AfterFunc(untilExpiry(in.conn), in.close)
		slices.SortFunc(same, func(a, b *inbound) int {
			switch {
			case a.greeted == b.greeted:
				return a.opened.Compare(b.opened)
			case b.greeted: // who brings a descriptor does not end the link
				return -1
			}
			return 1
		})
		for _, other := range same[:max(0, len(same)+1-most)] {
			other.close()
		}
		l.learnLocked(in)
	}
	l.inbound[in] = struct{}{}
	return nil
}

// serveInbound works the connection until it ends.
func (l *Links) serveInbound(in *inbound) {
	defer func() {
		in.life.Stop()
		l.mu.Lock()
		delete(l.inbound, in)
		l.mu.Unlock()
	}()
	if in.peer != "" {
		l.log.Info("peer connected", "peer", in.name, "transport", in.remote.Net, "node", in.remote.Node, "dir", "in", "live", in.live)
		l.Wake(in.peer)
	}
	srv := l.server(in)
	// Serve hands the connection to a goroutine of its own and returns when the
	// listener has no more.
	if err := srv.Serve(&oneConn{in.conn}); !errors.Is(err, net.ErrClosed) {
		l.log.Warn("serve connection", "peer", in.label(), "err", err)
		return
	}
	<-in.done
	if in.peer != "" {
		l.log.Info("peer disconnected", "peer", in.name, "transport", in.remote.Net, "node", in.remote.Node, "dir", "in", "live", in.live)
	}
}

// learnLocked remembers where the peer was seen, newest first.
func (l *Links) learnLocked(in *inbound) {
	at := transports.Addr{Net: in.remote.Net, Node: in.remote.Node, Port: l.cfg.Port}
	known := slices.DeleteFunc(l.learnt[in.peer], func(a transports.Addr) bool { return a == at })
	known = slices.Insert(known, 0, at)
	l.learnt[in.peer] = known[:min(len(known), maxLearnt)]
	l.refreshKnownLocked(l.cfg.Directory.Now())
}

// refreshKnownLocked rebuilds the set of nodes that belong to active peers.
func (l *Links) refreshKnownLocked(now *federation.Snapshot) {
	known := map[string]struct{}{}
	for _, p := range now.Peers() {
		if p.State != federation.StateActive {
			continue
		}
		for _, a := range l.addressesLocked(p) {
			known[a.ID()] = struct{}{}
		}
	}
	l.known.Store(&known)
}

// addressesLocked are the node addresses of a peer in the order to try them.
func (l *Links) addressesLocked(p *federation.Peer) []transports.Addr {
	var addrs []transports.Addr
	if p.Descriptor != nil {
		addrs = p.Descriptor.Addrs()
	}
	for _, a := range l.learnt[p.ID] {
		if !slices.ContainsFunc(addrs, func(b transports.Addr) bool { return a.ID() == b.ID() }) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Leaves are checked when a connection is made. One that outlives the far end's
// leaf by this much is made anew, so that a node that can no longer get a leaf
// does not stay.
const expiryGrace = time.Hour

func untilExpiry(conn *tls.Conn) time.Duration {
	leaf := conn.ConnectionState().PeerCertificates[0]
	return max(time.Until(leaf.NotAfter)+expiryGrace, expiryGrace)
}

// sameKey says whether a connection was proven with the peer's current key.
func sameKey(proof federation.Proof, key ed25519.PublicKey) bool { return proof.Key.Equal(key) }
