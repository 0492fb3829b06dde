package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net"
	"sync"
	"time"
)

// Session is a session with a broker. It is safe for concurrent use.
type Session struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	diary   *diary
	inbox   *inbox

	snapshots chan struct{} // held by the one that runs

	// mu holds what follows, and conn.in and conn.subs of the connection. calls
	// are made when it is released.
	mu     sync.Mutex
	calls  []func()
	freed  chan struct{} // closed and replaced when Send may find room
	conn   *conn         // nil while there is none
	closed bool
	over   chan struct{} // closed with closed
	since  time.Time
	info   Info
	last   error

	out  outgoing
	in   incoming
	subs subscriptions
}

// New prepares a session; Run connects it. It reads the Journal.
func New(ctx context.Context, cfg Config) (*Session, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("MQTT session: %w", err)
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, fmt.Errorf("MQTT session: %w", err)
	}
	st, err := cfg.Journal.Load(ctx, cfg.ClientID)
	if err != nil {
		return nil, err
	}
	s := &Session{cfg: cfg, log: cfg.Log, metrics: m, diary: newDiary(&cfg), freed: make(chan struct{}), over: make(chan struct{}), snapshots: make(chan struct{}, 1), since: time.Now()}
	s.inbox = newInbox(s)
	s.out.load(st)
	s.in.load(st)
	s.subs.load(st)
	return s, nil
}

// complete fills in what is not set, and says what cannot be.
func (c *Config) complete() error {
	if c.Handler == nil || c.Journal == nil {
		return errors.New("needs a handler and a journal")
	}
	if c.ClientID == "" || checkString(c.ClientID) != nil {
		return fmt.Errorf("client id %q: must be 1 to 65535 bytes of UTF-8", c.ClientID)
	}
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		return fmt.Errorf("address of the broker: %w", err)
	}
	if c.Version != 0 && c.Version != V5 && c.Version != V311 {
		return fmt.Errorf("protocol version %d: 5 and 4 (MQTT 3.1.1) are known", c.Version)
	}
	if err := errors.Join(checkString(c.Username), checkString(c.Password)); err != nil {
		return fmt.Errorf("user name or password: %w", err)
	}
	if err := checkWill(c.Will); err != nil {
		return fmt.Errorf("will: %w", err)
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.KeepAlive = min(max(cmp.Or(c.KeepAlive, 30*time.Second), time.Second), math.MaxUint16*time.Second)
	c.AckTimeout = cmp.Or(c.AckTimeout, time.Minute)
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 20*time.Second)
	c.BackoffMin = cmp.Or(c.BackoffMin, 250*time.Millisecond)
	c.AskAgain = cmp.Or(c.AskAgain, 30*time.Second)
	c.BackoffMax = max(cmp.Or(c.BackoffMax, 5*time.Second), c.BackoffMin)
	c.ReceiveMaximum = cmp.Or(c.ReceiveMaximum, 1024)
	c.MaxPacket = cmp.Or(c.MaxPacket, 1<<20)
	c.MaxUnacked = cmp.Or(c.MaxUnacked, 64<<20)
	c.MaxQueued = cmp.Or(c.MaxQueued, 1024)
	c.MaxQueuedBytes = cmp.Or(c.MaxQueuedBytes, 16<<20)
	return nil
}

// checkWill also refuses what the codec leaves out of a will without a word.
func checkWill(m *Message) error {
	if m == nil {
		return nil
	}
	if m.UTF8 || m.Expiry != nil || m.ContentType != "" || m.ResponseTopic != "" || len(m.Correlation) > 0 {
		return errors.New("can have no properties but those of the user")
	}
	return m.check()
}

// expiry is the session expiry interval in seconds (MQTT 5 §3.1.2.11.2).
func (c *Config) expiry() uint32 {
	if c.SessionExpiry <= 0 || c.SessionExpiry.Seconds() >= math.MaxUint32 {
		return math.MaxUint32
	}
	return uint32(c.SessionExpiry.Seconds())
}

// unlock releases mu and makes the calls that were put off until then.
func (s *Session) unlock() {
	calls := s.calls
	s.calls = nil
	s.mu.Unlock()
	for _, call := range calls {
		call()
	}
}

// Run keeps the session connected until ctx ends, which is no error. On the way
// out it takes leave of the broker, which then publishes no will.
func (s *Session) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	diaryCtx, stopDiary := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { s.diary.run(diaryCtx) })
	wg.Go(func() { s.inbox.run(ctx) })
	wait := time.Duration(0)
	for ctx.Err() == nil {
		began := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			break
		}
		s.note(err)
		if time.Since(began) > s.cfg.BackoffMax {
			wait = 0
		}
		wait = s.backoff(wait, err)
		select {
		case <-time.After(wait/2 + mrand.N(wait/2+1)):
		case <-ctx.Done():
		}
	}
	s.close()
	stopDiary()
	wg.Wait()
	return nil
}

// takenOverWait is what is waited when another client has the client id.
const takenOverWait = 30 * time.Second

// backoff doubles the wait. It stays short: what is published at a broker that keeps
// no sessions is lost until it is connected to again. Two gateways with one client id
// would throw each other out for ever; that is tried rarely.
func (s *Session) backoff(wait time.Duration, err error) time.Duration {
	var refused *Refused
	if errors.As(err, &refused) && refused.Code == codeTakenOver {
		return takenOverWait
	}
	return min(max(2*wait, s.cfg.BackoffMin), s.cfg.BackoffMax)
}

