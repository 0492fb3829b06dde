// Package admin is how the commands speak to a running gateway: HTTP and JSON on
// a unix socket that only the gateway's own user can reach. It has the messages,
// the client and the socket; what the requests do is the gateway's.
package admin

import (
	"time"

	"github.com/yggate/yggate/transports"
)

// Status is the gateway at one moment.
type Status struct {
	Version string    `json:"version"`
	Grid    string    `json:"grid"`
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// Role is "primary" while the edge may run, "standby" otherwise.
	Role  string `json:"role"`
	Epoch uint64 `json:"epoch,omitempty"`
	// Edge says whether transports, links and adapters run now.
	Edge       bool                `json:"edge"`
	Domains    map[string][]string `json:"domains"`
	Transports []transports.Status `json:"transports"`
	Peers      []Peer              `json:"peers"`
	Streams    []Stream            `json:"streams"`
	Matrix     *Matrix             `json:"matrix,omitempty"` // where it runs
	MQTT       *MQTT               `json:"mqtt,omitempty"`   // where it runs
	Conflicts  []Domain            `json:"conflicts,omitempty"`
	Store      Store               `json:"store"`
	// Untold are the dead letters whose senders have not been told, by peer.
	Untold   []Untold `json:"untold,omitempty"`
	Leaves   []Leaf   `json:"leaves"`
	Warnings []string `json:"warnings,omitempty"`
}

// Peer is another grid, as decided and as it is now.
type Peer struct {
	Name        string   `json:"name"`
	Grid        string   `json:"grid"`
	Fingerprint string   `json:"fingerprint"`
	State       string   `json:"state"`
	Title       string   `json:"title,omitempty"` // what the grid calls itself
	Allow       []string `json:"allow"`
	// Matrix narrows what "matrix" in Allow opens; nil where that is not there.
	Matrix *MatrixPolicy `json:"matrix,omitempty"`
	// MQTT is what "mqtt" in Allow opens; nil where that is not there.
	MQTT    *MQTTPolicy `json:"mqtt,omitempty"`
	Domains []Domain    `json:"domains,omitempty"`
	// Stale says that the newest descriptor is past its date; it still counts.
	Stale bool `json:"stale,omitempty"`
	// There is what the other side made of this grid, in the answer to accept.
	There   string    `json:"there,omitempty"`
	Created time.Time `json:"created"`
	Nodes   []string  `json:"nodes,omitempty"`

	Up        bool          `json:"up"`
	Link      string        `json:"link,omitempty"` // the link's own state
	LastHeard time.Time     `json:"last_heard,omitzero"`
	RTT       time.Duration `json:"rtt_ns,omitempty"`
	Transport string        `json:"transport,omitempty"`
	Address   string        `json:"address,omitempty"`
	LastError string        `json:"last_error,omitempty"`

	Lanes []Lane `json:"lanes,omitempty"` // its durable lanes
}

// MatrixPolicy is what the configuration says of a peer that is allowed Matrix.
type MatrixPolicy struct {
	// Servers are the only server names of the peer that take part; empty: all
	// that it holds.
	Servers     []string `json:"servers,omitempty"`
	DenyServers []string `json:"deny_servers,omitempty"`
	DenyRooms   []string `json:"deny_rooms,omitempty"`
	// Custody keeps transactions on disk here for the peer.
	Custody bool `json:"custody"`
}

// MQTTPolicy is what the configuration says of a peer that is allowed MQTT.
type MQTTPolicy struct {
	// Exports are topics here and what the peer gets them as, Imports topics of the
	// peer and what they become here. The first that matches decides.
	Exports  []MQTTRule `json:"exports"`
	Imports  []MQTTRule `json:"imports"`
	Overflow string     `json:"overflow"`
	// Rate is in messages per second, 0 without a bound.
	Rate float64       `json:"rate,omitempty"`
	TTL  time.Duration `json:"ttl_ns,omitempty"` // 0: that of the limits
}

// MQTTRule lets the topics that match a filter cross.
type MQTTRule struct {
	Filter string `json:"filter"`
	// As is a prefix, which ends in "/", or a template; empty: they stay as they are.
	As      string `json:"as,omitempty"`
	QoS     byte   `json:"qos"`
	Retain  bool   `json:"retain"`
	Transit bool   `json:"transit,omitempty"`
}

