package setup

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the golden files anew")

func params(mode Mode) Params {
	p := Params{
		Servers: []string{"a.grid"}, CA: "/etc/yggate/matrix/ca.pem", Mode: mode, PeerServers: []string{"b.grid", "c.grid:8449", "c.grid"},
	}
	if mode == Proxy {
		p.Proxy = netip.MustParseAddrPort("127.0.0.1:8118")
	} else {
		p.Listen = netip.MustParseAddr("127.0.10.12")
	}
	return p
}

// has are the modes of each server.
var has = map[string][]Mode{
	Dendrite: {Proxy, Hosts}, Synapse: {Proxy, Hosts}, Conduit: {Proxy}, EjabberdMatrix: {Hosts},
}

func TestGuides(t *testing.T) {
	for _, server := range Servers() {
		if has[server][0] != DefaultMode(server) {
			t.Errorf("%s: the default mode is %s", server, DefaultMode(server))
		}
		for _, mode := range []Mode{Proxy, Hosts} {
			g, err := For(server, params(mode))
			if !strings.Contains(strings.Join(modes(server), " "), string(mode)) {
				if err == nil || !strings.Contains(err.Error(), "set matrix.") {
					t.Errorf("%s in mode %s: %v, want what to do instead", server, mode, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if _, err := g.WriteTo(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, server+"."+string(mode)+".txt", b.Bytes())
			for _, f := range g.Fragments {
				if !strings.HasSuffix(f.File, ".yaml") {
					continue
				}
				if err := yaml.Unmarshal([]byte(f.Text), map[string]any{}); err != nil {
					t.Errorf("%s, %s: %v", server, f.File, err)
				}
			}
			run := strings.Contains(b.String(), "run by yggate's tests")
			if honest := strings.Contains(b.String(), "yggate's tests do not run") || strings.Contains(b.String(), "yggate's tests run none"); run == honest || run != (server == Dendrite) {
				t.Errorf("%s: what was run is not said", server)
			}
		}
	}
}

func modes(server string) (names []string) {
	for _, m := range has[server] {
		names = append(names, string(m))
	}
	return names
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; look at it, then run go test -update\n--- got\n%s", file, got)
	}
}

func TestUnfitParameters(t *testing.T) {
	for name, c := range map[string]struct {
		mode  Mode
		spoil func(*Params)
		want  string
	}{
		"no server":     {Proxy, func(p *Params) { p.Servers = nil }, "no own Matrix server name"},
		"upper case":    {Proxy, func(p *Params) { p.Servers = []string{"A.grid"} }, `"A.grid"`},
		"injection":     {Proxy, func(p *Params) { p.PeerServers = []string{"b.grid\"\nx: y"} }, "want a host name"},
		"relative CA":   {Proxy, func(p *Params) { p.CA = "ca.pem" }, "absolute path"},
		"percent in CA": {Proxy, func(p *Params) { p.CA = "/x/%h" }, "absolute path"},
		"no proxy":      {Proxy, func(p *Params) { p.Proxy = netip.AddrPort{} }, "matrix.proxy"},
		"any address":   {Hosts, func(p *Params) { p.Listen = netip.IPv4Unspecified() }, "matrix.listen"},
		"no peer":       {Hosts, func(p *Params) { p.PeerServers = nil }, "no server name of a peer"},
		"no mode":       {"", func(*Params) {}, `mode ""`},
	} {
		p := params(c.mode)
		c.spoil(&p)
		if _, err := For(Dendrite, p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := For("exim", params(Proxy)); err == nil || !strings.Contains(err.Error(), "dendrite, synapse") {
		t.Errorf("unknown server: %v", err)
	}
}
