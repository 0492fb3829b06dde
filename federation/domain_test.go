package federation

import (
	"strings"
	"testing"
)

func TestNormalizeDomain(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 49)+".", 5) + "net"
	for in, want := range map[string]string{
		"bob.grid": "bob.grid", "BOB.Grid.": "bob.grid", "bücher.example": "xn--bcher-kva.example",
		"BÜCHER.example": "xn--bcher-kva.example", "xn--bcher-kva.example": "xn--bcher-kva.example", "XN--BCHER-KVA.example": "xn--bcher-kva.example",
		"straße.example": "xn--strae-oqa.example", "日本。jp": "xn--wgv71a.jp", "localhost": "localhost", "a.b-c.d1": "a.b-c.d1", long: long,
		"1.2.3.four": "1.2.3.four", "ＢＯＢ.grid": "bob.grid",
	} {
		got, err := NormalizeDomain(in)
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
		if again, err := NormalizeDomain(got); err != nil || again != got {
			t.Errorf("%q: not stable: %q, %v", got, again, err)
		}
	}
	for _, bad := range []string{
		"", ".", "a..b", ".a", "a..", "-a.b", "a-.b", "a_b.c", "a b", "a/b", "a@b", "1.2.3.4", "127.1", "[::1]", "::1", "a:1",
		strings.Repeat("a", 64) + ".b", long + "a" + long, strings.Repeat("ü", 3000), "xn--a", "xn--zzzz-.b", "a\x00b", "\xff.b", "ab--c.d",
	} {
		if got, err := NormalizeDomain(bad); err == nil {
			t.Errorf("%.80q: accepted as %q", bad, got)
		}
		if CanonicalDomain([]byte(bad)) {
			t.Errorf("%.80q: canonical", bad)
		}
	}
}

func TestCanonicalDomainDoesNotAllocate(t *testing.T) {
	b := []byte("muc.river.grid")
	if n := testing.AllocsPerRun(100, func() {
		if !CanonicalDomain(b) {
			t.Error("not canonical")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := NormalizeDomain("muc.river.grid"); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestNormalizeClaim(t *testing.T) {
	for in, want := range map[string]string{"River.Grid:8448": "river.grid:8448", "river.grid": "river.grid"} {
		if got, err := NormalizeClaim(Matrix, in); err != nil || got != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, bad := range []string{"river.grid:", "river.grid:0", "river.grid:65536", "river.grid:08", "river.grid:+1", "[::1]:80", ":1"} {
		if got, err := NormalizeClaim(Matrix, bad); err == nil {
			t.Errorf("%q: accepted as %q", bad, got)
		}
	}
	if _, err := NormalizeClaim(MQTT, "a.b"); err == nil {
		t.Error("MQTT has no domains")
	}
}

// FuzzDomain holds the fast path and IDNA to one answer.
func FuzzDomain(f *testing.F) {
	for _, s := range []string{"bob.grid", "a--b.c", "ab--c", "xn--bcher-kva.example", "1.2.3.4", "A.", "-a", "a-", "ü.b", "a.1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := NormalizeDomain(s)
		if CanonicalDomain([]byte(s)) && (err != nil || got != s) {
			t.Fatalf("%q is canonical, but normalises to %q, %v", s, got, err)
		}
		if err != nil {
			return
		}
		if again, err := NormalizeDomain(got); err != nil || again != got {
			t.Fatalf("%q -> %q -> %q, %v", s, got, again, err)
		}
	})
}
