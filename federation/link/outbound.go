package link

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

const (
	redialGrowth = 1.6
	// recently is how long a peer that was up is redialled often.
	recently = time.Hour
	// attemptGap keeps wake-ups, which a peer can cause, from making a busy loop.
	attemptGap = 250 * time.Millisecond
	pathCheck  = time.Second
	// steady is how long a session must have lived for its end to be followed by
	// a dial without any pause.
	steady = 3 * time.Second
)

// outbound keeps the one connection that this gateway dials to a peer.
type outbound struct {
	l      *Links
	id     federation.GridID
	log    *slog.Logger
	ctx    context.Context
	stop   context.CancelCauseFunc
	done   chan struct{}
	waking chan struct{} // one token: dial now

	mu        sync.Mutex
	name      string
	state     State
	since     time.Time // of state
	dialled   *dialled  // nil unless Dialing
	session   *session  // nil unless up
	told      chan struct{}
	lastHeard time.Time
	lastUp    time.Time
	lastErr   error
	attempts  int
	nextDial  time.Time
}

// startOutbound begins to keep a link to p. A predecessor for the same peer is
// waited for, so that events stay in turn.
func (l *Links) startOutbound(ctx context.Context, p *federation.Peer, before *outbound) *outbound {
	o := &outbound{
		l: l, id: p.ID, name: p.Name, log: l.log.With("peer", p.Name, "dir", "out"),
		done: make(chan struct{}), waking: make(chan struct{}, 1), state: Down, since: time.Now(),
	}
	o.ctx, o.stop = context.WithCancelCause(ctx)
	go func() {
		defer close(o.done)
		if before != nil {
			<-before.done
		}
		o.run()
	}()
	return o
}

// run dials, keeps and redials until the context of o is done.
func (o *outbound) run() {
	t := &o.l.cfg.Timing
	pause := t.RedialMin
	for o.ctx.Err() == nil {
		p := o.l.cfg.Directory.Now().Peer(o.id)
		if p == nil || p.State != federation.StateActive {
			// apply is about to stop this, unless the peer is back by then.
			select {
			case <-o.ctx.Done():
			case <-time.After(attemptGap):
			}
			continue
		}
		started := time.Now()
		s, err := o.dial(p)
		if err == nil {
			o.l.metrics.dials.WithLabelValues(p.Name, "up").Inc()
			err = o.keep(p, s)
		} else if o.ctx.Err() == nil {
			o.l.metrics.dials.WithLabelValues(p.Name, "failed").Inc()
		}
		if o.ctx.Err() != nil {
			break
		}
		o.note(err)
		if time.Since(started) > steady && s != nil {
			pause = t.RedialMin
			continue // it was up for a while: the first redial is at once
		}
		o.rest(p, started, pause)
		pause = min(time.Duration(float64(pause)*redialGrowth), o.longestPause())
	}
	o.enter(Down)
}

// dialled is where a connection is being tried, and with which grid key.
type dialled struct {
	key     ed25519.PublicKey
	addrs   []transports.Addr
	abandon context.CancelCauseFunc
}

var errMoved = errors.New("the peer has a new address or grid key")

// dial connects to the peer, or gives that up once elsewhere is a better place to try.
func (o *outbound) dial(p *federation.Peer) (*session, error) {
	o.enter(Dialing)
	ctx, cancel := context.WithCancelCause(o.ctx)
	defer cancel(nil)
	d := &dialled{key: p.Key, addrs: o.l.addresses(p), abandon: cancel}
	o.setDialled(d)
	defer o.setDialled(nil)
	if now := o.l.cfg.Directory.Now().Peer(o.id); now != nil { // it may have changed before d was seen
		o.redirect(now, o.l.addresses(now))
	}
	s, err := o.l.connect(ctx, p, d.addrs)
	if err != nil && errors.Is(context.Cause(ctx), errMoved) {
		o.wakeUp()
		err = errMoved
	}
	return s, err
}

func (o *outbound) setDialled(d *dialled) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.dialled = d
}

// redirect ends a dial that does not know all of the peer's addresses, or its key. A node
// that is gone would be waited for otherwise, while the peer is at hand elsewhere.
func (o *outbound) redirect(p *federation.Peer, addrs []transports.Addr) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.dialled
	if d == nil {
		return
	}
	unknown := func(a transports.Addr) bool {
		return !slices.ContainsFunc(d.addrs, func(b transports.Addr) bool { return a.ID() == b.ID() })
	}
	if !d.key.Equal(p.Key) || slices.ContainsFunc(addrs, unknown) {
		d.abandon(errMoved)
	}
}

