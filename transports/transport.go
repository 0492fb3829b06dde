// Package transports is the seam between yggate and the networks that carry it.
//
// A transport gives authenticated byte streams between nodes: the Remote of a
// Conn is proven by the network itself (a full Yggdrasil key, an I2P
// destination), never taken from a name or a routing prefix. Who a node belongs
// to, and whether it may speak at all, is decided above, in federation/link.
package transports

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Addr names a service of one node on one network.
type Addr struct {
	// Net is the network: "ygg", "i2p" or "tcp".
	Net string
	// Node is the node's identity in that network's own text form: the 64 hex
	// digits of an Yggdrasil key, an I2P destination's base32 name, or (tcp,
	// which is for tests) an IP literal.
	Node string
	// Port is the service on that node.
	Port uint16
}

var _ net.Addr = Addr{}

// Network returns Net; with String it makes Addr a net.Addr.
func (a Addr) Network() string { return a.Net }

// String returns the form "net:node:port", as it stands in logs.
func (a Addr) String() string { return a.ID() + ":" + strconv.Itoa(int(a.Port)) }

// ID returns "net:node", the form that leaves (as a URI) and descriptors carry.
// Two addresses with one ID are two services of the same node.
func (a Addr) ID() string { return a.Net + ":" + a.Node }

// ParseID reads the form that Addr.ID writes; Port is left zero.
func ParseID(id string) (Addr, error) {
	network, node, ok := strings.Cut(id, ":")
	if !ok || network == "" || node == "" {
		return Addr{}, fmt.Errorf("node address %q: want NETWORK:NODE", id)
	}
	return Addr{Net: network, Node: node}, nil
}

// Transport opens and accepts streams on one network.
type Transport interface {
	// Run works until ctx is done and then returns nil with everything closed.
	// Dial and Listen may be called before it; they wait for it.
	Run(ctx context.Context) error
	// Dial opens a stream to a node. It waits, within ctx, until the node is
	// seen to be reachable, so that it succeeds soon after a path comes up.
	Dial(ctx context.Context, to Addr) (Conn, error)
	// Listen accepts streams on a port of this node, on this network only.
	Listen(port uint16) (Listener, error)
	// Status is a snapshot for people and metrics; it does not block.
	Status() Status
}

// Conn is a stream whose far end the network has authenticated.
type Conn interface {
	net.Conn
	// Remote is the authenticated far end. Its Port means nothing on the
	// accepting side.
	Remote() Addr
}

// Listener accepts Conns. Accept returns net.ErrClosed after Close.
type Listener interface {
	Accept() (Conn, error)
	Close() error
	// Addr is this node's own address with the listener's port.
	Addr() Addr
}

// Status is what a transport knows of itself.
type Status struct {
	// Self is this node's address, Port zero.
	Self Addr `json:"self"`
	// Up says that at least one peering works, or that none is needed.
	Up       bool      `json:"up"`
	Peerings []Peering `json:"peerings,omitempty"`
	Paths    []Path    `json:"paths,omitempty"`
}

// Peering is a direct link of this node into the network.
type Peering struct {
	URI     string        `json:"uri"`
	Up      bool          `json:"up"`
	Inbound bool          `json:"inbound"`
	Node    string        `json:"node,omitempty"` // far end, hex key
	Latency time.Duration `json:"latency_ns,omitempty"`
	Uptime  time.Duration `json:"uptime_ns,omitempty"`
	RxBytes uint64        `json:"rx_bytes"`
	TxBytes uint64        `json:"tx_bytes"`
	// LastError says why a peering is down, in the network's own words.
	LastError string `json:"last_error,omitempty"`
}

// Path is a known way to a node and the end-to-end session over it.
type Path struct {
	Node    string        `json:"node"`
	Session bool          `json:"session"`
	Uptime  time.Duration `json:"uptime_ns,omitempty"`
	RxBytes uint64        `json:"rx_bytes"`
	TxBytes uint64        `json:"tx_bytes"`
	// Hops is the route of switch ports to the node, nil when none is known.
	Hops []uint64 `json:"hops,omitempty"`
}
