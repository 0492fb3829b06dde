package federation

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Hash is a SHA-256, in text "sha256:" and 64 lower-case hex digits.
type Hash [sha256.Size]byte

// HashKey returns the hash by which a descriptor announces its next grid key.
func HashKey(pub ed25519.PublicKey) Hash { return sha256.Sum256(pub) }

// spkiHash hashes a public key as certificates carry it (SubjectPublicKeyInfo).
func spkiHash(pub any) (Hash, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	return sha256.Sum256(der), err
}

// String returns the text form.
func (h Hash) String() string { return "sha256:" + hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes only the exact form.
func (h *Hash) UnmarshalText(text []byte) error {
	raw, err := unhex("sha256:", text, sha256.Size)
	copy(h[:], raw)
	return err
}

// GridKey is a grid's public key, in text "ed25519:" and 64 lower-case hex digits.
type GridKey ed25519.PublicKey

// String returns the text form.
func (k GridKey) String() string { return "ed25519:" + hex.EncodeToString(k) }

// MarshalText implements encoding.TextMarshaler.
func (k GridKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it takes only the exact form.
func (k *GridKey) UnmarshalText(text []byte) error {
	raw, err := unhex("ed25519:", text, ed25519.PublicKeySize)
	*k = raw
	return err
}

func unhex(prefix string, text []byte, size int) ([]byte, error) {
	digits, ok := strings.CutPrefix(string(text), prefix)
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != size || digits != strings.ToLower(digits) {
		return nil, fmt.Errorf("%.80q: want %s and %d lower-case hex digits", text, prefix, 2*size)
	}
	return raw, nil
}

// Signature is an Ed25519 signature, in text standard base64.
type Signature []byte

// MarshalText implements encoding.TextMarshaler.
func (s Signature) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, s), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Signature) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) != ed25519.SignatureSize {
		return fmt.Errorf("signature: want %d bytes in base64", ed25519.SignatureSize)
	}
	*s = raw
	return nil
}

// gridFile is the second block of the grid key file.
type gridFile struct {
	Grid GridID     `json:"grid"`
	Next Hash       `json:"next"`
	Past []Rotation `json:"past,omitempty"`
}

func marshalGrid(id *Identity) ([]byte, error) {
	return json.Marshal(gridFile{Grid: id.id, Next: id.next, Past: id.past})
}

func unmarshalGrid(raw []byte, key ed25519.PrivateKey) (*Identity, error) {
	var f gridFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("history of the grid key: %w", err)
	}
	if _, err := ParseGridID(string(f.Grid)); err != nil {
		return nil, err
	}
	if err := verifyHistory(f.Grid, f.Past, key.Public().(ed25519.PublicKey)); err != nil {
		return nil, fmt.Errorf("history of the grid key: %w", err)
	}
	return &Identity{id: f.Grid, key: key, next: f.Next, past: f.Past}, nil
}
