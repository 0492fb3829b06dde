package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

var loopback = transports.Addr{Net: "tcp", Node: "127.0.0.2", Port: 7}

func parseChain(t *testing.T, c *tls.Certificate) []*x509.Certificate {
	t.Helper()
	var out []*x509.Certificate
	for _, der := range c.Certificate {
		p, err := x509.ParseCertificate(der)
		must(t, err)
		out = append(out, p)
	}
	return out
}

func TestLeafProvesGridAndAddress(t *testing.T) {
	id, _, _ := newIdentity(t)
	for _, a := range []transports.Addr{
		loopback, {Net: "ygg", Node: strings.Repeat("0a", 32)}, {Net: "i2p", Node: "abc.b32.i2p"}, {Net: "tcp", Node: "::1"},
	} {
		c, err := id.Leaf(a)
		must(t, err)
		p, err := VerifyChain(parseChain(t, c), time.Now())
		must(t, err)
		if !p.Key.Equal(id.Key()) || p.Grid != id.ID() || p.Node != id.NodeSPKI() {
			t.Errorf("%s: proof %+v", a, p)
		}
		if !p.Names(a) || len(p.Addrs) != 1 {
			t.Errorf("%s: leaf names %q", a, p.Addrs)
		}
		if p.Names(transports.Addr{Net: "tcp", Node: "127.0.0.3"}) {
			t.Error("leaf names everything")
		}
	}
}

func TestLeafRenewsItself(t *testing.T) {
	id, _, _ := newIdentity(t)
	start := time.Now()
	at := func(days float64) *tls.Certificate {
		id.now = func() time.Time { return start.Add(time.Duration(days * 24 * float64(time.Hour))) }
		c, err := id.Leaf(loopback)
		must(t, err)
		if _, err := VerifyChain(parseChain(t, c), id.now()); err != nil {
			t.Errorf("day %v: %v", days, err)
		}
		return c
	}
	first := at(0)
	if at(19.9) != first {
		t.Error("renewed too early")
	}
	second := at(20.1)
	if second == first {
		t.Error("not renewed 10 days before the end")
	}
	if at(21) != second {
		t.Error("renewed again")
	}
	if at(-5) == second {
		t.Error("a leaf of the future is used after the clock was set back")
	}
}

// pki makes chains that differ from a good one in one respect.
type pki struct {
	id         *Identity
	leaf, root *x509.Certificate
	leafKey    crypto.Signer
	rootKey    crypto.Signer
	signer     crypto.Signer // of the leaf
	chain      func(leaf, root *x509.Certificate) []*x509.Certificate
	now        time.Time
}

func (k *pki) build(t *testing.T) []*x509.Certificate {
	t.Helper()
	create := func(c, parent *x509.Certificate, pub crypto.PublicKey, by crypto.Signer) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, by)
		must(t, err)
		p, err := x509.ParseCertificate(der)
		must(t, err)
		return p
	}
	root := create(k.root, k.root, k.rootKey.Public(), k.rootKey)
	// CreateCertificate checks that the signer fits its parent's key; a forger
	// has no such scruple.
	parent := *root
	parent.PublicKey = k.signer.Public()
	leaf := create(k.leaf, &parent, k.leafKey.Public(), k.signer)
	return k.chain(leaf, root)
}

func goodPKI(t *testing.T) *pki {
	id, _, _ := newIdentity(t)
	root, err := id.rootTemplate()
	must(t, err)
	now := time.Now()
	c, err := id.IssueLeaf(loopback, now)
	must(t, err)
	leaf := &x509.Certificate{
		NotBefore: c.Leaf.NotBefore, NotAfter: c.Leaf.NotAfter, KeyUsage: c.Leaf.KeyUsage, ExtKeyUsage: c.Leaf.ExtKeyUsage,
		URIs: c.Leaf.URIs, BasicConstraintsValid: true,
	}
	return &pki{
		id: id, leaf: leaf, root: root, leafKey: id.node, rootKey: id.key, signer: id.key, now: now,
		chain: func(l, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, r} },
	}
}

func uri(t *testing.T, s string) *url.URL {
	u, err := url.Parse(s)
	must(t, err)
	return u
}

