package federation

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The files of an identity. GridKeyFile holds the current grid key and, after it,
// the history of the keys before it; NodeKeyFile this node's TLS key.
const (
	GridKeyFile = "grid.key"
	NodeKeyFile = "node.key"
)

// MaxRotations bounds how often a grid key can be rotated, so that the history
// fits a descriptor.
const MaxRotations = 16

// Identity is this grid's long-term key and this node's transport key. It is safe
// for concurrent use.
type Identity struct {
	id   GridID
	key  ed25519.PrivateKey // current grid key
	node ed25519.PrivateKey
	next Hash // of the public key that the recovery sheet stands for
	past []Rotation

	now func() time.Time

	mu     sync.Mutex
	leaves map[string]*tls.Certificate // by Addr.ID
}

// CreateIdentity makes a grid's keys in dir, which it creates with mode 0700.
// recovery is the recovery sheet: it stands for the next grid key, is on no disk,
// and is the only way to take the grid back after its key was stolen.
func CreateIdentity(dir string) (id *Identity, recovery string, err error) {
	fail := func(err error) (*Identity, string, error) {
		return nil, "", fmt.Errorf("create identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	path := filepath.Join(dir, GridKeyFile)
	if _, err := os.Lstat(path); err == nil {
		return fail(fmt.Errorf("%s exists: this grid has an identity already", path))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return fail(err)
	}
	recovery, next, err := newRecovery()
	if err != nil {
		return fail(err)
	}
	// The node key first: a crash in between leaves no grid key behind, and
	// the next attempt starts over.
	nodePath := filepath.Join(dir, NodeKeyFile)
	node, err := LoadKeyFile(nodePath)
	if errors.Is(err, fs.ErrNotExist) {
		node, err = CreateKeyFile(nodePath)
	}
	if err != nil {
		return fail(err)
	}
	id = &Identity{id: NewGridID(pub), key: key, node: node, next: HashKey(next.Public().(ed25519.PublicKey))}
	if err := id.writeGridKey(dir); err != nil {
		return fail(err)
	}
	return id.ready(), recovery, nil
}

// LoadIdentity reads the keys that CreateIdentity made. Its errors name the file
// and the remedy.
func LoadIdentity(dir string) (*Identity, error) {
	id, err := loadGridKey(dir)
	if err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	if id.node, err = LoadKeyFile(filepath.Join(dir, NodeKeyFile)); err != nil {
		return nil, fmt.Errorf("load identity: %w", err)
	}
	return id.ready(), nil
}

// Rotate makes the key of the recovery sheet the current grid key, and a new node
// key beside it, so that whoever stole the old ones is out. keep is given the new
// sheet before anything changes; where it fails, so does Rotate. The grid id stays.
// No gateway may run with these keys meanwhile.
func Rotate(dir, recovery string, keep func(newRecovery string) error) (*Identity, error) {
	fail := func(err error) (*Identity, error) { return nil, fmt.Errorf("rotate grid key: %w", err) }
	old, err := LoadIdentity(dir)
	if err != nil {
		return fail(err)
	}
	if len(old.past) >= MaxRotations {
		return fail(fmt.Errorf("it was rotated %d times, which is the most a descriptor can carry; make a new grid", len(old.past)))
	}
	secret, err := parseRecovery(recovery)
	if err != nil {
		return fail(err)
	}
	key, err := recoveryKey(secret)
	if err != nil {
		return fail(err)
	}
	if HashKey(key.Public().(ed25519.PublicKey)) != old.next {
		return fail(errors.New("this is not the recovery sheet of the current grid key; a sheet is good for one rotation"))
	}
	sheet, next, err := newRecovery()
	if err != nil {
		return fail(err)
	}
	if err := keep(sheet); err != nil {
		return fail(fmt.Errorf("keep the new recovery sheet: %w", err))
	}
	// The node key first: with the old grid key it is as good as the old one. The other
	// way round a crash would leave a node key that the thief has under the new grid key.
	node, err := ReplaceKeyFile(filepath.Join(dir, NodeKeyFile))
	if err != nil {
		return fail(err)
	}
	id := &Identity{
		id: old.id, key: key, node: node,
		next: HashKey(next.Public().(ed25519.PublicKey)),
		past: append(append([]Rotation{}, old.past...), signRotation(old.key, old.id, len(old.past), old.next)),
	}
	if err := id.writeGridKey(dir); err != nil {
		return fail(err)
	}
	return id.ready(), nil
}

func (id *Identity) ready() *Identity {
	id.now = time.Now
	id.leaves = map[string]*tls.Certificate{}
	return id
}

// ID returns the grid's lasting name.
func (id *Identity) ID() GridID { return id.id }

// Key returns the current grid key; after a rotation it is not the one that ID
// was made from.
func (id *Identity) Key() ed25519.PublicKey { return id.key.Public().(ed25519.PublicKey) }

// Rot says how often the grid key was rotated.
func (id *Identity) Rot() int { return len(id.past) }

// NodeSPKI returns the hash of this node's TLS public key, as descriptors name it.
func (id *Identity) NodeSPKI() Hash {
	spki, err := spkiHash(id.node.Public())
	if err != nil {
		panic(err) // an Ed25519 key always marshals
	}
	return spki
}

// Rotation is one key that a grid had before its current one, with that key's own
// signature on the hash of its successor. The rotations of a descriptor prove
// that its key descends from the key in the grid id.
type Rotation struct {
	Key  GridKey   `json:"key"`
	Next Hash      `json:"next"`
	Sig  Signature `json:"sig"`
}

func signRotation(key ed25519.PrivateKey, id GridID, rot int, next Hash) Rotation {
	return Rotation{
		Key: GridKey(key.Public().(ed25519.PublicKey)), Next: next,
		Sig: ed25519.Sign(key, rotationMessage(id, rot, next)),
	}
}

func rotationMessage(id GridID, rot int, next Hash) []byte {
	msg := append([]byte("yggate/rotation/1\x00"), id...)
	msg = binary.BigEndian.AppendUint64(msg, uint64(rot))
	return append(msg, next[:]...)
}

// verifyHistory proves that key is the key of id after len(past) rotations.
func verifyHistory(id GridID, past []Rotation, key ed25519.PublicKey) error {
	expect := HashKey(id.Key())
	for rot, r := range past {
		if len(r.Key) != ed25519.PublicKeySize { // a hash may be that of anything
			return fmt.Errorf("rotation %d: no key", rot)
		}
		if HashKey(ed25519.PublicKey(r.Key)) != expect {
			return fmt.Errorf("rotation %d: its key is not the one that was announced before", rot)
		}
		if !ed25519.Verify(ed25519.PublicKey(r.Key), rotationMessage(id, rot, r.Next), r.Sig) {
			return fmt.Errorf("rotation %d: bad signature", rot)
		}
		expect = r.Next
	}
	if HashKey(key) != expect {
		if len(past) == 0 {
			return errors.New("the key is not the one in the grid id")
		}
		return errors.New("the key is not the one that the last rotation announced")
	}
	return nil
}

// The history stands after the key in a PEM block of its own, one file, so that
// a rotation is one rename and openssl can still read the key.
const pemGrid = "YGGATE GRID"

func (id *Identity) writeGridKey(dir string) error {
	block, err := keyBlock(id.key)
	if err != nil {
		return err
	}
	grid, err := marshalGrid(id)
	if err != nil {
		return err
	}
	data := append(pem.EncodeToMemory(block), pem.EncodeToMemory(&pem.Block{Type: pemGrid, Bytes: grid})...)
	return writeFileAtomic(filepath.Join(dir, GridKeyFile), data)
}

func loadGridKey(dir string) (*Identity, error) {
	path := filepath.Join(dir, GridKeyFile)
	key, rest, err := readKeyFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w, or make a new grid with `yggate init`", err)
	case err != nil:
		return nil, err
	}
	block, _ := pem.Decode(rest)
	if block == nil || block.Type != pemGrid {
		return nil, fmt.Errorf("read key %s: no PEM block %q after the key; restore it from your backup", path, pemGrid)
	}
	id, err := unmarshalGrid(block.Bytes, key)
	if err != nil {
		return nil, fmt.Errorf("read key %s: %w; restore it from your backup", path, err)
	}
	return id, nil
}