// note takes down why there is no connection. The log has each reason once.
func (s *Session) note(err error) {
	s.mu.Lock()
	same := s.last != nil && s.last.Error() == err.Error()
	s.last = err
	s.unlock()
	if !same {
		s.log.Warn("no connection with the MQTT broker", "addr", s.cfg.Addr, "err", err)
	}
}

// once makes a connection and serves it until its end, of which it returns the
// reason.
func (s *Session) once(ctx context.Context) error {
	c, first, err := s.connect(ctx)
	if err != nil {
		s.metrics.connects.WithLabelValues("failed").Inc()
		return fmt.Errorf("connect to %s: %w", s.cfg.Addr, err)
	}
	s.metrics.connects.WithLabelValues("ok").Inc()
	return s.serve(ctx, c, first)
}

func (s *Session) serve(ctx context.Context, c *conn, a *connack) error {
	if err := s.settleLife(ctx, a.present); err != nil {
		c.close(err)
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.leave(codeSuccess, context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(c.write)
	s.up(c, a)
	wg.Go(func() { s.watch(c) })
	err := s.read(c)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.leave(leaveCode(err), err)
	wg.Wait()
	err = c.reason()
	s.down(c, err)
	return err
}

// leaveCode is what to say to a broker of MQTT 5 when a connection ends.
func leaveCode(err error) byte {
	var p *protocolError
	if errors.As(err, &p) {
		return p.code
	}
	return codeUnspecified
}

// settleLife begins a new life of the session where the broker has lost it.
func (s *Session) settleLife(ctx context.Context, present bool) error {
	s.mu.Lock()
	first := s.in.life == nil
	s.unlock()
	if present && !first {
		return nil
	}
	life := make([]byte, lifeLen)
	if _, err := rand.Read(life); err != nil {
		return err
	}
	written := make(chan struct{})
	s.diary.add(func() { close(written) }, Change{Op: Reset, Life: life})
	select {
	case <-written:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	defer s.unlock()
	s.in.begin(life)
	s.subs.lost(s.diary)
	return nil
}

// up takes a connection into use: what was in flight goes on.
func (s *Session) up(c *conn, a *connack) {
	s.mu.Lock()
	defer s.unlock()
	s.conn, s.since, s.last = c, time.Now(), nil
	c.in.since = s.in.turn
	s.info = Info{Version: c.enc.version, Resumed: a.present, Life: string(s.in.life), MaxQoS: a.maxQoS, Retain: a.retain, Shared: a.shared,
		MaxPacket: a.maxPacket, ReceiveMaximum: a.receiveMax, KeepAlive: c.keepAlive}
	s.metrics.connected.Set(1)
	s.log.Info("connected with the MQTT broker", "addr", s.cfg.Addr, "version", c.enc.version, "resumed", a.present)
	info := s.info
	s.inbox.put(event{up: &info})
	s.resume(c, a)
	s.syncSubscriptions(c)
	s.pump()
	s.roomLocked()
}

// down takes a connection out of use.
func (s *Session) down(c *conn, err error) {
	s.mu.Lock()
	defer s.unlock()
	s.conn, s.since = nil, time.Now() // note says why
	s.metrics.connected.Set(0)
	s.inbox.drop()
	s.inbox.put(event{down: err})
	s.roomLocked()
}

// roomLocked lets Send look again for room.
func (s *Session) roomLocked() {
	close(s.freed)
	s.freed = make(chan struct{})
}

// close answers what still waits.
func (s *Session) close() {
	s.mu.Lock()
	defer s.unlock()
	s.closed = true
	close(s.over)
	s.failAll(ErrClosed)
	s.roomLocked()
}

// read takes what the broker sends until the connection ends.
func (s *Session) read(c *conn) error {
	for {
		f, err := readFrame(c.r, s.cfg.MaxPacket)
		if err != nil {
			if err == io.EOF {
				err = errors.New("the broker closed the connection")
			}
			return err
		}
		c.heard.Store(time.Now().UnixNano())
		p, err := f.decode(c.enc.version)
		if err != nil {
			return err
		}
		if err := s.handle(c, p); err != nil {
			return err
		}
	}
}

func (s *Session) handle(c *conn, p *packet) error {
	switch p.kind {
	case typePublish:
		return s.arrive(c, p)
	case typePubrel:
		return s.release(c, p)
	case typePuback, typePubrec, typePubcomp:
		s.mu.Lock()
		defer s.unlock()
		return s.acknowledged(c, p)
	case typeSuback, typeUnsuback:
		s.mu.Lock()
		defer s.unlock()
		return s.subscribed(c, p)
	case typePingresp:
		c.pinged.Store(0)
		return nil
	case typeDisconnect:
		return &Refused{What: "connection", Code: p.code, Text: p.text}
	}
	return breach(codeProtocol, "packet of type %d in a session", p.kind)
}

// Status returns how the session stands.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.unlock()
	st := Status{Connected: s.conn != nil, Info: s.info, Since: s.since, InFlight: s.out.flying.Len(), Waiting: s.out.waiting.Len(),
		Unacked: s.in.unacked, Refused: map[string]string{}}
	if s.last != nil {
		st.LastError = s.last.Error()
	}
	for f, r := range s.subs.refused {
		st.Refused[f] = r.err.Error()
	}
	return st
}
