package matrix

import (
	"cmp"
	"slices"
	"time"
)

// WakeStatus is how things stand with one server name of a peer whose link is up.
type WakeStatus struct {
	// Peer is what the operator calls the peer, Server the name.
	Peer, Server string
	// Reached is when the own homeserver last spoke to that server because the
	// gateway had it do so; zero: not since the link came up.
	Reached time.Time
	// Problem says why the last try failed; empty if it did not.
	Problem string
}

// Wakes returns how things stand with every server name of the peers whose link is
// up, by peer and name.
func (a *Adapter) Wakes() []WakeStatus {
	w := a.out.wakes
	w.mu.Lock()
	peers := make([]*wake, 0, len(w.peers))
	for _, k := range w.peers {
		peers = append(peers, k)
	}
	w.mu.Unlock()
	var all []WakeStatus
	for _, k := range peers {
		peer := k.peerName()
		k.mu.Lock()
		for name, s := range k.names {
			all = append(all, WakeStatus{Peer: peer, Server: name, Reached: s.last, Problem: s.why})
		}
		k.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b WakeStatus) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Server, b.Server))
	})
	return all
}
