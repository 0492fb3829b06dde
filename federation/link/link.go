// Package link is the authenticated session between two gateways: HTTP/2 over
// mutual TLS 1.3 on any transport.
//
// Each gateway dials for what it sends, so a link is two connections, one a
// direction. Both ends prove their grid by a leaf certificate that the grid key
// signed (federation.VerifyChain), and the leaf must name the node address that
// the transport has authenticated. A peer counts as up only once it has answered
// a hello, and the hello is repeated as a heartbeat. Live requests, whose bodies
// may be long, go over a third and a fourth connection, which are there while they
// are needed, so that neither lanes nor hellos wait behind bodies.
//
// What a grid key may reach follows from the Directory at every moment:
//
//	active peer                    everything
//	unknown, pending, paused,
//	removed                        Config.Unknown, at UnknownPaths only
//	blocked, or a revoked node     nothing: the handshake fails
package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// Config is what a Links works with. Fields without a remark are required.
type Config struct {
	Directory *federation.Directory
	// Leaf gives this node's certificate chain for one of its own addresses. It
	// is asked at every handshake, so that a renewed leaf is used at once.
	Leaf func(self transports.Addr) (*tls.Certificate, error)
	// Transports by network name.
	Transports map[string]transports.Transport
	// Port is where gateways listen, the same on every node.
	Port uint16
	// Epoch grows with every start of this gateway.
	Epoch uint64
	// Software is shown to peers; may be empty.
	Software string
	// Lanes are the lanes that ServeLane knows; others are not found.
	Lanes []string
	// ServeLane works a lane stream that a peer opened until it ends.
	ServeLane func(ctx context.Context, peer *federation.Peer, name string, stream io.ReadWriteCloser) error
	// Unknown serves UnknownPaths, for peers as well as for unknown grid keys:
	// PeerFrom and ProofFrom tell them apart. nil: not found.
	Unknown http.Handler
	// OnState is told of every change of a link, per peer strictly in turn. It is
	// called before OpenLane first succeeds and after every stream has failed. It
	// must not wait for OpenLane. May be nil.
	OnState func(Event)
	// Timing of the zero value has defaults.
	Timing  Timing
	Log     *slog.Logger          // may be nil
	Metrics prometheus.Registerer // may be nil
}

// Event says that the link to a peer went up or down.
type Event struct {
	Peer federation.GridID
	Up   bool
	// Epoch is the peer's, of its hello.
	Epoch uint64
}

// Timing holds what slow networks need otherwise. With the defaults a dead link
// is found within 10 s at both ends.
type Timing struct {
	Handshake    time.Duration // accepting: until TLS is complete
	Dial         time.Duration // dialling: until the transport has a stream
	Hello        time.Duration // until a hello is answered
	Heartbeat    time.Duration // between hellos
	PingAfter    time.Duration // nothing heard on a connection: HTTP/2 ping
	Ping         time.Duration // ping unanswered: the connection is dead
	RedialMin    time.Duration // first pause after a failed dial
	RedialMax    time.Duration // longest pause
	RedialRecent time.Duration // longest pause while a peer was up within the last hour
	UnknownLife  time.Duration // of a connection from an unknown grid key
	LiveIdle     time.Duration // a connection for live requests that has none is closed
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Handshake, 10*time.Second)
	def(&t.Dial, 20*time.Second)
	def(&t.Hello, 5*time.Second)
	def(&t.Heartbeat, 3*time.Second)
	def(&t.PingAfter, 4*time.Second)
	def(&t.Ping, 4*time.Second)
	def(&t.RedialMin, time.Second)
	def(&t.RedialMax, 5*time.Minute)
	def(&t.RedialRecent, 5*time.Second)
	def(&t.UnknownLife, 30*time.Second)
	def(&t.LiveIdle, 2*time.Minute)
	return t
}

// Links holds the links to all peers.
type Links struct {
	cfg     Config
	log     *slog.Logger
	mux     *http.ServeMux // what peers reach
	client  *http.Transport
	gate    gate
	metrics *metrics
	paths   pathCache
	known   atomic.Pointer[map[string]struct{}] // node ids of active peers

	mu        sync.Mutex
	closed    bool
	inbound   map[*inbound]struct{}
	outbound  map[federation.GridID]*outbound
	learnt    map[federation.GridID][]transports.Addr          // proven by inbound connections
	epochs    map[federation.GridID]map[federation.Hash]uint64 // highest heard, per node of a peer
	accepting sync.WaitGroup
}

