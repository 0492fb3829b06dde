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
		Domains: []string{"a.grid"}, MUC: []string{"conference.a.grid"},
		Cert: "/var/lib/yggate/xmpp/server.pem", CA: "/var/lib/yggate/xmpp/ca.pem",
		Gateway: netip.MustParseAddrPort("127.0.10.11:5269"), Mode: mode,
	}
	if mode == DNS {
		p.DNS = netip.MustParseAddrPort("127.0.10.53:53")
	} else {
		p.PeerDomains = []string{"b.grid", "conference.b.grid"}
	}
	return p
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
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

func TestGuide(t *testing.T) {
	for _, server := range Servers() {
		for _, mode := range []Mode{DNS, Hosts} {
			g, err := For(server, params(mode))
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			n, err := g.WriteTo(&b)
			if err != nil || n != int64(b.Len()) || n == 0 {
				t.Fatalf("WriteTo = %d, %v after %d bytes", n, err, b.Len())
			}
			golden(t, server+"."+string(mode)+".txt", b.Bytes())
		}
	}
}

func TestComplete(t *testing.T) {
	s := Standalone{
		Dir: "/srv/xmpp", C2S: netip.MustParseAddrPort("127.0.10.1:5222"),
		S2S: netip.MustParseAddrPort("127.0.10.1:5269"), API: netip.MustParseAddrPort("127.0.10.1:5280"),
	}
	for _, server := range Servers() {
		for _, mode := range []Mode{DNS, Hosts} {
			p := params(mode)
			files, err := Complete(server, p, s)
			if err != nil {
				t.Fatal(err)
			}
			var all string
			for _, f := range files {
				golden(t, filepath.Join("complete", server+"."+string(mode), f.Name), []byte(f.Text))
				if strings.HasSuffix(f.Name, ".yml") {
					// yaml.v3 refuses a repeated key, as ejabberd does.
					if err := yaml.Unmarshal([]byte(f.Text), map[string]any{}); err != nil {
						t.Errorf("%s: %v", f.Name, err)
					}
				}
				all += f.Text
			}
			p.Isolated = true
			g, err := For(server, p)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range g.Fragments {
				text := strings.ReplaceAll(f.Text, `"/etc/hosts"`, `"/srv/xmpp/hosts"`)
				if !strings.Contains(all, text) {
					t.Errorf("%s, %s: the whole configuration lacks\n%s", server, mode, text)
				}
			}
		}
	}
}

// What must never be told to an operator, and what must never be missing.
func TestFragments(t *testing.T) {
	need := map[string][]string{
		Ejabberd: {"s2s_use_starttls: required\n", "s2s_max_retry_delay: 5\n", "ca_file: ", "certfiles:\n", "s2s_timeout: ", "mod_s2s_dialback: {}", "outgoing_s2s_families: [ipv4"},
		Prosody:  {"s2s_require_encryption = true\n", "s2s_secure_auth = true\n", "s2s_ssl = {", "unbound = {"},
	}
	for server, lines := range need {
		g, err := For(server, params(DNS))
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		if _, err := g.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !strings.Contains(b.String(), line) {
				t.Errorf("%s: no line %q", server, line)
			}
		}
		// Direct TLS between the two servers failed where this was answered.
		if strings.Contains(b.String(), "_xmpps-server") {
			t.Errorf("%s: names _xmpps-server", server)
		}
	}
}

func TestIPv6(t *testing.T) {
	p := params(DNS)
	p.Gateway = netip.MustParseAddrPort("[fd00::11]:5269")
	p.DNS = netip.MustParseAddrPort("[fd00::53]:5353")
	g, err := For(Ejabberd, p)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := g.Text("/etc/ejabberd/inetrc"), "{nameserver, {64768,0,0,0,0,0,0,83}, 5353}.\n"; !strings.HasSuffix(got, want) {
		t.Errorf("inetrc %q does not end in %q", got, want)
	}
	if got := g.Text("/etc/ejabberd/ejabberd.yml"); !strings.Contains(got, "[ipv6, ipv4]") {
		t.Errorf("an IPv6 gateway is not tried first:\n%s", got)
	}
}