// keep announces a session, sends heartbeats on it until it ends, and announces
// that too. It returns why it ended.
func (o *outbound) keep(p *federation.Peer, s *session) error {
	stop := context.AfterFunc(o.ctx, func() { s.cancel(context.Cause(o.ctx)) })
	defer stop()
	told := make(chan struct{})
	o.mu.Lock()
	o.session, o.told = s, told
	o.lastErr, o.attempts = nil, 0
	o.mu.Unlock()
	// What the directory said while this was being dialled may have passed;
	// from here on recheck sees the session.
	if now := o.l.cfg.Directory.Now().Peer(o.id); now != nil {
		o.recheck(now)
	}
	o.heard()
	o.enter(Up)
	o.log.Info("link up", "transport", s.addr.Net, "node", s.addr.Node, "rtt", s.rtt, "epoch", s.hello.Epoch)
	o.tell(Event{Peer: o.id, Up: true, Epoch: s.hello.Epoch})
	close(told)

	err := o.heartbeats(p, s)

	o.mu.Lock()
	o.session = nil
	o.lastUp = time.Now()
	o.mu.Unlock()
	o.enter(Down)
	s.end(err)
	o.log.Info("link down", "transport", s.addr.Net, "node", s.addr.Node, "err", err)
	o.tell(Event{Peer: o.id, Up: false, Epoch: s.hello.Epoch})
	return err
}

func (o *outbound) tell(e Event) {
	if o.l.cfg.OnState != nil {
		o.l.cfg.OnState(e)
	}
}

// heartbeats repeats the hello until the session ends or one is not answered.
func (o *outbound) heartbeats(p *federation.Peer, s *session) error {
	beat := time.NewTimer(o.l.untilBeat(o.id, time.Now()))
	defer beat.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-beat.C:
		}
		if now := o.l.cfg.Directory.Now().Peer(o.id); now != nil {
			p = now // its limits are part of the hello
		}
		h, rtt, err := o.l.greet(s.ctx, s.pinned, p)
		if err != nil {
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			return err
		}
		s.answered(h, rtt)
		o.heard()
		beat.Reset(o.l.untilBeat(o.id, time.Now()))
	}
}

// beatTogether is how many links say hello at one moment.
const beatTogether = 64

// untilBeat is how long it is to the next hello on a link, at most the configured
// time. The hellos of several links fall together, and with those of the far ends
// whose clocks agree, because it is waking up and not work that an idle gateway
// spends its time on. Where there are very many they fall on several moments.
func (l *Links) untilBeat(id federation.GridID, now time.Time) time.Duration {
	every := l.cfg.Timing.Heartbeat
	l.mu.Lock()
	slots := 1 + len(l.outbound)/beatTogether
	l.mu.Unlock()
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	slot := every / time.Duration(slots) * time.Duration(int(h.Sum32())%slots)
	since := now.Add(-slot)
	return since.Truncate(every).Add(every).Sub(since)
}

// rest waits until it is time to dial again: for about pause, or until it is
// woken or the transport has a path.
func (o *outbound) rest(p *federation.Peer, started time.Time, pause time.Duration) {
	// Full jitter: peers that lost each other together do not come back together.
	pause = max(rand.N(pause), attemptGap-time.Since(started))
	o.mu.Lock()
	o.nextDial = time.Now().Add(pause)
	o.mu.Unlock()
	o.enter(Down)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	check := time.NewTicker(pathCheck)
	defer check.Stop()
	hadPath := o.hasPath(p)
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-timer.C:
			return
		case <-o.waking:
			// However often it is woken, it does not dial in a busy loop.
			timer.Reset(max(0, attemptGap-time.Since(started)))
		case <-check.C:
			has := o.hasPath(p)
			if has && !hadPath {
				return
			}
			hadPath = has
		}
	}
}

func (o *outbound) longestPause() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.lastUp.IsZero() && time.Since(o.lastUp) < recently {
		return o.l.cfg.Timing.RedialRecent
	}
	return o.l.cfg.Timing.RedialMax
}

// hasPath says whether a transport has a session with a node of the peer.
func (o *outbound) hasPath(p *federation.Peer) bool {
	for _, a := range o.l.addresses(p) {
		if o.l.paths.has(o.l.cfg.Transports[a.Net], a) {
			return true
		}
	}
	return false
}

// wakeUp ends a rest. While the link is up or being dialled it is remembered
// for the next.
func (o *outbound) wakeUp() {
	select {
	case o.waking <- struct{}{}:
	default:
	}
}

// recheck ends a session that the peer's newest form does not allow.
func (o *outbound) recheck(p *federation.Peer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.name = p.Name
	if o.session == nil {
		return
	}
	switch {
	case !sameKey(o.session.proof, p.Key):
		o.session.cancel(errors.New("the peer's grid key has changed"))
	case p.Descriptor != nil && p.Descriptor.Revokes(o.session.proof.Node):
		o.session.cancel(errRevoked)
	}
}

// restarted ends a session with what a node was before it restarted.
func (o *outbound) restarted(node federation.Hash, epoch uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if s := o.session; s != nil && s.proof.Node == node && s.hello.Epoch < epoch {
		s.cancel(fmt.Errorf("the peer has restarted: epoch %d, was %d", epoch, s.hello.Epoch))
	}
}

// live returns the session and what is closed once its start has been told.
func (o *outbound) live() (*session, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.session, o.told
}

func (o *outbound) heard() {
	o.mu.Lock()
	o.lastHeard = time.Now()
	o.mu.Unlock()
}

func (o *outbound) enter(s State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.state != s {
		o.state, o.since = s, time.Now()
	}
}

// note records a failed attempt or the end of a session.
func (o *outbound) note(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lastErr == nil || o.lastErr.Error() != err.Error() {
		o.log.Info("link not up", "err", err) // once, not at every attempt
	}
	o.lastErr = err
	o.attempts++
}