// New returns Links that Run sets to work.
func New(cfg Config) (*Links, error) {
	switch {
	case cfg.Directory == nil || cfg.Leaf == nil || cfg.ServeLane == nil:
		return nil, errors.New("new links: Directory, Leaf and ServeLane are required")
	case cfg.Port == 0:
		return nil, errors.New("new links: no port")
	case cfg.Epoch == 0:
		return nil, errors.New("new links: no epoch")
	}
	cfg.Timing = cfg.Timing.withDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Links{
		cfg: cfg, log: cfg.Log, mux: http.NewServeMux(),
		gate:     gate{perSource: map[string]int{}},
		inbound:  map[*inbound]struct{}{},
		outbound: map[federation.GridID]*outbound{},
		learnt:   map[federation.GridID][]transports.Addr{},
		epochs:   map[federation.GridID]map[federation.Hash]uint64{},
	}
	l.refreshKnownLocked(cfg.Directory.Now()) // nobody else has l yet
	l.client = newClient(cfg.Timing)
	l.metrics = newMetrics(cfg.Metrics, l)
	l.mux.HandleFunc("POST /v1/hello", l.serveHello)
	l.mux.HandleFunc("POST /v1/lane/{lane}", l.serveLane)
	if cfg.Unknown != nil {
		for _, path := range UnknownPaths {
			l.mux.Handle(path, cfg.Unknown)
		}
	}
	return l, nil
}

// Handle adds an endpoint that only active peers reach; call it before Run. The
// pattern is that of http.ServeMux. What is below /v1/http/ answers the live
// requests of peers (RoundTrip): the context of such a request ends when the peer
// gives it up or the connection is lost, and the handler must return soon after,
// because until then it counts against the peer's streams. Its answer has no
// trailers, and a header that is too large becomes 502 Bad Gateway.
func (l *Links) Handle(pattern string, h http.Handler) { l.mux.Handle(pattern, h) }

// Run accepts and keeps links until ctx is done, then closes them all and
// returns nil. It fails when a transport cannot be listened on.
func (l *Links) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for name, t := range l.cfg.Transports {
		g.Go(func() error {
			if err := l.listen(ctx, t); err != nil {
				return fmt.Errorf("listen on %s port %d: %w", name, l.cfg.Port, err)
			}
			return nil
		})
	}
	g.Go(func() error { return l.follow(ctx) })
	err := g.Wait()
	l.closeAll()
	return err
}

// follow makes live links agree with the directory until ctx is done.
func (l *Links) follow(ctx context.Context) error {
	changed, cancel := l.cfg.Directory.Subscribe()
	defer cancel()
	for {
		l.apply(ctx, l.cfg.Directory.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// apply closes what the snapshot no longer allows and starts what it newly does.
func (l *Links) apply(ctx context.Context, now *federation.Snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.refreshKnownLocked(now)
	for in := range l.inbound {
		if err := in.stillAllowed(now); err != nil {
			l.log.Info("link closed", "peer", in.label(), "dir", "in", "err", err)
			in.close()
		}
	}
	for id, o := range l.outbound {
		if p := now.Peer(id); p == nil || p.State != federation.StateActive {
			o.stop(errNotActive)
		} else {
			o.recheck(p)
			o.redirect(p, l.dialableLocked(p))
		}
	}
	for _, p := range now.Peers() {
		if p.State != federation.StateActive {
			continue
		}
		if o := l.outbound[p.ID]; o == nil || o.ctx.Err() != nil {
			l.outbound[p.ID] = l.startOutbound(ctx, p, o)
		}
	}
	for id, o := range l.outbound {
		select {
		case <-o.done:
			delete(l.outbound, id)
		default:
		}
	}
	for id := range l.learnt {
		if now.Peer(id) == nil {
			delete(l.learnt, id)
		}
	}
	for id := range l.epochs {
		if now.Peer(id) == nil {
			delete(l.epochs, id)
		}
	}
}

// closeAll ends every connection and waits for what worked on it.
func (l *Links) closeAll() {
	l.mu.Lock()
	l.closed = true
	for in := range l.inbound {
		in.close()
	}
	var out []*outbound
	for _, o := range l.outbound {
		o.stop(errShutdown)
		out = append(out, o)
	}
	l.mu.Unlock()
	for _, o := range out {
		<-o.done
	}
	l.accepting.Wait()
}

// Wake makes the link to a peer, if it is down, be dialled now.
func (l *Links) Wake(peer federation.GridID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.outbound[peer]
	if o == nil {
		return
	}
	o.wakeUp()
	if p := l.cfg.Directory.Now().Peer(peer); p != nil {
		o.redirect(p, l.dialableLocked(p))
	}
}

var (
	errNotActive = errors.New("the peer is no longer active here")
	errShutdown  = errors.New("yggate is shutting down")
)
