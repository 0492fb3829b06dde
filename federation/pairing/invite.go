package pairing

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// An invite is "YG1" and the base32, without padding, of
//
//	version 1, flags 1, grid key 32, secret 16, expiry 4 (Unix seconds),
//	fields of type 1, length 1, value,
//	CRC-32 (IEEE) 4 of all before it,
//
// all upper case, so that a QR code can take its compact alphanumeric mode.
const (
	invitePrefix  = "YG1"
	inviteVersion = 1
	headLen       = 1 + 1 + ed25519.PublicKeySize + secretLen + 4
	secretLen     = 16
	idLen         = 16
	maxInvite     = 1500 // characters; what a QR code still shows legibly
	maxPeerings   = 4
	maxNodeAddrs  = 4
	maxURI        = 200
)

// The types of fields.
const (
	fieldYgg     = 1 // Yggdrasil key, 32 bytes
	fieldI2P     = 2 // I2P destination hash, 32 bytes
	fieldPeering = 3 // URI of a way into the mesh
	fieldNode    = 4 // address on another network, as transports.Addr.ID writes it
)

var (
	b32    = base32.StdEncoding.WithPadding(base32.NoPadding)
	b32i2p = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
)

// i2pSuffix ends the base32 name of an I2P destination.
const i2pSuffix = ".b32.i2p"

// Invite is what an invite string says. Whoever holds it may become a peer of the
// grid that made it, once.
type Invite struct {
	// Grid is the inviting grid's current key, which the far end must prove.
	Grid ed25519.PublicKey
	// Expires is the end of its worth, to the second.
	Expires time.Time
	// Nodes are the addresses of the inviting grid's nodes, Port zero.
	Nodes []transports.Addr
	// Peerings are URIs of ways into the mesh, for a grid that has none.
	Peerings []string

	secret [secretLen]byte
}

// newInvite makes an invite with a fresh secret.
func newInvite(grid ed25519.PublicKey, expires time.Time, nodes []transports.Addr, peerings []string) (Invite, error) {
	inv := Invite{Grid: grid, Expires: expires.Truncate(time.Second), Nodes: nodes, Peerings: peerings}
	if _, err := rand.Read(inv.secret[:]); err != nil {
		return Invite{}, err
	}
	return inv, nil
}

// ID names the invite without giving its secret away, in 32 hex digits.
func (inv Invite) ID() string { return hex.EncodeToString(inv.idBytes()) }

func (inv Invite) idBytes() []byte { return inv.derive("yggate/invite-id/1", idLen) }

// macKey is the key of the HMACs by which both sides prove that they know the
// secret. It is what the inviting side keeps.
func (inv Invite) macKey() []byte { return inv.derive("yggate/invite-key/1", sha256.Size) }

func (inv Invite) derive(label string, n int) []byte {
	out, err := hkdf.Key(sha256.New, inv.secret[:], nil, label, n)
	if err != nil {
		panic(err) // only for lengths that HKDF cannot give
	}
	return out
}

// Encode returns the invite string. It refuses what Parse would refuse.
func (inv Invite) Encode() (string, error) {
	raw := []byte{inviteVersion, 0}
	raw = append(raw, inv.Grid...)
	raw = append(raw, inv.secret[:]...)
	raw = binary.BigEndian.AppendUint32(raw, uint32(inv.Expires.Unix()))
	field := func(typ byte, value []byte) { raw = append(append(raw, typ, byte(len(value))), value...) }
	for _, a := range inv.Nodes {
		if len(a.ID()) > maxURI {
			return "", fmt.Errorf("encode invite: node address %.40q is too long", a.ID())
		}
		typ, value := encodeNode(a)
		field(typ, value)
	}
	for _, u := range inv.Peerings {
		if err := checkPeering(u); err != nil {
			return "", fmt.Errorf("encode invite: %w", err)
		}
		field(fieldPeering, []byte(u))
	}
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	s := invitePrefix + b32.EncodeToString(raw)
	if _, err := Parse(s); err != nil {
		return "", fmt.Errorf("encode invite: %w", err)
	}
	return s, nil
}

// Parse reads an invite string, which may have white space around it. Whether it
// has expired is not its matter, see Expired.
func Parse(s string) (Invite, error) {
	inv, err := parse(strings.TrimSpace(s))
	if err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	return inv, nil
}

func parse(s string) (inv Invite, err error) {
	raw, err := unwrap(s)
	if err != nil {
		return inv, err
	}
	if raw[0] != inviteVersion || raw[1] != 0 {
		return inv, fmt.Errorf("version %d.%d is not known here; upgrade this yggate", raw[0], raw[1])
	}
	head, rest := raw[2:headLen], raw[headLen:]
	inv.Grid = ed25519.PublicKey(head[:ed25519.PublicKeySize])
	copy(inv.secret[:], head[ed25519.PublicKeySize:])
	inv.Expires = time.Unix(int64(binary.BigEndian.Uint32(head[len(head)-4:])), 0)
	for len(rest) > 0 {
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return inv, errors.New("a field is cut off")
		}
		if err := inv.addField(rest[0], rest[2:2+int(rest[1])]); err != nil {
			return inv, err
		}
		rest = rest[2+int(rest[1]):]
	}
	if len(inv.Nodes) == 0 || len(inv.Nodes) > maxNodeAddrs || len(inv.Peerings) > maxPeerings {
		return inv, fmt.Errorf("%d node addresses and %d peerings, want 1 to %d and at most %d",
			len(inv.Nodes), len(inv.Peerings), maxNodeAddrs, maxPeerings)
	}
	return inv, nil
}

