package link

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// State is what the dialling side of a link does.
type State string

// The states of a link.
const (
	Down    State = "down"
	Dialing State = "dialing"
	Up      State = "up" // the last hello was answered
)

// PeerStatus is how the link to one active peer stands.
type PeerStatus struct {
	Peer  federation.GridID `json:"peer"`
	Name  string            `json:"name"`
	State State             `json:"state"`
	Since time.Time         `json:"since"` // of State
	// LastHeard is when the peer last answered or asked anything; zero: never.
	LastHeard time.Time     `json:"last_heard,omitzero"`
	Transport string        `json:"transport,omitempty"`
	Address   string        `json:"address,omitempty"` // the node, while up
	RTT       time.Duration `json:"rtt_ns,omitempty"`
	// ClockSkew is how far the peer's clock is ahead of ours, give or take RTT/2.
	ClockSkew time.Duration `json:"clock_skew_ns,omitempty"`
	Epoch     uint64        `json:"epoch,omitempty"`
	Software  string        `json:"software,omitempty"`
	// Inbound is how many connections the peer has to this gateway, without the
	// one for live requests, which comes and goes.
	Inbound   int       `json:"inbound"`
	Attempts  int       `json:"attempts,omitempty"` // failed since it was last up
	NextDial  time.Time `json:"next_dial,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

// Status returns how the links to all active peers stand, by name.
func (l *Links) Status() []PeerStatus {
	l.mu.Lock()
	inbound := map[federation.GridID]int{}
	for in := range l.inbound {
		if !in.live {
			inbound[in.peer]++
		}
	}
	var out []*outbound
	for _, o := range l.outbound {
		if o.ctx.Err() == nil {
			out = append(out, o)
		}
	}
	l.mu.Unlock()
	all := make([]PeerStatus, 0, len(out))
	for _, o := range out {
		st := o.status()
		st.Inbound = inbound[st.Peer]
		all = append(all, st)
	}
	slices.SortFunc(all, func(a, b PeerStatus) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func (o *outbound) status() PeerStatus {
	o.mu.Lock()
	defer o.mu.Unlock()
	st := PeerStatus{
		Peer: o.id, Name: o.name, State: o.state, Since: o.since, LastHeard: o.lastHeard, Attempts: o.attempts,
	}
	if o.lastErr != nil {
		st.LastError = o.lastErr.Error()
	}
	if s := o.session; s != nil && o.state == Up {
		s.mu.Lock()
		st.RTT, st.ClockSkew = s.rtt, s.skew
		s.mu.Unlock()
		st.Transport, st.Address = s.addr.Net, s.addr.Node
		st.Epoch, st.Software = s.hello.Epoch, s.hello.Software
	} else if o.state == Down {
		st.NextDial = o.nextDial
	}
	return st
}

// heard notes that a peer has been heard on an inbound connection.
func (l *Links) heard(peer federation.GridID) {
	l.mu.Lock()
	o := l.outbound[peer]
	l.mu.Unlock()
	if o != nil {
		o.heard()
	}
}

// pathCache asks each transport for its status at most once per pathCheck,
// however many peers are down.
type pathCache struct {
	mu    sync.Mutex
	at    map[transports.Transport]time.Time
	nodes map[transports.Transport]map[string]struct{}
}

// has says whether the transport, which may be nil, has a session with a node.
func (c *pathCache) has(t transports.Transport, a transports.Addr) bool {
	if t == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.at[t]) >= pathCheck {
		nodes := map[string]struct{}{}
		for _, p := range t.Status().Paths {
			if p.Session {
				nodes[p.Node] = struct{}{}
			}
		}
		if c.at == nil {
			c.at, c.nodes = map[transports.Transport]time.Time{}, map[transports.Transport]map[string]struct{}{}
		}
		c.at[t], c.nodes[t] = time.Now(), nodes
	}
	_, ok := c.nodes[t][a.Node]
	return ok
}