func TestVerifyChainRefuses(t *testing.T) {
	_, other, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	const day = 24 * time.Hour
	if _, err := VerifyChain(goodPKI(t).build(t), time.Now()); err != nil {
		t.Fatalf("the good chain, from which all others differ: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(k *pki)
		want  string
	}{
		"forged leaf beside the real root": {func(k *pki) { k.signer = other }, "not signed by the grid key"},
		"expired":                          {func(k *pki) { k.now = k.leaf.NotAfter.Add(clockGrace + time.Second) }, "expired at"},
		"of the future":                    {func(k *pki) { k.now = k.leaf.NotBefore.Add(-clockGrace - time.Second) }, "not valid before"},
		"root expired":                     {func(k *pki) { k.root.NotAfter = k.now.Add(-day) }, "expired at"},
		"leaf of another grid": {func(k *pki) {
			k.leaf.URIs = []*url.URL{uri(t, "grid:"+string(NewGridID(other.Public().(ed25519.PublicKey)))), k.leaf.URIs[1]}
		}, "its root names"},
		"leaf without a grid":      {func(k *pki) { k.leaf.URIs = k.leaf.URIs[1:] }, "names no grid"},
		"leaf with two grids":      {func(k *pki) { k.leaf.URIs = append(k.leaf.URIs, k.leaf.URIs[0]) }, "two grids"},
		"leaf without an address":  {func(k *pki) { k.leaf.URIs = k.leaf.URIs[:1] }, "0 node addresses"},
		"leaf with nine addresses": {func(k *pki) { k.leaf.URIs = append(k.leaf.URIs, nineURIs(t)...) }, "node addresses"},
		"bad grid id":              {func(k *pki) { k.root.URIs = []*url.URL{uri(t, "grid:abc")} }, "grid id"},
		"root without a grid":      {func(k *pki) { k.root.URIs = nil }, "names no grid"},
		"root with an address":     {func(k *pki) { k.root.URIs = k.leaf.URIs }, "names node addresses"},
		"leaf is a CA":             {func(k *pki) { k.leaf.IsCA = true }, "is a certificate authority"},
		"leaf signs certificates":  {func(k *pki) { k.leaf.KeyUsage |= x509.KeyUsageCertSign }, "is a certificate authority"},
		"leaf as its own root": {func(k *pki) {
			k.chain = func(l, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, l} }
		}, "not a certificate authority"},
		"leaf encrypts":           {func(k *pki) { k.leaf.KeyUsage |= x509.KeyUsageKeyEncipherment }, "key usage"},
		"leaf for servers only":   {func(k *pki) { k.leaf.ExtKeyUsage = k.leaf.ExtKeyUsage[:1] }, "client and TLS server"},
		"root is no CA":           {func(k *pki) { k.root.IsCA, k.root.MaxPathLenZero = false, false }, "not a certificate authority"},
		"root of any path length": {func(k *pki) { k.root.MaxPathLenZero = false; k.root.MaxPathLen = -1 }, "path length 0"},
		"root signs data":         {func(k *pki) { k.root.KeyUsage |= x509.KeyUsageDigitalSignature }, "certificate signing alone"},
		"RSA root":                {func(k *pki) { k.rootKey, k.signer = rsaKey, rsaKey }, "want Ed25519"},
		"ECDSA leaf":              {func(k *pki) { k.leafKey = ecKey }, "want Ed25519"},
		"leaf with the grid key":  {func(k *pki) { k.leafKey = k.rootKey }, "uses the grid key itself"},
		"no certificates":         {func(k *pki) { k.chain = func(_, _ *x509.Certificate) []*x509.Certificate { return nil } }, "0 certificates"},
		"leaf alone": {func(k *pki) {
			k.chain = func(l, _ *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l} }
		}, "1 certificates"},
		"extra certificate": {func(k *pki) {
			k.chain = func(l, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{l, r, r} }
		}, "3 certificates"},
		"root first": {func(k *pki) {
			k.chain = func(l, r *x509.Certificate) []*x509.Certificate { return []*x509.Certificate{r, l} }
		}, "certificate authority"},
		"root not signed by itself": {func(k *pki) {
			k.chain = func(l, r *x509.Certificate) []*x509.Certificate {
				r.Signature[0] ^= 1
				return []*x509.Certificate{l, r}
			}
		}, "root:"},
	} {
		t.Run(name, func(t *testing.T) {
			k := goodPKI(t)
			c.spoil(k)
			p, err := VerifyChain(k.build(t), k.now)
			if err == nil {
				t.Fatalf("accepted: %+v", p)
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func nineURIs(t *testing.T) (out []*url.URL) {
	for _, c := range "bcdefghij" {
		out = append(out, uri(t, "i2p:"+string(c)))
	}
	return out
}

func TestVerifyChainForgivesClockSkew(t *testing.T) {
	k := goodPKI(t)
	chain := k.build(t)
	for _, now := range []time.Time{k.leaf.NotAfter.Add(clockGrace - time.Second), k.leaf.NotBefore.Add(-clockGrace + time.Second)} {
		if _, err := VerifyChain(chain, now); err != nil {
			t.Errorf("at %s: %v", now, err)
		}
	}
}
