package config

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
)

const minimalMatrix = "name: a\nmatrix:\n  server_names: [A.grid, \"a.grid:8448\"]\n  server: http://127.0.0.1:8008\n  proxy: 127.0.0.1:8118\n"

func parse(t *testing.T, src string, env map[string]string) *Config {
	t.Helper()
	c, err := Parse("yggate.yaml", []byte(src), func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatalf("%v\n%s", err, src)
	}
	return c
}

// A grid may have Matrix alone, and what it leaves out is filled in.
func TestMatrixAlone(t *testing.T) {
	c := parse(t, minimalMatrix, map[string]string{
		"YGGATE_MATRIX_SERVER": "http://127.0.0.9:8008", "YGGATE_MATRIX_UPSTREAM_PROXY": "http://127.0.0.9:3128", "YGGATE_XMPP_SERVER": "127.0.0.9:5269",
	})
	if c.XMPP != nil || !slices.Equal(c.Protocols(), []federation.Protocol{federation.Matrix}) {
		t.Errorf("protocols %v, xmpp %+v", c.Protocols(), c.XMPP)
	}
	if own := c.Own(); len(own) != 1 || !slices.Equal(own[federation.Matrix], []string{"a.grid", "a.grid:8448"}) {
		t.Errorf("own names %v", own)
	}
	if m := c.Matrix; m.Server != "http://127.0.0.9:8008" || m.UpstreamProxy != "http://127.0.0.9:3128" || m.MaxBody != 16<<20 || len(m.AllowFrom) != 2 {
		t.Errorf("%+v", m)
	}
	_, err := Parse("yggate.yaml", []byte(minimalMatrix), func(k string) (string, bool) { return "127.0.0.1:8008", k == "YGGATE_MATRIX_SERVER" })
	if err == nil || !strings.Contains(err.Error(), "environment: matrix.server: this is not a URL; write one such as http://127.0.0.1:8008") {
		t.Errorf("a bad variable: %v", err)
	}
}

// What peer_defaults denies stays denied; all else a peer's own settings decide.
func TestMatrixPolicy(t *testing.T) {
	c := parse(t, minimalMatrix+`peer_defaults:
  allow: [matrix]
  matrix: {deny_servers: [Spam.grid], deny_rooms: ["!spam:b.grid"], custody: true}
peers:
  bob: {matrix: {servers: [B.grid, "b.grid:8448"], deny_servers: [old.b.grid], deny_rooms: ["!worse:b.grid"], custody: false}}
  carol: {limits: {burst: 7}}
  eve: {allow: []}
`, nil)
	bob, carol := c.Policy("bob").Matrix, c.Policy("carol").Matrix
	for _, x := range []struct {
		what      string
		got, want bool
	}{
		{"a server of bob's", bob.AllowsServer("b.grid"), true},
		{"one with a port", bob.AllowsServer("b.grid:8448"), true},
		{"one that is not named", bob.AllowsServer("c.grid"), false},
		{"one that bob is denied", bob.AllowsServer("old.b.grid"), false},
		{"one that all are denied", bob.AllowsServer("spam.grid"), false},
		{"any server of carol's", carol.AllowsServer("c.grid"), true},
		{"but one that all are denied", carol.AllowsServer("spam.grid"), false},
		{"a room", bob.AllowsRoom("!fine:b.grid"), true},
		{"bob's denied room", bob.AllowsRoom("!worse:b.grid"), false},
		{"the denied room of all, for bob", bob.AllowsRoom("!spam:b.grid"), false},
		{"and for carol", carol.AllowsRoom("!spam:b.grid"), false},
		{"bob's denied room, for carol", carol.AllowsRoom("!worse:b.grid"), true},
		{"custody of carol's", carol.Custody, true},
		{"custody of bob's", bob.Custody, false},
		{"matrix for carol", c.Policy("carol").Allow[federation.Matrix], true},
		{"matrix for eve", c.Policy("eve").Allow[federation.Matrix], false},
	} {
		if x.got != x.want {
			t.Errorf("%s: %v", x.what, x.got)
		}
	}
	if deny := c.Policy("stranger").Matrix.DenyRooms; len(deny) != 1 {
		t.Errorf("bob's rooms are denied to others: %v", deny)
	}
	var zero federation.MatrixPolicy
	if !zero.AllowsServer("b.grid") || !zero.AllowsRoom("!a:b.grid") || zero.Custody {
		t.Error("the zero value has exceptions")
	}
}

func TestWarnsOfAllow(t *testing.T) {
	both := minimalMatrix + "xmpp: {domains: [a.grid], server: 127.0.0.1:5269, listen: 127.0.10.11:5269}\n"
	for _, c := range []struct{ src, want string }{
		{minimalMatrix, "nothing will cross (write allow: [matrix])"},
		{minimalMatrix + "peer_defaults: {allow: [xmpp, matrix]}\n", "xmpp is allowed to peers, but there is no section xmpp"},
		{both + "peers: {bob: {allow: [xmpp]}}\n", "matrix: no peer is allowed it"},
		{both + "peers: {bob: {allow: [xmpp]}, carol: {allow: [matrix]}}\n", ""},
	} {
		warned := slices.DeleteFunc(parse(t, c.src, nil).Warnings, func(w string) bool { return w == NoPeerings })
		if len(warned) > 1 || !strings.Contains(strings.Join(warned, "\n"), c.want) || (len(warned) == 0) != (c.want == "") {
			t.Errorf("%s warns of %q, want %q", c.src, warned, c.want)
		}
	}
}

// The example has what init was asked for, and shows the rest as comments.
func TestExampleSections(t *testing.T) {
	for _, protocols := range [][]string{{"xmpp"}, {"matrix"}, {"xmpp", "matrix"}} {
		e := ExampleDefaults()
		if e.Domains = nil; slices.Contains(protocols, "xmpp") {
			e.Domains = []string{"chat.grid"}
		}
		if slices.Contains(protocols, "matrix") {
			e.ServerNames, e.MatrixProxy, e.MatrixListen = []string{"m.grid:8448"}, "", []string{"127.0.10.12:443", "[::1]:8448"}
		}
		var b bytes.Buffer
		if err := e.Write(&b); err != nil {
			t.Fatal(err)
		}
		c := parse(t, b.String(), nil)
		if !slices.Equal(e.Protocols(), protocols) || len(c.Protocols()) != len(protocols) {
			t.Errorf("%v: the sections are of %v", protocols, c.Protocols())
		}
		for _, p := range protocols {
			if !c.Policy("anyone").Allow[federation.Protocol(p)] {
				t.Errorf("%v: peers may not use %s", protocols, p)
			}
		}
		if m := c.Matrix; m != nil && (m.ServerNames[0] != "m.grid:8448" || m.Proxy.IsValid() || len(m.Listen) != 2) {
			t.Errorf("matrix: %+v", m)
		}
		if len(e.Domains) == 0 {
			all := uncommented(b.String(), "# For XMPP, beside Matrix:\n")
			if x := parse(t, all, nil).XMPP; x == nil || x.Domains[0] != "a.grid" || x.DNS == nil {
				t.Errorf("the section of XMPP, uncommented: %+v", x)
			}
		}
		if n := strings.Count(b.String(), "server_names:"); n != 1 {
			t.Errorf("%v: the example has %d sections of Matrix:\n%s", protocols, n, &b)
		}
	}
}
