package localca

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func open(t *testing.T, dir string) *CA {
	t.Helper()
	ca, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func verify(ca *CA, leaf *tls.Certificate, domain string) error {
	_, err := leaf.Leaf.Verify(x509.VerifyOptions{Roots: ca.Roots(), DNSName: domain, CurrentTime: ca.now()})
	return err
}

func TestOpenKeepsTheCA(t *testing.T) {
	dir := t.TempDir()
	first := open(t, dir)
	leaf, err := first.Mint("b.grid")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, KeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v, want mode 0600", info.Mode(), err)
	}
	again := open(t, dir)
	if !bytes.Equal(again.CertPEM(), first.CertPEM()) {
		t.Error("a second start made another CA")
	}
	if err := verify(again, leaf, "b.grid"); err != nil {
		t.Error(err)
	}
}

func TestLostFiles(t *testing.T) {
	dir := t.TempDir()
	before := open(t, dir)
	if err := os.Remove(filepath.Join(dir, CertFile)); err != nil {
		t.Fatal(err)
	}
	leaf, err := open(t, dir).Mint("b.grid")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(before, leaf, "b.grid"); err != nil {
		t.Errorf("a server with the old ca.pem does not trust the CA made again from its key: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, KeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a lost key: got %v, want an error that tells to restore it", err)
	}
}

// A clock that was wrong when the CA was made spoils it for no other time.
func TestMadeByAWrongClock(t *testing.T) {
	for name, made := range map[string]time.Time{
		"ahead": time.Now().AddDate(3, 0, 0), "at the beginning of time": time.Unix(100, 0),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ca, err := openAt(dir, func() time.Time { return made })
			if err != nil {
				t.Fatal(err)
			}
			ca.now = time.Now // the clock is set right
			leaf, err := ca.Mint("b.grid")
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(ca, leaf, "b.grid"); err != nil {
				t.Error(err)
			}
		})
	}
	for name, valid := range map[string][2]time.Time{
		"not yet":      {time.Now().AddDate(1, 0, 0), time.Now().AddDate(2, 0, 0)},
		"not any more": {time.Now().AddDate(-2, 0, 0), time.Now().AddDate(-1, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ca := open(t, dir)
			tmpl := *ca.cert
			tmpl.NotBefore, tmpl.NotAfter = valid[0], valid[1]
			der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, ca.key.Public(), ca.key)
			if err != nil {
				t.Fatal(err)
			}
			if err := writeFile(filepath.Join(dir, CertFile), certPEM(der), 0o644); err != nil {
				t.Fatal(err)
			}
			ca = open(t, dir)
			leaf, err := ca.Mint("b.grid")
			if err != nil {
				t.Fatal(err)
			}
			if err := verify(ca, leaf, "b.grid"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	other := t.TempDir()
	open(t, other)
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"readable key":   {func(d string) error { return os.Chmod(filepath.Join(d, KeyFile), 0o640) }, "chmod 600"},
		"no key in file": {func(d string) error { return os.WriteFile(filepath.Join(d, KeyFile), []byte("x"), 0o600) }, "no PEM block"},
		"foreign cert": {func(d string) error {
			raw, err := os.ReadFile(filepath.Join(other, CertFile))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(d, CertFile), raw, 0o644)
		}, "does not belong to the key"},
		"no cert in file": {func(d string) error { return os.WriteFile(filepath.Join(d, CertFile), nil, 0o644) }, "no PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir)
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestMintIsCachedAndRenewed(t *testing.T) {
	ca := open(t, t.TempDir())
	now := time.Now()
	ca.now = func() time.Time { return now }
	mint := func() *tls.Certificate {
		t.Helper()
		leaf, err := ca.Mint("b.grid")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(ca, leaf, "b.grid"); err != nil {
			t.Fatal(err)
		}
		return leaf
	}
	first := mint()
	now = now.Add(leafLife / 2)
	if mint() != first {
		t.Error("a leaf with half its life left was renewed")
	}
	now = now.Add(leafLife / 4)
	if mint() == first {
		t.Error("a leaf with a quarter of its life left was kept")
	}
	now = now.Add(-leafLife * 3 / 4) // the clock was ahead, and is set back
	mint()
	if err := verify(ca, first, "c.grid"); err == nil {
		t.Error("a leaf for b.grid is valid for c.grid")
	}
}

func TestMintForgetsTheLeastUsed(t *testing.T) {
	var c cache
	for i := range maxMinted {
		c.put(fmt.Sprint(i), &tls.Certificate{})
	}
	c.get("0")
	c.put("new", &tls.Certificate{})
	if c.get("0") == nil || c.get("new") == nil || c.get("1") != nil || len(c.byName) != maxMinted || c.order.Len() != maxMinted {
		t.Errorf("%d leaves kept; want %d without the least used", len(c.byName), maxMinted)
	}
}

func TestMintRefusesWhatIsNoDomain(t *testing.T) {
	ca := open(t, t.TempDir())
	for _, d := range []string{"", "a b", "a@b", "a/b", "*.grid", "[::1]", strings.Repeat("a.", 200), "a\x00b", "-a.grid"} {
		if _, err := ca.Mint(d); err == nil {
			t.Errorf("minted %q", d)
		}
	}
}

func TestServerBundle(t *testing.T) {
	ca := open(t, t.TempDir())
	path := filepath.Join(t.TempDir(), "server.pem")
	domains := []string{"a.grid", "conference.a.grid", "bücher.grid"}
	if err := ca.WriteServer(path, domains, 0o640); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("bundle: %v %v, want mode 0640", info.Mode(), err)
	}
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"a.grid", "conference.a.grid", "xn--bcher-kva.grid"} {
		if err := verify(ca, &pair, d); err != nil {
			t.Error(err)
		}
	}
	if n := len(pair.Certificate); n != 2 {
		t.Errorf("%d certificates in the bundle, want the server's and the CA's", n)
	}
}

// OpenSSL is what Prosody and ejabberd read certificates with.
func TestOpenSSLAccepts(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is missing: apt-get install openssl")
	}
	dir := t.TempDir()
	ca := open(t, dir)
	leaf, err := ca.Mint("bücher.grid")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "leaf.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(openssl, "verify", "-x509_strict", "-verify_hostname", "xn--bcher-kva.grid", "-CAfile", filepath.Join(dir, CertFile), file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
