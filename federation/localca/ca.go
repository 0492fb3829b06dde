// Package localca is the small certificate authority with which a gateway
// stands in for peers before the operator's own servers, and for nobody else: for
// the domains of peers on XMPP s2s streams, for their server names in HTTPS
// requests of Matrix federation. One CA serves both protocols.
//
// What the CA can do: a server that trusts ca.pem accepts whoever holds ca.key as
// any domain or server name. Name constraints (RFC 5280 §4.2.1.10) cannot narrow
// that, because the domains of future peers are not known when the CA is made. So
// the key stays in the gateway's state directory, mode 0600, and ca.pem belongs
// only into the federation trust of the operator's own servers (s2s of an XMPP
// server, the process of a homeserver alone): never into a system-wide store, a
// browser or a client.
package localca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// The files of the CA in its directory.
const (
	KeyFile  = "ca.key" // PKCS #8 PEM, mode 0600
	CertFile = "ca.pem" // what the local servers are told to trust
)

// authorityLife is long because the one relying party is the operator's own
// server: a CA that expires by itself only breaks a working grid. For the same reason
// it goes by no clock that was wrong when it was made: it has always been valid, and
// its life is counted from authorityFrom at the earliest.
const authorityLife = 25 * 365 * 24 * time.Hour

var (
	authoritySince = time.Unix(0, 0)
	authorityFrom  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// CA signs certificates for the domains of approved peers and for the
// operator's own servers. It is safe for concurrent use.
type CA struct {
	key   crypto.Signer
	cert  *x509.Certificate
	roots *x509.CertPool
	now   func() time.Time // the tests move it

	minted cache
}

// Open loads the CA in dir and makes it on first use. A ca.pem that is lost, or that
// a wrong clock has made for another time, is made again from the key: subject and key
// are the same, so that servers which trust the old file trust the new one. A lost
// key is an error, because making a new one silently would cut every server off.
func Open(dir string) (*CA, error) { return openAt(dir, time.Now) }

func openAt(dir string, now func() time.Time) (*CA, error) {
	key, err := loadKey(filepath.Join(dir, KeyFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Join(dir, CertFile)); err == nil {
			return nil, fmt.Errorf("local ca: %s is there but %s is missing in %s: restore the key from the backup, or remove both files for a new CA and run `yggate setup` again for each server", CertFile, KeyFile, dir)
		}
		if key, err = createKey(filepath.Join(dir, KeyFile)); err != nil {
			return nil, fmt.Errorf("create local ca: %w", err)
		}
	case err != nil:
		return nil, fmt.Errorf("load local ca: %w", err)
	}
	cert, err := loadCert(filepath.Join(dir, CertFile), key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (now().Before(cert.NotBefore) || now().After(cert.NotAfter)) {
		cert, err = createCert(filepath.Join(dir, CertFile), key, now())
	}
	if err != nil {
		return nil, fmt.Errorf("load local ca: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &CA{key: key, cert: cert, roots: roots, now: now}, nil
}

// Roots trusts this CA alone. Do not change it; Clone it to add others.
func (c *CA) Roots() *x509.CertPool { return c.roots }

// CertPEM is the CA's certificate as it stands in ca.pem.
func (c *CA) CertPEM() []byte { return certPEM(c.cert.Raw) }

func loadKey(path string) (crypto.Signer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %#o, others can read it: chmod 600 it", path, mode)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block: restore it from the backup", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T cannot sign", path, key)
	}
	return signer, nil
}

func createKey(path string) (crypto.Signer, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := keyPEM(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(path, block, 0o600)
}

func loadCert(path string, key crypto.Signer) (*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block: remove it and it is made again from the key", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(key.Public()) {
		return nil, fmt.Errorf("%s does not belong to the key beside it: remove it and it is made again from the key", path)
	}
	return cert, nil
}

func createCert(path string, key crypto.Signer, now time.Time) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	// OpenSSL finds an issuer by its subject, so two gateways trusted by one
	// server need different ones, and a CA made again from its key the same.
	id := sha256.Sum256(spki)
	if now.Before(authorityFrom) {
		now = authorityFrom
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"yggate"}, CommonName: "yggate local CA " + hex.EncodeToString(id[:8])},
		NotBefore:             authoritySince,
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if err := writeFile(path, certPEM(der), 0o644); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// writeFile replaces path whole or not at all.
func writeFile(path string, data []byte, mode fs.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return f.Close()
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serial is 127 random bits, as RFC 5280 §4.1.2.2 allows: positive and unique.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b[:])
}
