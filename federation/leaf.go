package federation

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/yggate/yggate/transports"
)

// How long a leaf lives and when it is renewed. Two thirds of its life is left
// unused for an operator who must mend something first.
const (
	LeafLifetime    = 30 * 24 * time.Hour
	LeafRenewBefore = 10 * 24 * time.Hour

	// leafBackdate covers peers whose clock is behind ours.
	leafBackdate = time.Hour
	// clockGrace covers peers whose clock is a little off in VerifyChain.
	clockGrace = 5 * time.Minute
	// maxLeafAddrs bounds what a leaf may name.
	maxLeafAddrs = 8
)

// noExpiry is the notAfter of RFC 5280 §4.1.2.5 for a certificate without one.
// The root is only a wrapper of the grid key, which does not expire.
var noExpiry = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// Leaf returns the current certificate chain, leaf and root, by which this node
// proves its grid at the node address addr. It is issued on first use, lives 30
// days and is replaced 10 days before it ends.
func (id *Identity) Leaf(addr transports.Addr) (*tls.Certificate, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	now := id.now()
	if c := id.leaves[addr.ID()]; c != nil && now.Before(c.Leaf.NotAfter.Add(-LeafRenewBefore)) && now.After(c.Leaf.NotBefore) {
		return c, nil
	}
	c, err := id.IssueLeaf(addr, now)
	if err != nil {
		return nil, err
	}
	id.leaves[addr.ID()] = c
	return c, nil
}

// IssueLeaf makes a new chain as of the given time, apart from the one that Leaf
// keeps.
func (id *Identity) IssueLeaf(addr transports.Addr, now time.Time) (*tls.Certificate, error) {
	if addr.Net == "grid" {
		return nil, errors.New(`issue leaf: no network may be called "grid"`)
	}
	root, err := id.rootTemplate()
	if err != nil {
		return nil, fmt.Errorf("issue leaf: %w", err)
	}
	node, err := url.Parse(addr.ID())
	if err != nil {
		return nil, fmt.Errorf("issue leaf for %s: %w", addr.ID(), err)
	}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "yggate node of " + id.id.Short()},
		NotBefore:   now.Add(-leafBackdate),
		NotAfter:    now.Add(LeafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{root.URIs[0], node},

		BasicConstraintsValid: true,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, id.key.Public(), id.key)
	if err != nil {
		return nil, fmt.Errorf("issue root: %w", err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, id.node.Public(), id.key)
	if err != nil {
		return nil, fmt.Errorf("issue leaf: %w", err)
	}
	parsed, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return nil, fmt.Errorf("issue leaf: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: id.node, Leaf: parsed}, nil
}

func (id *Identity) rootTemplate() (*x509.Certificate, error) {
	uri, err := url.Parse("grid:" + string(id.id))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "yggate grid " + id.id.Short()},
		NotBefore: time.Unix(0, 0), NotAfter: noExpiry,
		KeyUsage: x509.KeyUsageCertSign,
		URIs:     []*url.URL{uri},

		BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}, nil
}

// Proof is what a certificate chain proves about the far end of a TLS session.
type Proof struct {
	// Key is the grid key that signed the leaf: authorise on this.
	Key ed25519.PublicKey
	// Grid is the lasting id that the chain claims. It is proven only for a
	// grid whose key was never rotated (NewGridID(Key) == Grid); for others the
	// Directory knows which peer has Key now.
	Grid GridID
	// Node is the hash of the node's own public key.
	Node Hash
	// Addrs are the node addresses that the leaf names, as Addr.ID writes them.
	Addrs []string
}

// Names says whether the leaf names the node of addr. A link must refuse a far
// end whose authenticated network address is not named.
func (p Proof) Names(addr transports.Addr) bool {
	for _, a := range p.Addrs {
		if a == addr.ID() {
			return true
		}
	}
	return false
}