// Store is how the database is.
type Store struct {
	// State is ok, full, locked, damaged or failing. While it is not ok nothing
	// is acknowledged, neither to the local server nor to peers.
	State string    `json:"state"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
	// Fix is what the operator can do about it.
	Fix string `json:"fix,omitempty"`
	// Checking says that the integrity check of the start still runs.
	Checking bool  `json:"checking,omitempty"`
	Bytes    int64 `json:"bytes"` // of the database file
	WALBytes int64 `json:"wal_bytes"`
}

// Untold says that there are dead letters of one peer whose senders do not know.
type Untold struct {
	Peer  string    `json:"peer"`
	Since time.Time `json:"since"` // when the oldest of them was given up
}

// Lane is what waits in one durable lane of a peer.
type Lane struct {
	Peer string `json:"peer"`
	Lane string `json:"lane"`
	// Dir is "out" for what waits for the peer, "in" for what came from it and
	// waits for the local server.
	Dir   string `json:"dir"`
	Items int64  `json:"items"`
	Bytes int64  `json:"bytes"`
	// MaxItems and MaxBytes are the quota of a lane out.
	MaxItems int64     `json:"max_items,omitempty"`
	MaxBytes int64     `json:"max_bytes,omitempty"`
	Oldest   time.Time `json:"oldest,omitzero"` // when it was taken
	// Streaming says that a stream of the lane is open with the peer.
	Streaming bool `json:"streaming"`
	// Link is the state of the link to the peer, or of the peer where that keeps
	// the link down.
	Link string `json:"link"`
}

// Outbox is what waits, and the first items of one peer where one was asked for.
type Outbox struct {
	Lanes []Lane `json:"lanes"`
	Items []Item `json:"items,omitempty"`
}

// Item is something that waits for a peer, or a dead letter: one that was given up.
type Item struct {
	// Name is what the commands call it: chat/42, or dead/7.
	Name     string    `json:"name"`
	Peer     string    `json:"peer"`
	Lane     string    `json:"lane"`
	Seq      uint64    `json:"seq"`
	Protocol string    `json:"protocol"`
	Taken    time.Time `json:"taken,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	Bytes    int       `json:"bytes"` // of the body
	// Sent says that it is on its way: the peer may have it.
	Sent bool `json:"sent"`

	// What the first tag of the stanza says, the head of a Matrix transaction, or a
	// publication's: its topic is To, its QoS Type.
	Stanza string `json:"stanza,omitempty"` // message
	Type   string `json:"type,omitempty"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	ID     string `json:"id,omitempty"`

	Body string `json:"body,omitempty"` // only where it was asked for
	Dead *Dead  `json:"dead,omitempty"`
}

// Dead is why and when an item was given up.
type Dead struct {
	ID     int64     `json:"id"`
	Reason string    `json:"reason"` // expired, dropped or peer
	Detail string    `json:"detail,omitempty"`
	Died   time.Time `json:"died"`
	Told   bool      `json:"told"` // its sender knows
}

// Stream is one s2s stream with the local XMPP server.
type Stream struct {
	Dir       string    `json:"dir"` // in: from the local server
	From      string    `json:"from"`
	To        string    `json:"to"`
	State     string    `json:"state"` // open, opening or down
	Since     time.Time `json:"since,omitzero"`
	LastError string    `json:"last_error,omitempty"`
}

// Matrix is how things stand with peers' homeservers.
type Matrix struct {
	Server string       `json:"server"` // the own homeserver
	Keys   []MatrixKeys `json:"keys"`
	Wakes  []MatrixWake `json:"wakes"`
}

// MatrixKeys are the signing keys of a peer's server, by key id, as they were seen.
type MatrixKeys struct {
	Peer       string            `json:"peer"`
	Server     string            `json:"server"`
	Keys       map[string]string `json:"keys"`
	Fetched    time.Time         `json:"fetched,omitzero"`
	ValidUntil time.Time         `json:"valid_until,omitzero"`
	// Changed is when the server was last found with other keys than Before.
	Changed time.Time         `json:"changed,omitzero"`
	Before  map[string]string `json:"before,omitempty"`
	Problem string            `json:"problem,omitempty"` // why they could not be fetched
}

// MatrixWake is whether the own homeserver has spoken to a peer's since the link to
// it came up.
type MatrixWake struct {
	Peer    string    `json:"peer"`
	Server  string    `json:"server"`
	Reached time.Time `json:"reached,omitzero"`
	Problem string    `json:"problem,omitempty"`
}

// MQTT is how things stand with the operator's broker and the peers' topics.
type MQTT struct {
	Broker    string    `json:"broker"`
	Connected bool      `json:"connected"`
	Version   string    `json:"version,omitempty"` // 5 or 3.1.1
	Since     time.Time `json:"since,omitzero"`
	Problem   string    `json:"problem,omitempty"` // why it is not connected
	InFlight  int       `json:"in_flight"`         // to the broker, not acknowledged by it
	Waiting   int       `json:"waiting"`           // to the broker, not sent
	Unacked   int       `json:"unacked"`           // from the broker, not on disk for all peers
	// Refused are the subscriptions that the broker does not allow, and why.
	Refused map[string]string `json:"refused,omitempty"`
	Peers   []MQTTPeer        `json:"peers"`
}

// MQTTPeer is a peer that may use MQTT.
type MQTTPeer struct {
	Peer     string    `json:"peer"`
	Exports  int       `json:"exports"` // rules
	Imports  int       `json:"imports"`
	Waiting  int       `json:"waiting"` // for the disk
	Full     time.Time `json:"full,omitzero"`
	Overflow string    `json:"overflow,omitempty"`
}

// Leaf is a certificate that this node shows, and when it ends.
type Leaf struct {
	Address string    `json:"address"`
	Expires time.Time `json:"expires"`
}

// Domain is one claim.
type Domain struct {
	Protocol string `json:"protocol"`
	Domain   string `json:"domain"`
	Peer     string `json:"peer"` // petname; "(own)" for this grid's own
	Grid     string `json:"grid"`
	Status   string `json:"status"`
}

// InviteRequest asks for an invite.
type InviteRequest struct {
	Name   string        `json:"name"`
	Expect []string      `json:"expect"`
	TTL    time.Duration `json:"ttl_ns"`
}

// Invite is the string that one operator gives another.
type Invite struct {
	ID      string    `json:"id"` // for revoking it
	Name    string    `json:"name"`
	Invite  string    `json:"invite"`
	Expires time.Time `json:"expires"`
	// Reachable is false when the invite names no peering for the other side.
	Reachable bool `json:"reachable"`
}

// ListedInvite is an invite that was made here; its string is not kept.
type ListedInvite struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Expect  []string  `json:"expect_domains"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Status  string    `json:"status"`            // open, used, revoked or expired
	UsedBy  string    `json:"used_by,omitempty"` // the grid
}