// unwrap undoes the text form and checks the sum.
func unwrap(s string) ([]byte, error) {
	switch {
	case len(s) > maxInvite:
		return nil, fmt.Errorf("%d characters are too many; copy the invite alone", len(s))
	case !strings.HasPrefix(s, "YG"):
		return nil, errors.New(`it must start with "YG1"; copy the whole string, in upper case, that "yggate invite" printed`)
	case !strings.HasPrefix(s, invitePrefix):
		return nil, fmt.Errorf("form %.3q is not known here, only %q; upgrade the older side", s, invitePrefix)
	}
	text := s[len(invitePrefix):]
	if i := strings.IndexFunc(text, func(r rune) bool { return !(r >= 'A' && r <= 'Z' || r >= '2' && r <= '7') }); i >= 0 {
		return nil, fmt.Errorf("%q at character %d: only A-Z and 2-7 occur in it; copy it again", []rune(text[i:])[0], len(invitePrefix)+i+1)
	}
	raw, err := b32.DecodeString(text)
	if err != nil || b32.EncodeToString(raw) != text || len(raw) < headLen+4 {
		return nil, fmt.Errorf("%d characters make no invite; some are missing, copy it again", len(s))
	}
	body, sum := raw[:len(raw)-4], binary.BigEndian.Uint32(raw[len(raw)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return nil, errors.New("the checksum does not fit: a character is mistyped or missing; copy it again")
	}
	return body, nil
}

func (inv *Invite) addField(typ byte, value []byte) error {
	switch typ {
	case fieldYgg, fieldI2P, fieldNode:
		a, err := decodeNode(typ, value)
		if err != nil {
			return err
		}
		if slices.Contains(inv.Nodes, a) {
			return fmt.Errorf("node address %s occurs twice", a.ID())
		}
		inv.Nodes = append(inv.Nodes, a)
	case fieldPeering:
		if err := checkPeering(string(value)); err != nil {
			return err
		}
		inv.Peerings = append(inv.Peerings, string(value))
	default:
		return fmt.Errorf("field %d is not known here; upgrade this yggate", typ)
	}
	return nil
}

// encodeNode takes the short binary form for the networks that have one.
func encodeNode(a transports.Addr) (typ byte, value []byte) {
	if raw, err := hex.DecodeString(a.Node); a.Net == "ygg" && err == nil && len(raw) == 32 && hex.EncodeToString(raw) == a.Node {
		return fieldYgg, raw
	}
	if name, ok := strings.CutSuffix(a.Node, i2pSuffix); a.Net == "i2p" && ok {
		if raw, err := b32i2p.DecodeString(name); err == nil && len(raw) == 32 && b32i2p.EncodeToString(raw) == name {
			return fieldI2P, raw
		}
	}
	return fieldNode, []byte(a.ID())
}

func decodeNode(typ byte, value []byte) (transports.Addr, error) {
	if typ != fieldNode && len(value) != 32 {
		return transports.Addr{}, fmt.Errorf("node address of %d bytes, want 32", len(value))
	}
	switch typ {
	case fieldYgg:
		return transports.Addr{Net: "ygg", Node: hex.EncodeToString(value)}, nil
	case fieldI2P:
		return transports.Addr{Net: "i2p", Node: b32i2p.EncodeToString(value) + i2pSuffix}, nil
	}
	if err := federation.CheckNodeAddr(string(value)); err != nil {
		return transports.Addr{}, err
	}
	a, err := transports.ParseID(string(value))
	if err != nil {
		return a, err
	}
	if short, _ := encodeNode(a); short != fieldNode {
		return a, fmt.Errorf("node address %s is not in its short form", a.ID())
	}
	return a, nil
}

// checkPeering lets only the schemes through that reach a node over a network:
// an invite must not make a gateway open local sockets.
func checkPeering(uri string) error {
	u, err := url.Parse(uri)
	ok := err == nil && u.Host != "" && u.Hostname() != "" && len(uri) <= maxURI && u.User == nil &&
		slices.Contains([]string{"tcp", "tls", "quic", "ws", "wss"}, u.Scheme)
	for i := range len(uri) {
		ok = ok && uri[i] > ' ' && uri[i] <= '~'
	}
	if !ok {
		return fmt.Errorf("peering %.210q: want a URI like tls://host:port of at most %d bytes", uri, maxURI)
	}
	return nil
}

// Expired returns an error that names the date if the invite is past its time.
func (inv Invite) Expired(now time.Time) error {
	if now.Before(inv.Expires) {
		return nil
	}
	return fmt.Errorf("invite: it expired at %s; ask for a new one", inv.Expires.UTC().Format(time.RFC3339))
}
