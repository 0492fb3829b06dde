// Package federation is the vocabulary that every part of yggate shares: grids
// and their keys, peers and their states, who owns a domain, what a peer may do.
//
// It knows no wire and no protocol. federation/link proves who a peer is,
// federation/pairing makes two grids meet, federation/lane carries items between
// them, and the adapters (federation/xmpp, ...) speak to the local servers.
package federation

import (
	"crypto/ed25519"
	"encoding/base32"
	"fmt"
	"strings"
)

// GridID is a grid's lasting name: its first grid key in lower-case base32
// without padding, 52 characters, so that it fits a DNS label. It stays the same
// when the grid key is rotated.
type GridID string

var b32 = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewGridID returns the id of the grid whose first key is pub.
func NewGridID(pub ed25519.PublicKey) GridID {
	return GridID(strings.ToLower(b32.EncodeToString(pub)))
}

// ParseGridID checks that s has the form of a grid id.
func ParseGridID(s string) (GridID, error) {
	id := strings.ToLower(s)
	if !isGridID(id) {
		return "", fmt.Errorf("grid id %q: want the %d base32 characters that `yggate status` shows", s, idLen)
	}
	return GridID(id), nil
}

var idLen = b32.EncodedLen(ed25519.PublicKeySize)

// isGridID says whether s is the id of some key. It does not decode it, since each
// message of some protocols has ids in it.
func isGridID(s string) bool {
	if len(s) != idLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return false
		}
	}
	// Of the last character one bit belongs to the key. The others must be zero, so
	// that one key has exactly one id.
	last := s[len(s)-1]
	return last == 'a' || last == 'q'
}

// Key returns the first grid key, the one the id was made from. It is nil for
// an id that ParseGridID would refuse.
func (id GridID) Key() ed25519.PublicKey {
	raw, err := b32.DecodeString(strings.ToUpper(string(id)))
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil
	}
	return raw
}

// Short is the beginning of the id, for logs and tables that people read. It is
// never compared.
func (id GridID) Short() string {
	if len(id) < 8 {
		return string(id)
	}
	return string(id[:8])
}

// Fingerprint is the whole id in groups of four, for two people to compare.
func (id GridID) Fingerprint() string {
	var b strings.Builder
	for i := 0; i < len(id); i += 4 {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(string(id[i:min(i+4, len(id))]))
	}
	return b.String()
}

// Protocol is one of the protocols that yggate carries between grids.
type Protocol string

// The protocols, as they stand in configuration, descriptors and labels.
const (
	XMPP   Protocol = "xmpp"
	Matrix Protocol = "matrix"
	MQTT   Protocol = "mqtt"
)

// Bounces says whether the protocol has a way to tell a sender what did not arrive.
func (p Protocol) Bounces() bool { return p == XMPP }
