package localca

import (
	"container/list"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/idna"
)

const (
	// leafLife is how long a minted certificate is valid. It is renewed when a
	// third is left, so that a stream of weeks never meets an expired one.
	leafLife = 60 * 24 * time.Hour
	// serverLife is that of a local server's own bundle. It lies in a file that
	// only a person renews, and only this gateway relies on it.
	serverLife = 10 * 365 * 24 * time.Hour
	// skew is how far the local server's clock may be behind ours.
	skew = 24 * time.Hour
	// maxMinted bounds the leaves that are kept; the least used one goes first.
	maxMinted = 4096
)

// Mint returns a certificate for a normalised domain, made on first use and
// renewed on demand. It is for domains that are already known to belong to an
// approved peer: what reaches Mint is cached and impersonated.
func (c *CA) Mint(domain string) (*tls.Certificate, error) {
	now := c.now()
	c.minted.mu.Lock()
	defer c.minted.mu.Unlock()
	if leaf := c.minted.get(domain); leaf != nil && !now.Before(leaf.Leaf.NotBefore) && leaf.Leaf.NotAfter.Sub(now) > leafLife/3 {
		return leaf, nil
	}
	leaf, err := c.issue([]string{domain}, leafLife)
	if err != nil {
		return nil, fmt.Errorf("mint certificate for %q: %w", domain, err)
	}
	c.minted.put(domain, leaf)
	return leaf, nil
}

// IssueServer returns a new key and certificate for the operator's own server,
// valid for all its domains, as one PEM bundle: key, certificate, CA. Both
// ejabberd and Prosody read that form.
func (c *CA) IssueServer(domains []string) ([]byte, error) {
	leaf, err := c.issue(domains, serverLife)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	bundle, err := keyPEM(leaf.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	for _, der := range leaf.Certificate {
		bundle = append(bundle, certPEM(der)...)
	}
	return bundle, nil
}

// WriteServer writes the bundle of IssueServer to path with the given mode. The
// server's own user must be able to read it; whose group that is, is for the
// operator to set.
func (c *CA) WriteServer(path string, domains []string, mode fs.FileMode) error {
	bundle, err := c.IssueServer(domains)
	if err != nil {
		return err
	}
	if err := writeFile(path, bundle, mode); err != nil {
		return fmt.Errorf("write server certificate: %w", err)
	}
	return nil
}

func (c *CA) issue(domains []string, life time.Duration) (*tls.Certificate, error) {
	names, err := hostnames(domains)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := c.now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{Organization: []string{"yggate"}},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		DNSNames:              names,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, &key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// hostnames gives domains as certificates name them, in A-labels. They stand as
// dNSName only: ejabberd 23.01 (p1_xmpp 1.6.1) crashes in SASL EXTERNAL on a
// certificate that has an id-on-xmppAddr (RFC 6120 §13.7.1.4) as well.
func hostnames(domains []string) ([]string, error) {
	if len(domains) == 0 {
		return nil, errors.New("no domain given")
	}
	names := make([]string, len(domains))
	for i, d := range domains {
		ascii, err := idna.Lookup.ToASCII(d)
		if err != nil || ascii == "" || len(ascii) > 253 || strings.ContainsAny(ascii, ":[]/@* ") {
			return nil, fmt.Errorf("%q is not a domain name", d)
		}
		names[i] = ascii
	}
	return names, nil
}

// cache holds the most recently used leaves. Its zero value is ready.
type cache struct {
	mu     sync.Mutex
	order  list.List // of *entry, most recent first
	byName map[string]*list.Element
}

type entry struct {
	name string
	leaf *tls.Certificate
}

func (c *cache) get(name string) *tls.Certificate {
	e := c.byName[name]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).leaf
}

func (c *cache) put(name string, leaf *tls.Certificate) {
	if e := c.byName[name]; e != nil {
		e.Value.(*entry).leaf = leaf
		c.order.MoveToFront(e)
		return
	}
	if c.byName == nil {
		c.byName = map[string]*list.Element{}
	}
	if c.order.Len() >= maxMinted {
		oldest := c.order.Back()
		c.order.Remove(oldest)
		delete(c.byName, oldest.Value.(*entry).name)
	}
	c.byName[name] = c.order.PushFront(&entry{name, leaf})
}
