package federation

import (
	"crypto/ed25519"
	"sync"
	"sync/atomic"
)

// Directory answers, without locks or I/O, who a key and a domain belong to. It
// is one immutable Snapshot at a time; whoever changes peers or claims persists
// the change first and then publishes a new one.
type Directory struct {
	now atomic.Pointer[Snapshot]

	mu   sync.Mutex
	subs map[chan struct{}]struct{}
}

// NewDirectory returns a directory that knows no one.
func NewDirectory() *Directory {
	d := &Directory{subs: map[chan struct{}]struct{}{}}
	d.now.Store(NewSnapshot(nil, nil, nil))
	return d
}

// Now returns the current snapshot. Use one snapshot for one decision.
func (d *Directory) Now() *Snapshot { return d.now.Load() }

// Publish replaces the snapshot and wakes every subscriber.
func (d *Directory) Publish(s *Snapshot) {
	d.now.Store(s)
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.subs {
		select {
		case c <- struct{}{}:
		default: // already told, and will read the newest snapshot
		}
	}
}

// Subscribe returns a channel that is readable after each change (changes may be
// coalesced) and a function that ends the subscription.
func (d *Directory) Subscribe() (changed <-chan struct{}, cancel func()) {
	c := make(chan struct{}, 1)
	d.mu.Lock()
	d.subs[c] = struct{}{}
	d.mu.Unlock()
	return c, func() {
		d.mu.Lock()
		delete(d.subs, c)
		d.mu.Unlock()
	}
}

// Snapshot is the peers and claims of one moment.
type Snapshot struct {
	peers  []*Peer
	byKey  map[string]*Peer
	byID   map[GridID]*Peer
	own    map[domainKey]struct{}
	active map[domainKey]*Peer
	claims []Claim
}

type domainKey struct {
	proto  Protocol
	domain string
}

// NewSnapshot indexes peers, claims and this grid's own domains. Domains must be
// normalised. Only active claims of known peers are routed, and never for a
// domain that is our own.
func NewSnapshot(peers []*Peer, claims []Claim, own map[Protocol][]string) *Snapshot {
	s := &Snapshot{
		peers: peers, claims: claims,
		byKey: make(map[string]*Peer, len(peers)), byID: make(map[GridID]*Peer, len(peers)),
		own: map[domainKey]struct{}{}, active: map[domainKey]*Peer{},
	}
	for _, p := range peers {
		s.byKey[string(p.Key)] = p
		s.byID[p.ID] = p
	}
	for proto, domains := range own {
		for _, d := range domains {
			s.own[domainKey{proto, d}] = struct{}{}
		}
	}
	for _, c := range claims {
		k := domainKey{c.Protocol, c.Domain}
		if _, ours := s.own[k]; ours || c.Status != ClaimActive {
			continue
		}
		if p := s.byID[c.Grid]; p != nil {
			s.active[k] = p
		}
	}
	return s
}

// Peers returns every known peer, tombstones included. Do not change it.
func (s *Snapshot) Peers() []*Peer { return s.peers }

// Claims returns every claim, conflicts included. Do not change it.
func (s *Snapshot) Claims() []Claim { return s.claims }

// Peer returns the peer with that id, or nil.
func (s *Snapshot) Peer(id GridID) *Peer { return s.byID[id] }

// PeerByKey returns the peer whose current grid key is pub, or nil.
func (s *Snapshot) PeerByKey(pub ed25519.PublicKey) *Peer { return s.byKey[string(pub)] }

// Owner returns the peer that holds the active claim on a normalised domain,
// whatever the peer's state, or nil.
func (s *Snapshot) Owner(proto Protocol, domain string) *Peer {
	return s.active[domainKey{proto, domain}]
}

// Own says whether a normalised domain is this grid's own.
func (s *Snapshot) Own(proto Protocol, domain string) bool {
	_, ok := s.own[domainKey{proto, domain}]
	return ok
}

// Route returns the peer that traffic for a normalised domain goes to, or an
// error that says why there is none: ErrUnknownDomain, ErrPeerNotActive or
// ErrNotAllowed.
func (s *Snapshot) Route(proto Protocol, domain string) (*Peer, error) {
	p := s.Owner(proto, domain)
	switch {
	case p == nil:
		return nil, ErrUnknownDomain
	case p.State != StateActive:
		return p, ErrPeerNotActive
	case !p.Policy.Allow[proto]:
		return p, ErrNotAllowed
	}
	return p, nil
}
