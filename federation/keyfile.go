package federation

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

const pemPrivateKey = "PRIVATE KEY"

// CreateKeyFile makes an Ed25519 key and writes it to path as PKCS#8 PEM, mode
// 0600. It refuses to replace a file that exists.
func CreateKeyFile(path string) (ed25519.PrivateKey, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("create key %s: the file exists; move it away if you really want a new key", path)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return ReplaceKeyFile(path)
}

// ReplaceKeyFile is CreateKeyFile for a key whose old one is to be gone.
func ReplaceKeyFile(path string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", path, err)
	}
	block, err := keyBlock(key)
	if err != nil {
		return nil, fmt.Errorf("create key %s: %w", path, err)
	}
	if err := writeFileAtomic(path, pem.EncodeToMemory(block)); err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return key, nil
}

// LoadKeyFile reads a key that CreateKeyFile wrote. A file that others may read
// is refused, because a key that leaked must be noticed, not used.
func LoadKeyFile(path string) (ed25519.PrivateKey, error) {
	key, _, err := readKeyFile(path)
	return key, err
}

// readKeyFile returns the key in path and whatever follows its PEM block.
func readKeyFile(path string) (ed25519.PrivateKey, []byte, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, fmt.Errorf("read key: %w; restore it from your backup", err)
	case err != nil:
		return nil, nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("read key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read key %s: not a regular file", path)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, nil, fmt.Errorf("read key %s: mode %04o lets others read it; run: chmod 600 %s", path, perm, path)
	}
	if info.Size() > 64<<10 {
		return nil, nil, fmt.Errorf("read key %s: %d bytes is no key file; restore it from your backup", path, info.Size())
	}
	raw := make([]byte, info.Size())
	if _, err := f.ReadAt(raw, 0); err != nil {
		return nil, nil, fmt.Errorf("read key %s: %w", path, err)
	}
	key, rest, err := parseKey(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("read key %s: %w; restore it from your backup", path, err)
	}
	return key, rest, nil
}

func parseKey(raw []byte) (ed25519.PrivateKey, []byte, error) {
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != pemPrivateKey {
		return nil, nil, fmt.Errorf("no PEM block %q", pemPrivateKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, nil, fmt.Errorf("a %T, want an Ed25519 key", parsed)
	}
	return key, rest, nil
}

func keyBlock(key ed25519.PrivateKey) (*pem.Block, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return &pem.Block{Type: pemPrivateKey, Bytes: der}, nil
}

// writeFileAtomic replaces path, mode 0600, so that a crash leaves either the old
// content or the new one on disk.
func writeFileAtomic(path string, data []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // CreateTemp makes it 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails, as it should, once renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