func TestLocalZone(t *testing.T) {
	for domain, want := range map[string]string{"a.grid": "", "a.grid.test": "test", "x.home.arpa": "home.arpa", "contest": ""} {
		p := params(DNS)
		p.Domains = []string{domain}
		if got := p.LocalZone(); got != want {
			t.Errorf("LocalZone of %s = %q, want %q", domain, got, want)
		}
		g, err := For(Prosody, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(g.Text("/etc/prosody/conf.d/yggate.cfg.lua"), "local-zone"); got != (want != "") {
			t.Errorf("%s: local-zone set: %v", domain, got)
		}
	}
}

// Prosody's services inherit from the host one label above only.
func TestDetached(t *testing.T) {
	p := params(DNS)
	p.MUC = []string{"conference.a.grid", "rooms.chat.a.grid", "pubsub.a.grid"}
	g, err := For(Prosody, p)
	if err != nil {
		t.Fatal(err)
	}
	last := g.Fragments[len(g.Fragments)-1].What
	if !strings.Contains(last, "rooms.chat.a.grid does\nnot") || strings.Contains(last, "pubsub.a.grid") {
		t.Errorf("the explanation does not name rooms.chat.a.grid alone:\n%s", last)
	}
}

func TestRefusals(t *testing.T) {
	bad := map[string]struct {
		change func(*Params)
		want   string
	}{
		"quote in domain":   {func(p *Params) { p.Domains = []string{`a"b`} }, `domain "a\"b"`},
		"no domain":         {func(p *Params) { p.Domains = nil }, "no own XMPP domain"},
		"upper case":        {func(p *Params) { p.MUC = []string{"Conference.a"} }, `domain "Conference.a"`},
		"relative path":     {func(p *Params) { p.Cert = "server.pem" }, `certificate "server.pem"`},
		"newline in path":   {func(p *Params) { p.CA = "/ca\n.pem" }, "local CA"},
		"no gateway":        {func(p *Params) { p.Gateway = netip.AddrPort{} }, "gateway's s2s address"},
		"wildcard gateway":  {func(p *Params) { p.Gateway = netip.MustParseAddrPort("0.0.0.0:5269") }, "gateway's s2s address"},
		"no responder":      {func(p *Params) { p.DNS = netip.AddrPort{} }, "DNS responder"},
		"unknown mode":      {func(p *Params) { p.Mode = "x" }, `mode "x"`},
		"hosts, other port": {func(p *Params) { *p = params(Hosts); p.Gateway = netip.MustParseAddrPort("127.0.0.1:5299") }, "has to be 5269"},
		"hosts, no peers":   {func(p *Params) { *p = params(Hosts); p.PeerDomains = nil }, "no peer domain"},
	}
	for name, c := range bad {
		p := params(DNS)
		c.change(&p)
		if _, err := For(Ejabberd, p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q in it", name, err, c.want)
		}
	}
	if _, err := For("openfire", params(DNS)); err == nil || !strings.Contains(err.Error(), "ejabberd, prosody") {
		t.Errorf("unknown server: %v", err)
	}
	ok := Standalone{Dir: "/x", C2S: netip.MustParseAddrPort("127.0.0.1:1"), S2S: netip.MustParseAddrPort("127.0.0.1:2")}
	two := params(DNS)
	two.Domains = append(two.Domains, "c.grid")
	if _, err := Complete(Ejabberd, two, ok); err == nil {
		t.Error("two domains in a whole configuration: no error")
	}
	ok.Dir = "x"
	if _, err := Complete(Prosody, params(DNS), ok); err == nil {
		t.Error("relative directory: no error")
	}
}