// AcceptRequest carries an invite and the name for the grid it comes from.
type AcceptRequest struct {
	Invite string `json:"invite"`
	Name   string `json:"name"`
	// Domains are those that were shown, of a Preview, and are said yes to: nothing is
	// accepted if the grid claims others by now. A Preview needs none.
	Domains []Domain `json:"domains,omitempty"`
}

// Preview is what an invite says before anything is changed.
type Preview struct {
	Grid        string `json:"grid"`
	Fingerprint string `json:"fingerprint"`
	Name        string `json:"name"`
	// Peerings are ways into the mesh that come with the invite; they are kept
	// while the grid is a peer.
	Peerings []string  `json:"peerings,omitempty"`
	Node     string    `json:"node"`
	Expires  time.Time `json:"expires"`
	Domains  []Domain  `json:"domains"`
	// Known is this operator's name for the grid, when it is a peer already.
	Known string `json:"known,omitempty"`
}

// DomainRequest decides who holds a domain.
type DomainRequest struct {
	// Protocol may be empty: the one in which the peer's claim is undecided.
	Protocol string `json:"protocol"`
	Domain   string `json:"domain"`
	Peer     string `json:"peer"`
}

// RouteRequest asks what would become of traffic to an address.
type RouteRequest struct {
	Address string
	// Protocol may be empty: the one whose form the address has.
	Protocol string
}

// Route is how an address would be treated, hop by hop.
type Route struct {
	Address string `json:"address"`
	Hops    []Hop  `json:"hops"`
	OK      bool   `json:"ok"`
}

// Hop is one decision on the way; the first that is not OK is where it ends.
type Hop struct {
	Step string `json:"step"`
	OK   bool   `json:"ok"`
	Text string `json:"text"`
	Fix  string `json:"fix,omitempty"`
}

// Done says what a request changed and, where there is one, the next step.
type Done struct {
	Done string   `json:"done"`
	Next string   `json:"next,omitempty"`
	More []string `json:"more,omitempty"`
}
