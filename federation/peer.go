package federation

import (
	"crypto/ed25519"
	"time"
)

// State is what the operator has decided about a peer. Whether its link is up
// is another matter, and link's.
type State string

// The states of a peer. Only StateActive lets anything cross.
const (
	// StatePending waits for `yggate peer approve`.
	StatePending State = "pending"
	// StateActive may link and exchange what its policy allows.
	StateActive State = "active"
	// StatePaused is kept, with its claims, but nothing crosses.
	StatePaused State = "paused"
	// StateBlocked refuses the grid by key for good; nothing re-adds it but
	// the operator.
	StateBlocked State = "blocked"
	// StateRemoved is a tombstone: the grid was a peer and may be invited again.
	StateRemoved State = "removed"
)

// Peer is another grid as it is known here. Peers that a Directory gives out are
// shared and never changed: a change makes a new one.
type Peer struct {
	ID   GridID
	Name string            // this operator's own name for it, unique here
	Key  ed25519.PublicKey // its current grid key; the first one until it rotates
	// State is the operator's decision.
	State State
	// Descriptor is the newest one accepted from the grid, nil before the first.
	Descriptor *Descriptor
	// Policy is what this peer may do, configuration applied.
	Policy  Policy
	Created time.Time
	// LastHeard is when something was last heard from it before this snapshot;
	// zero: never. Of a live link, link knows better.
	LastHeard time.Time
}

// Claim binds a domain to a grid for one protocol.
type Claim struct {
	Protocol Protocol    `json:"protocol"`
	Domain   string      `json:"domain"` // normalised, see NormalizeDomain
	Grid     GridID      `json:"grid"`
	Status   ClaimStatus `json:"status"`
}

// ClaimStatus says whether a claim is honoured.
type ClaimStatus string

// A domain has at most one active claim. The first approved holds it; a later
// claimant is in conflict until the operator decides with `yggate domain assign`.
const (
	ClaimActive   ClaimStatus = "active"
	ClaimPending  ClaimStatus = "pending"
	ClaimConflict ClaimStatus = "conflict"
)

// Policy is what one peer may do and how much of it. The zero Policy allows
// nothing.
type Policy struct {
	Allow  map[Protocol]bool
	Limits Limits
	// Matrix narrows what Allow[Matrix] opens; it opens nothing by itself.
	Matrix MatrixPolicy
	// MQTT says what crosses once Allow[MQTT] is set; by itself that is nothing.
	MQTT MQTTPolicy
}

// MatrixPolicy is what a peer may do over Matrix once it is allowed at all. Its
// zero value has no exceptions.
type MatrixPolicy struct {
	// Servers are the only server names of the peer that take part, normalised;
	// empty: all on which it holds the active claim.
	Servers map[string]bool
	// DenyServers are server names, normalised, that do not take part though the
	// peer holds them. They win over Servers.
	DenyServers map[string]bool
	// DenyRooms are ids of rooms that nobody is invited to, joins or knocks at
	// across the link. Who is in one stays in.
	DenyRooms map[string]bool
	// Custody has transactions for the peer wait on disk here while it cannot be
	// reached, instead of being refused.
	Custody bool
}

// AllowsServer says whether a normalised server name that the peer holds takes
// part. Whether the peer holds it is the directory's to say.
func (m *MatrixPolicy) AllowsServer(name string) bool {
	return !m.DenyServers[name] && (len(m.Servers) == 0 || m.Servers[name])
}

// AllowsRoom says whether the room of that id may be entered across the link.
func (m *MatrixPolicy) AllowsRoom(id string) bool { return !m.DenyRooms[id] }

// MQTTPolicy is which topics cross to and from a peer over MQTT. Its zero value lets
// none cross.
type MQTTPolicy struct {
	// Exports are what the peer gets, Imports what is taken of what it sends. The
	// first rule whose filter matches a topic decides.
	Exports, Imports []MQTTRule
	// Availability are topics here that tell whether the peer can be reached.
	Availability []MQTTAvailability
	Overflow     MQTTOverflow
	// Rate bounds the messages per second for the peer; 0: no bound.
	Rate float64
	// TTL is how long a message waits for the peer, at most; 0: Limits.TTL.
	TTL time.Duration
}

// MQTTRule is about the topics that match a filter.
type MQTTRule struct {
	Filter string
	// As is what their topics become: a prefix, which ends in "/", or a template (see
	// topic.NewRule); empty: they stay as they are.
	As string
	// QoS is the highest that they keep.
	QoS byte
	// Retain lets them be retained on the other side. Without it they come as
	// messages that are not.
	Retain bool
	// Transit, of an export, has what came from another grid go on to this peer.
	Transit bool
}

// MQTTAvailability is a topic that holds, retained, whether a peer can be reached.
type MQTTAvailability struct{ Topic, Online, Offline string }

// MQTTOverflow is what becomes of a message when as much waits for the peer as may.
type MQTTOverflow string

// The policies. In each case nothing that was acknowledged is lost unseen.
const (
	// OverflowBlock leaves the message with the broker, unacknowledged, until there
	// is room. What comes after it for other peers waits as soon as the session's
	// window is full of such messages.
	OverflowBlock MQTTOverflow = "block"
	// OverflowDropOldest gives up what has waited longest.
	OverflowDropOldest MQTTOverflow = "drop_oldest"
	// OverflowDropNewest gives up the message.
	OverflowDropNewest MQTTOverflow = "drop_newest"
)

// Limits bound what one peer can make this gateway do. Each is per peer.
type Limits struct {
	MessagesPerSecond float64       // items taken from the peer, sustained
	Burst             int           // items taken at once beyond that
	BytesPerSecond    int64         // bytes taken from the peer, sustained
	Streams           int           // concurrent streams on its link
	QueueItems        int           // items that wait for it here, on each lane
	QueueBytes        int64         // bytes of them, on each lane
	TTL               time.Duration // how long an item for it may wait
}

// DefaultLimits are what a peer gets where the configuration says nothing.
func DefaultLimits() Limits {
	return Limits{
		MessagesPerSecond: 2000, Burst: 20000, BytesPerSecond: 32 << 20,
		Streams: 64, QueueItems: 100_000, QueueBytes: 1 << 30, TTL: 7 * 24 * time.Hour,
	}
}
