package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// dialStagger is how long the first address of a peer has before the next is
// tried beside it.
const dialStagger = 2 * time.Second

// pinned is one HTTP/2 connection to a gateway that has proven a grid key.
type pinned struct {
	cc    *http.ClientConn
	tls   *tls.Conn
	raw   transports.Conn
	addr  transports.Addr
	proof federation.Proof
}

// close ends the connection and all requests on it at once.
func (c *pinned) close() {
	// Nothing is left to lose on either; the second makes the first quick.
	_ = c.cc.Close()
	_ = c.raw.Close()
}

// requestURL is the URL of a path on the gateway at the far end.
func requestURL(path string) string { return "https://" + authority + path }

// DialPinned connects to the gateway at addr, which must prove the grid key. An
// addr without a Port gets the configured one. What the gateway lets this grid
// reach shows only in its answers: a refusal comes with the first RoundTrip, and
// Explain puts it into words. The caller closes the connection.
func (l *Links) DialPinned(ctx context.Context, addr transports.Addr, grid ed25519.PublicKey) (*http.ClientConn, tls.ConnectionState, error) {
	c, err := l.dial(ctx, addr, grid, "")
	if err != nil {
		return nil, tls.ConnectionState{}, err
	}
	return c.cc, c.tls.ConnectionState(), nil
}

// dial is DialPinned; name says what the connection is for: liveName, or nothing.
func (l *Links) dial(ctx context.Context, addr transports.Addr, grid ed25519.PublicKey, name string) (*pinned, error) {
	if addr.Port == 0 {
		addr.Port = l.cfg.Port
	}
	t := l.cfg.Transports[addr.Net]
	if t == nil {
		return nil, fmt.Errorf("dial %s: this gateway has no transport %q", addr, addr.Net)
	}
	dialCtx, cancel := context.WithTimeout(ctx, l.cfg.Timing.Dial)
	defer cancel()
	raw, err := t.Dial(dialCtx, addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	c := &pinned{raw: raw, addr: addr}
	c.tls = tls.Client(raw, l.clientTLS(t.Status().Self, raw.Remote(), grid, name, &c.proof))
	tlsCtx, cancel := context.WithTimeout(ctx, l.cfg.Timing.Handshake)
	defer cancel()
	if err := c.tls.HandshakeContext(tlsCtx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial %s: handshake: %w", addr, err)
	}
	if c.cc, err = l.clientConn(tlsCtx, c.tls); err != nil {
		raw.Close()
		return nil, fmt.Errorf("dial %s: %w", addr, explain(c.tls, err))
	}
	return c, nil
}

// greet says hello and waits for the answer.
func (l *Links) greet(ctx context.Context, c *pinned, p *federation.Peer) (*Hello, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timing.Hello)
	defer cancel()
	body, err := json.Marshal(l.hello(p))
	if err != nil {
		return nil, 0, fmt.Errorf("hello: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, requestURL("/v1/hello"), bytes.NewReader(body))
	if err != nil {
		return nil, 0, fmt.Errorf("hello: %w", err)
	}
	start := time.Now()
	res, err := c.cc.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, 0, fmt.Errorf("hello: no answer within %v: %w", l.cfg.Timing.Hello, err)
		}
		return nil, 0, fmt.Errorf("hello: %w", explain(c.tls, err))
	}
	rtt := time.Since(start)
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("hello: %w: %s", errRefused, refusalText(res))
	}
	h, err := readHello(res.Body)
	if err != nil {
		return nil, 0, err
	}
	return h, rtt, nil
}

// refusalText is what a gateway said instead of yes, made fit for a log line and for a
// terminal, where other characters than printable ones could act.
func refusalText(res *http.Response) string {
	text, err := io.ReadAll(io.LimitReader(res.Body, 300))
	if err != nil || len(text) == 0 {
		return res.Status
	}
	return res.Status + ": " + strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(strings.ToValidUTF8(string(text), "")))
}