// VerifyChain checks the certificates that the far end of a TLS session
// presented: exactly a leaf and the root that signed it, both Ed25519, valid
// now (5 minutes of clock skew are forgiven), of the shape that Identity.Leaf
// gives. It proves that the far end speaks for the grid key in the Proof, not
// that this key is welcome.
func VerifyChain(certs []*x509.Certificate, now time.Time) (Proof, error) {
	fail := func(format string, args ...any) (Proof, error) {
		return Proof{}, fmt.Errorf("verify certificates: "+format, args...)
	}
	if len(certs) != 2 {
		return fail("%d certificates, want exactly the leaf and the grid's root", len(certs))
	}
	leaf, root := certs[0], certs[1]
	key, ok := root.PublicKey.(ed25519.PublicKey)
	if !ok {
		return fail("root: %s key, want Ed25519", root.PublicKeyAlgorithm)
	}
	nodeKey, ok := leaf.PublicKey.(ed25519.PublicKey)
	if !ok {
		return fail("leaf: %s key, want Ed25519", leaf.PublicKeyAlgorithm)
	}
	if err := checkRoot(root); err != nil {
		return fail("root: %w", err)
	}
	if nodeKey.Equal(key) {
		return fail("leaf: uses the grid key itself")
	}
	if err := checkLeaf(leaf, root); err != nil {
		return fail("leaf: %w", err)
	}
	for _, c := range certs {
		if now.Add(clockGrace).Before(c.NotBefore) {
			return fail("not valid before %s, and it is %s here; compare the clocks of both sides", c.NotBefore.UTC(), now.UTC())
		}
		if now.Add(-clockGrace).After(c.NotAfter) {
			return fail("expired at %s, and it is %s here; compare the clocks of both sides, or restart the peer's gateway", c.NotAfter.UTC(), now.UTC())
		}
	}
	grid, extra, err := chainURIs(root)
	if err != nil {
		return fail("root: %w", err)
	}
	if len(extra) != 0 {
		return fail("root: names node addresses")
	}
	leafGrid, addrs, err := chainURIs(leaf)
	switch {
	case err != nil:
		return fail("leaf: %w", err)
	case leafGrid != grid:
		return fail("leaf: names grid %s, its root names %s", leafGrid, grid)
	case len(addrs) == 0 || len(addrs) > maxLeafAddrs:
		return fail("leaf: names %d node addresses, want 1 to %d", len(addrs), maxLeafAddrs)
	}
	node, err := spkiHash(nodeKey)
	if err != nil {
		return fail("leaf: %w", err)
	}
	return Proof{Key: key, Grid: grid, Node: node, Addrs: addrs}, nil
}

func checkRoot(root *x509.Certificate) error {
	switch {
	case !root.BasicConstraintsValid || !root.IsCA || root.MaxPathLen != 0 || !root.MaxPathLenZero:
		return errors.New("not a certificate authority of path length 0")
	case root.KeyUsage != x509.KeyUsageCertSign:
		return errors.New("key usage is not certificate signing alone")
	case len(root.UnhandledCriticalExtensions) != 0:
		return errors.New("unknown critical extension")
	}
	return root.CheckSignature(root.SignatureAlgorithm, root.RawTBSCertificate, root.Signature)
}

func checkLeaf(leaf, root *x509.Certificate) error {
	var client, server bool
	for _, u := range leaf.ExtKeyUsage {
		client = client || u == x509.ExtKeyUsageClientAuth
		server = server || u == x509.ExtKeyUsageServerAuth
	}
	switch {
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return errors.New("is a certificate authority")
	case leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("key usage is not digital signature alone")
	case !client || !server:
		return errors.New("not for both TLS client and TLS server")
	case len(leaf.UnhandledCriticalExtensions) != 0:
		return errors.New("unknown critical extension")
	}
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("not signed by the grid key beside it: %w", err)
	}
	return nil
}

// chainURIs splits the URI names of a certificate into its one grid and the node
// addresses.
func chainURIs(c *x509.Certificate) (grid GridID, addrs []string, err error) {
	for _, u := range c.URIs {
		if u.Scheme != "grid" {
			addrs = append(addrs, u.String())
			continue
		}
		if grid != "" {
			return "", nil, errors.New("names two grids")
		}
		if grid, err = ParseGridID(u.Opaque); err != nil {
			return "", nil, err
		}
	}
	if grid == "" {
		return "", nil, errors.New("names no grid")
	}
	return grid, addrs, nil
}
