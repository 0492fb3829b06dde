package pairing

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
)

// How peers are told of a new descriptor: soon, and if they cannot be reached,
// ever more rarely until Wake. A peer that was away while this grid got a new key has no
// link with it, which would wake it, before it is told; so it waits no longer than a
// link that is dialled again.
const (
	tellFirst   = 2 * time.Second
	tellLast    = 5 * time.Minute
	tellTimeout = 30 * time.Second
)

// Run tells every active peer of this grid's descriptor, at its start and whenever
// what that peer may see of it changes, and takes the peer's own in return. This
// is how new nodes, domains and a rotated grid key come round. It returns nil when
// ctx is done.
func (p *Pairing) Run(ctx context.Context, dial Dialer) error {
	changed, cancel := p.cfg.Registry.Directory().Subscribe()
	defer cancel()
	var telling sync.WaitGroup
	defer telling.Wait()
	for {
		var active []federation.GridID
		for _, peer := range p.cfg.Registry.Directory().Now().Peers() {
			if peer.State != federation.StateActive {
				continue
			}
			active = append(active, peer.ID)
			if own := p.dueFor(ctx, peer); own != nil {
				telling.Go(func() { p.tell(ctx, dial, peer, own) })
			}
		}
		timer := time.NewTimer(p.told.wait(active, time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-changed:
		case <-p.woken:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Wake has Run try a peer again now, because it has just been heard.
func (p *Pairing) Wake(peer federation.GridID) {
	p.told.retry(peer)
	p.lookAgain()
}

func (p *Pairing) lookAgain() {
	select {
	case p.woken <- struct{}{}:
	default: // it will look at all peers anyway
	}
}

// dueFor returns what a peer must be told now, or nil, and marks it as being told.
func (p *Pairing) dueFor(ctx context.Context, peer *federation.Peer) []byte {
	own, err := p.cfg.Registry.OwnDescriptor(ctx, peer.ID)
	if err != nil {
		if ctx.Err() == nil {
			p.cfg.Log.Error("own descriptor cannot be made", "peer", peer.Name, "err", err)
			p.told.failed(peer.ID, time.Now())
		}
		return nil
	}
	if !p.told.begin(peer.ID, sha256.Sum256(own), time.Now()) {
		return nil
	}
	return own
}

func (p *Pairing) tell(ctx context.Context, dial Dialer, peer *federation.Peer, own []byte) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := p.exchange(ctx, dial, peer, own); err != nil {
		p.cfg.Log.Debug("peer not told of the own descriptor yet", "peer", peer.Name, "err", err)
		p.told.failed(peer.ID, time.Now())
	} else {
		p.told.done(peer.ID, sha256.Sum256(own))
	}
	p.lookAgain()
}

// Exchange brings a peer this grid's descriptor and takes its own in return, once.
func (p *Pairing) Exchange(ctx context.Context, dial Dialer, peer *federation.Peer) error {
	own, err := p.cfg.Registry.OwnDescriptor(ctx, peer.ID)
	if err == nil {
		err = p.exchange(ctx, dial, peer, own)
	}
	if err != nil {
		return fmt.Errorf("exchange descriptors with %q: %w", peer.Name, err)
	}
	return nil
}

func (p *Pairing) exchange(ctx context.Context, dial Dialer, peer *federation.Peer, own []byte) error {
	if peer.Descriptor == nil {
		return errors.New("none of its addresses is known")
	}
	s, err := reach(ctx, dial, peer.Descriptor.Addrs(), peer.Key)
	var other *federation.WrongKeyError
	if errors.As(err, &other) && federation.HashKey(other.Got) == peer.Descriptor.Next {
		// The peer has a new key as well, the one that it has announced, and could not
		// tell of it for the same reason: each would wait for the other.
		s, err = reach(ctx, dial, peer.Descriptor.Addrs(), other.Got)
	}
	if err != nil {
		return err
	}
	defer s.close()
	var answer descriptorAnswer
	if err := s.post(ctx, PathDescriptor, descriptorRequest{Descriptor: own}, &answer); err != nil {
		return err
	}
	d, err := federation.ParseDescriptor(answer.Descriptor, p.cfg.Now())
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	if d.Grid != peer.ID {
		return errors.New("answer: the descriptor is not the peer's own")
	}
	if _, err := p.cfg.Registry.AcceptDescriptor(ctx, answer.Descriptor); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	return nil
}

// ledger remembers what each peer was told last and when it is tried again.
type ledger struct {
	mu    sync.Mutex
	peers map[federation.GridID]*entry
}

type entry struct {
	digest [sha256.Size]byte // of what it was told
	told   bool
	busy   bool          // is being told
	delay  time.Duration // before the next try; 0 after a success
	next   time.Time     // zero: no try has failed
}

func (l *ledger) entry(id federation.GridID) *entry {
	e := l.peers[id]
	if e == nil {
		e = new(entry)
		l.peers[id] = e
	}
	return e
}

// begin says whether a peer must be told now, and then counts it as busy.
func (l *ledger) begin(id federation.GridID, digest [sha256.Size]byte, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(id)
	if !e.busy && e.told && e.digest == digest { // whatever has failed since: nothing is due
		e.delay, e.next = 0, time.Time{}
		return false
	}
	if e.busy || now.Before(e.next) {
		return false
	}
	e.busy = true
	return true
}

func (l *ledger) done(id federation.GridID, digest [sha256.Size]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.entry(id) = entry{digest: digest, told: true}
}

// failed doubles the delay, with full jitter.
func (l *ledger) failed(id federation.GridID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(id)
	e.busy = false
	e.delay = min(max(2*e.delay, tellFirst), tellLast)
	e.next = now.Add(rand.N(e.delay) + time.Second)
}

func (l *ledger) retry(id federation.GridID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entry(id)
	e.delay, e.next = 0, time.Time{}
}

// wait returns the time until the next retry of an active peer, or else until it
// is worth looking whether the own descriptor has aged. Others are forgotten.
func (l *ledger) wait(active []federation.GridID, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	wait := tellLast
	for id, e := range l.peers {
		switch {
		case e.busy:
		case !slices.Contains(active, id):
			delete(l.peers, id)
		case !e.next.IsZero():
			wait = min(wait, max(e.next.Sub(now), time.Millisecond))
		}
	}
	return wait
}