// addresses are the node addresses of a peer that this gateway can dial, in the order
// to try them.
func (l *Links) addresses(p *federation.Peer) []transports.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dialableLocked(p)
}

func (l *Links) dialableLocked(p *federation.Peer) []transports.Addr {
	return slices.DeleteFunc(l.addressesLocked(p), func(a transports.Addr) bool { return l.cfg.Transports[a.Net] == nil })
}

// connect dials a peer's addresses, the next one beside the first when that
// takes long, and returns the first connection on which a hello was answered.
func (l *Links) connect(ctx context.Context, p *federation.Peer, addrs []transports.Addr) (*session, error) {
	if len(addrs) == 0 {
		return nil, errNoAddress
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		s   *session
		err error
	}
	results := make(chan result)
	var (
		running int
		errs    []error
		won     *session
	)
	start := func() {
		addr := addrs[0]
		addrs = addrs[1:]
		running++
		go func() {
			s, err := l.connectTo(ctx, p, addr)
			results <- result{s, err}
		}()
	}
	start()
	for running > 0 {
		var stagger <-chan time.Time
		if won == nil && len(addrs) > 0 && ctx.Err() == nil {
			stagger = time.After(dialStagger)
		}
		select {
		case <-stagger:
			start()
		case r := <-results:
			running--
			switch {
			case r.err != nil:
				errs = append(errs, r.err)
				if won == nil && len(addrs) > 0 && ctx.Err() == nil {
					start()
				}
			case won != nil:
				r.s.end(errors.New("another address was quicker"))
			default:
				won = r.s
				cancel() // the others
			}
		}
	}
	if won == nil {
		return nil, errors.Join(errs...)
	}
	return won, nil
}

var errNoAddress = errors.New("no address known on a network that this gateway speaks; " +
	"it is learnt when the peer connects, or from its descriptor")

// connectTo dials one address.
func (l *Links) connectTo(ctx context.Context, p *federation.Peer, addr transports.Addr) (*session, error) {
	c, err := l.dial(ctx, addr, p.Key, "")
	if err != nil {
		return nil, err
	}
	h, rtt, err := l.greet(ctx, c, p)
	if err == nil && p.Descriptor != nil && p.Descriptor.Revokes(c.proof.Node) {
		err = errRevoked
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	return l.newSession(c, h, rtt), nil
}

// session is a live outbound connection on which a hello was answered.
type session struct {
	*pinned
	hello  *Hello
	ctx    context.Context // its cause says why the session ended
	cancel context.CancelCauseFunc
	expiry *time.Timer
	l      *Links
	asking atomic.Int32 // live requests that wait for a place

	mu      sync.Mutex
	ended   bool
	streams map[*clientStream]struct{}
	live    *liveDial // nil until there is a live request
	rtt     time.Duration
	skew    time.Duration
}

var errLost = errors.New("connection lost")

func (l *Links) newSession(c *pinned, h *Hello, rtt time.Duration) *session {
	s := &session{pinned: c, hello: h, streams: map[*clientStream]struct{}{}, l: l}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.answered(h, rtt)
	s.expiry = time.AfterFunc(untilExpiry(c.tls), func() { s.cancel(errors.New("the peer's leaf has expired")) })
	c.cc.SetStateHook(func(cc *http.ClientConn) {
		if err := cc.Err(); err != nil {
			s.cancel(fmt.Errorf("%w: %w", errLost, err))
		}
	})
	return s
}

// answered notes what an answered hello tells of the connection.
func (s *session) answered(h *Hello, rtt time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rtt = rtt
	s.skew = time.UnixMilli(h.Clock).Sub(time.Now().Add(-rtt / 2)).Round(time.Millisecond)
}

// end closes the connection and fails every stream on it before it returns.
func (s *session) end(cause error) {
	s.cancel(cause)
	s.expiry.Stop()
	s.mu.Lock()
	s.ended = true
	streams, live := s.streams, s.live
	s.streams, s.live = nil, nil
	s.mu.Unlock()
	s.close()
	live.close()
	for st := range streams {
		st.fail(cause)
	}
}
