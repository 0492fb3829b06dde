package s2s

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/localca"
)

// Streams are all streams with the local servers, in both directions. Both are
// in one place because dialback in one direction needs a stream in the other.
type Streams struct {
	listen  string
	ca      *localca.CA
	servers map[string]*Server // by domain; "" takes the others
	allowed []netip.Prefix
	handler Handler
	limits  Limits
	log     *slog.Logger
	metrics *metrics
	secret  dialbackSecret
	waiting waitingRoom
	inUse   chan struct{} // one element for each inbound stream
	strange rate.Sometimes

	mu   sync.Mutex      // taken last
	life context.Context // of Run; nil before and after
	work sync.WaitGroup  // goroutines within life
	addr net.Addr        // where Run listens

	inMu sync.Mutex
	in   map[*inbound]time.Time // open ones, since when
	lost map[string]int         // domains whose server is watched, with how often it was lost

	outMu sync.Mutex // taken before that of an outbound
	out   map[pair]*outbound
}

// New checks the configuration and does nothing yet.
func New(c Config) (*Streams, error) {
	if c.CA == nil || c.Handler == nil || len(c.Servers) == 0 {
		return nil, errors.New("s2s: a CA, a handler and a local server must be configured")
	}
	m, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, fmt.Errorf("s2s metrics: %w", err)
	}
	s := &Streams{
		listen: c.Listen, ca: c.CA, handler: c.Handler, limits: c.Limits.orDefault(),
		servers: map[string]*Server{}, allowed: slices.Clone(c.AllowFrom),
		log: cmp.Or(c.Log, slog.Default()).With("proto", string(federation.XMPP)), metrics: m,
		secret: newDialbackSecret(), in: map[*inbound]time.Time{}, lost: map[string]int{}, out: map[pair]*outbound{},
		strange: rate.Sometimes{First: 3, Interval: time.Minute},
	}
	s.waiting.max = s.limits.Handshakes
	s.inUse = make(chan struct{}, s.limits.Streams)
	for _, server := range c.Servers {
		if err := s.addServer(server); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Streams) addServer(server Server) error {
	host, _, err := net.SplitHostPort(server.Addr)
	if err != nil {
		return fmt.Errorf("local server %q: want host:port: %w", server.Addr, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		s.allowed = append(s.allowed, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
	}
	domains := server.Domains
	if len(domains) == 0 {
		domains = []string{""}
	}
	for _, d := range domains {
		if other := s.servers[d]; other != nil {
			return fmt.Errorf("local servers %s and %s both have the domain %q", other.Addr, server.Addr, d)
		}
		s.servers[d] = &server
	}
	return nil
}

func (s *Streams) serverOf(domain string) *Server {
	if server := s.servers[domain]; server != nil {
		return server
	}
	return s.servers[""]
}

func (l Limits) orDefault() Limits {
	d := DefaultLimits()
	return Limits{
		Handshake: cmp.Or(l.Handshake, d.Handshake), Handshakes: cmp.Or(l.Handshakes, d.Handshakes),
		Streams: cmp.Or(l.Streams, d.Streams), Stanza: cmp.Or(l.Stanza, d.Stanza),
		Queue: cmp.Or(l.Queue, d.Queue), Wait: cmp.Or(l.Wait, d.Wait), Write: cmp.Or(l.Write, d.Write),
		Ack: cmp.Or(l.Ack, d.Ack), Unsettled: cmp.Or(l.Unsettled, d.Unsettled),
		Idle: cmp.Or(l.Idle, d.Idle), Backoff: cmp.Or(l.Backoff, d.Backoff),
		goodbye: cmp.Or(l.goodbye, goodbye),
	}
}

// Run listens for the local servers until ctx ends, and then ends every stream:
// what Send has taken and not written goes to Handler.Failed before Run returns.
// Handler.Stanzas gets what the servers still send then, for a moment (goodbye).
// It is called once.
func (s *Streams) Run(ctx context.Context) error {
	config := net.ListenConfig{KeepAliveConfig: keepAlive}
	l, err := config.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return fmt.Errorf("s2s: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.begin(ctx, l.Addr())
	defer s.finish(cancel)
	// Accept fails before Close has returned, and the port is free only then: the
	// next life of the edge wants it at once. Whoever comes second here waits.
	closeListener := sync.OnceFunc(func() { l.Close() })
	defer closeListener()
	defer context.AfterFunc(ctx, closeListener)()
	return s.accept(ctx, l.(*net.TCPListener))
}

// accept takes connections until ctx is done, then returns nil.
func (s *Streams) accept(ctx context.Context, l interface {
	AcceptTCP() (*net.TCPConn, error)
}) error {
	for {
		conn, err := l.AcceptTCP()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("s2s: %w", err)
		case err != nil:
			// Out of descriptors, or the like: it passes, and the streams that
			// are open must not suffer for it.
			s.log.Error("accept s2s connection", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		if !s.mayConnect(conn.RemoteAddr()) || !s.spawn(func(ctx context.Context) { s.serve(ctx, conn) }) {
			conn.Close()
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

func (s *Streams) begin(ctx context.Context, addr net.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.life, s.addr = ctx, addr
}

func (s *Streams) finish(cancel context.CancelFunc) {
	cancel()
	s.mu.Lock()
	s.life = nil
	s.mu.Unlock()
	s.work.Wait()
}

// spawn runs f within Run; false means that Run does not.
func (s *Streams) spawn(f func(context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx := s.life
	if ctx == nil {
		return false
	}
	s.work.Go(func() { f(ctx) })
	return true
}

// Addr is where Run listens, nil while it does not yet.
func (s *Streams) Addr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addr
}

func (s *Streams) mayConnect(from net.Addr) bool {
	tcp, ok := from.(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.IsLoopback() || slices.ContainsFunc(s.allowed, func(p netip.Prefix) bool { return p.Contains(ip) }) {
		return true
	}
	s.metrics.handshake(dirIn, "address")
	s.strange.Do(func() {
		s.log.Warn("s2s connection refused: its address is not that of a configured local server", "remote", from)
	})
	return false
}

// Send queues stanzas of a peer domain for the local server of the domain to, in
// order, and opens a stream where there is none. The stanzas belong to Streams
// from then on; each is written or given to Handler.Failed. While the queue is
// full Send blocks, at most for Limits.Wait. After an error (ErrDown, ErrFull,
// ErrNoServer, ErrStopped or that of ctx) none was taken. Domains are normalised,
// and that from belongs to an approved peer has been checked.
func (s *Streams) Send(ctx context.Context, from, to string, stanzas ...[]byte) error {
	if len(stanzas) == 0 {
		return nil
	}
	_, err := s.enqueue(ctx, pair{from, to}, stanzas, nil)
	return err
}

// enqueue does what Send promises, for a Hand too.
func (s *Streams) enqueue(ctx context.Context, p pair, stanzas [][]byte, h *hand) (*outbound, error) {
	var tooLong <-chan time.Time
	for {
		o, err := s.outbound(p)
		if err != nil {
			return nil, err
		}
		room, err := o.put(stanzas, size(stanzas), h)
		switch {
		case errors.Is(err, errForgotten):
			continue
		case room == nil:
			return o, err
		}
		if tooLong == nil {
			wait := time.NewTimer(s.limits.Wait)
			defer wait.Stop()
			tooLong = wait.C
		}
		select {
		case <-room:
		case <-tooLong:
			return nil, ErrFull
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *Streams) outbound(p pair) (*outbound, error) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if o := s.out[p]; o != nil {
		return o, nil
	}
	if s.serverOf(p.to) == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoServer, p.to)
	}
	for other, o := range s.out { // pairs come and go with peers and rooms
		if o.forget() {
			delete(s.out, other)
		}
	}
	o := &outbound{s: s, pair: p, wake: make(chan struct{}, 1), log: s.log.With("dir", dirOut, "domain", p.from, "to", p.to)}
	s.out[p] = o
	return o, nil
}

// serverUp is called when the server of a domain has come to us: what failed to
// reach it need not wait any longer.
func (s *Streams) serverUp(domain string) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	for p, o := range s.out {
		if p.to == domain {
			o.serverUp()
		}
	}
}

// serverLost tells the handler that the server of a domain is gone, and then, once,
// that it is back: it may have been cut off, and its users there all the while, of
// whom it says nothing new. It returns when that is known or ctx is done.
func (s *Streams) serverLost(ctx context.Context, domain string) {
	s.log.Warn("the local server has died, or cannot be reached any more", "domain", domain)
	s.handler.LocalLost(domain)
	s.inMu.Lock()
	s.lost[domain]++
	watched := s.lost[domain] > 1
	s.inMu.Unlock()
	for !watched && ctx.Err() == nil {
		pause(ctx, s.limits.Backoff) // it was asked a moment ago
		s.inMu.Lock()
		times := s.lost[domain]
		s.inMu.Unlock()
		if !answers(ctx, s.serverOf(domain).Addr, domain, s.limits.Write) {
			continue
		}
		s.inMu.Lock()
		if watched = s.lost[domain] == times; watched { // else it was lost anew
			delete(s.lost, domain)
		}
		s.inMu.Unlock()
		if watched {
			s.serverUp(domain)
			s.handler.LocalBack(domain)
		}
	}
}
