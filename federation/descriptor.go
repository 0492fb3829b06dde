package federation

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/yggate/yggate/transports"
)

// Bounds of a descriptor.
const (
	// MaxEnvelope is the longest signed descriptor, in bytes.
	MaxEnvelope = 16 << 10
	// DescriptorLifetime is how long a descriptor is fresh. Expiry is soft: a
	// stale one is shown and still used.
	DescriptorLifetime = 90 * 24 * time.Hour

	descriptorVersion = 1
	descriptorContext = "yggate/descriptor/1\x00"
	maxDepth          = 8
	maxClockAhead     = 10 * time.Minute
	maxNodes          = 16
	maxAddrs          = 8
	maxClaims         = 64 // per protocol
	maxRevoked        = 64
	maxGridName       = 64
)

// Descriptor is what a grid signs about itself. The exact bytes that were signed
// are what is stored and forwarded; this is how they read.
type Descriptor struct {
	Version int        `json:"v"`
	Grid    GridID     `json:"grid"`
	Rot     int        `json:"rot"` // how often the grid key was rotated
	Seq     uint64     `json:"seq"` // grows with each change; descriptors are ordered by (Rot, Seq)
	Key     GridKey    `json:"key"` // current grid key, which signed this
	Next    Hash       `json:"next"`
	Past    []Rotation `json:"past,omitempty"`
	Issued  int64      `json:"issued"`  // Unix seconds
	Expires int64      `json:"expires"` // Unix seconds
	Name    string     `json:"name"`    // what the grid calls itself; proves nothing

	Nodes   []Node `json:"nodes"`
	Revoked []Hash `json:"revoked,omitempty"` // SPKI of nodes that must be refused

	XMPP   *XMPPService   `json:"xmpp,omitempty"`
	Matrix *MatrixService `json:"matrix,omitempty"`
	MQTT   *MQTTService   `json:"mqtt,omitempty"`
}

// Node is one machine of a grid's gateway.
type Node struct {
	ID    string   `json:"id"`
	SPKI  Hash     `json:"spki"`  // of the node's TLS key
	Addrs []string `json:"addrs"` // as transports.Addr.ID writes them
	Prio  int      `json:"prio"`  // the lowest is tried first
}

// XMPPService is what a grid offers over XMPP.
type XMPPService struct {
	Domains   []string `json:"domains"`              // normalised
	MaxStanza int      `json:"max_stanza,omitempty"` // bytes; 0: unknown
}

// MatrixService is what a grid offers over Matrix.
type MatrixService struct {
	ServerNames []string `json:"server_names"`
}

// MQTTService is what a grid offers over MQTT.
type MQTTService struct {
	Prefixes []string `json:"prefixes"` // topic prefixes that end in "/"
}

// Errors that AcceptDescriptor and ParseDescriptor tell apart.
var (
	// ErrRollback: the descriptor is older than the one already accepted.
	ErrRollback = errors.New("the descriptor is not newer than the one already known")
	// ErrBadDescriptor: the descriptor is malformed or not rightly signed.
	ErrBadDescriptor = errors.New("bad descriptor")
)

// Stale says whether the descriptor is past its soft expiry.
func (d *Descriptor) Stale(now time.Time) bool { return now.After(time.Unix(d.Expires, 0)) }

// Addrs returns the node addresses in the order in which they should be tried,
// Port zero.
func (d *Descriptor) Addrs() []transports.Addr {
	nodes := slices.Clone(d.Nodes)
	slices.SortStableFunc(nodes, func(a, b Node) int { return cmp.Compare(a.Prio, b.Prio) })
	var addrs []transports.Addr
	for _, n := range nodes {
		for _, id := range n.Addrs {
			if a, err := transports.ParseID(id); err == nil { // ParseDescriptor made sure
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// Revokes says whether the grid has revoked the node with that TLS key.
func (d *Descriptor) Revokes(node Hash) bool { return slices.Contains(d.Revoked, node) }

// Claims returns the domains that the grid says are its own.
func (d *Descriptor) Claims() []Claim {
	var claims []Claim
	add := func(proto Protocol, domains []string) {
		for _, domain := range domains {
			claims = append(claims, Claim{Protocol: proto, Domain: domain, Grid: d.Grid, Status: ClaimPending})
		}
	}
	if d.XMPP != nil {
		add(XMPP, d.XMPP.Domains)
	}
	if d.Matrix != nil {
		add(Matrix, d.Matrix.ServerNames)
	}
	return claims
}

// envelope is how a descriptor travels: the signed bytes, verbatim.
type envelope struct {
	Payload []byte    `json:"payload"`
	Sig     Signature `json:"sig"`
}

// signDescriptor returns the envelope of d. The same d gives the same bytes.
func signDescriptor(key ed25519.PrivateKey, d *Descriptor) ([]byte, error) {
	payload, err := json.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("sign descriptor: %w", err)
	}
	out, err := json.Marshal(envelope{
		Payload: payload,
		Sig:     ed25519.Sign(key, append([]byte(descriptorContext), payload...)),
	})
	if err != nil {
		return nil, fmt.Errorf("sign descriptor: %w", err)
	}
	if len(out) > MaxEnvelope {
		return nil, fmt.Errorf("sign descriptor: %d bytes, at most %d are allowed; claim fewer domains", len(out), MaxEnvelope)
	}
	return out, nil
}

// ParseDescriptor reads and verifies an envelope: its form, its signature by the
// key it names, and that this key is that of the grid it names. Whether it is
// newer than what is known, and whether the grid is welcome, is the Registry's
// to say. Unknown members are ignored, so that a later version may add some;
// every error wraps ErrBadDescriptor.
func ParseDescriptor(raw []byte, now time.Time) (*Descriptor, error) {
	d, err := parseDescriptor(raw, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadDescriptor, err)
	}
	return d, nil
}

func parseDescriptor(raw []byte, now time.Time) (*Descriptor, error) {
	if len(raw) > MaxEnvelope {
		return nil, fmt.Errorf("%d bytes, at most %d are allowed", len(raw), MaxEnvelope)
	}
	var env envelope
	if err := DecodeJSON(raw, &env); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	var version struct {
		V int `json:"v"`
	}
	if err := DecodeJSON(env.Payload, &version); err != nil {
		return nil, err
	}
	if version.V != descriptorVersion {
		return nil, fmt.Errorf("version %d, and this yggate knows version %d only; upgrade the older side", version.V, descriptorVersion)
	}
	d := new(Descriptor)
	if err := json.Unmarshal(env.Payload, d); err != nil {
		return nil, err
	}
	if len(d.Key) != ed25519.PublicKeySize {
		return nil, errors.New("no key")
	}
	// Not worth a word about anything inside before the signature holds.
	if !ed25519.Verify(ed25519.PublicKey(d.Key), append([]byte(descriptorContext), env.Payload...), env.Sig) {
		return nil, errors.New("the signature does not fit its key")
	}
	if err := d.check(now); err != nil {
		return nil, err
	}
	return d, nil
}
