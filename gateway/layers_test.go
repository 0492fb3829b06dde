package gateway_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/yggate/yggate"

// The layers of the house, from the ground up. Imports run down only, and the
// rooms of one layer do not know each other.
var (
	ground   = []string{"store", "transports"}
	carriers = []string{"transports/ygg", "transports/i2p", "transports/tcp"}
	exchange = []string{"federation/link", "federation/lane", "federation/pairing"}
	adapters = []string{"federation/xmpp", "federation/matrix", "federation/mqtt", "federation/bridge", "federation/service"}
	xmpp     = []string{"federation/xmpp/frame", "federation/xmpp/dns", "federation/xmpp/s2s", "federation/xmpp/setup"}
	mqtt     = []string{"federation/mqtt/topic", "federation/mqtt/session"}

	vocabulary = list(ground, "federation")
	below      = list(vocabulary, exchange...) // what adapters stand on
	protocols  = list(list(list(below, adapters...), list(xmpp, list(mqtt, "federation/mqtt/session/disk")...)...), "federation/matrix/setup", "federation/mqtt/setup", "federation/guide", "federation/localca")
)

// layers says what each package may import of ours; tests is what its test files
// may beyond that. A package without a row is refused, so that every new one
// gets its place here.
var layers = merge(
	rows(ground, nil, nil),
	rows(carriers, []string{"transports"}, []string{"transports/transporttest"}),
	rows([]string{"transports/transporttest"}, []string{"transports"}, nil),
	rows([]string{"federation"}, ground, nil),
	rows(exchange, vocabulary, nil),
	rows(adapters, below, nil),
	map[string]layer{
		"federation/lane":         {may: list(vocabulary, "federation/lane/journal")},
		"federation/lane/journal": {},

		// The local servers of two protocols trust one CA.
		"federation/localca": {},
		"federation/matrix":  {may: list(below, "federation/localca")},

		// What is told to operators is made in one way.
		"federation/guide":        {},
		"federation/matrix/setup": {may: []string{"federation/guide"}},

		"federation/mqtt":         {may: list(below, mqtt...)},
		"federation/mqtt/topic":   {},
		"federation/mqtt/session": {},
		// What a session writes, in the store.
		"federation/mqtt/session/disk": {may: []string{"federation/mqtt/session", "store"}},
		"federation/mqtt/setup":        {may: []string{"federation/guide"}},

		"federation/xmpp":       {may: list(below, xmpp...)},
		"federation/xmpp/frame": {},
		"federation/xmpp/dns":   {},
		"federation/xmpp/setup": {may: []string{"federation/guide"}},
		"federation/xmpp/s2s":   {may: []string{"federation", "federation/xmpp/frame", "federation/localca"}},

		// Only the gateway, and what measures, names the transports.
		"gateway": {
			may:   list(list(protocols, carriers...), "gateway/admin", "gateway/config"),
			tests: []string{"gateway/internal/peertest"},
		},
		"gateway/admin":                       {may: vocabulary},
		"gateway/config":                      {may: list(vocabulary, "federation/mqtt/topic")},
		"gateway/internal/peertest":           {may: []string{"federation/guide", "federation/xmpp/setup", "gateway/admin"}},
		"gateway/internal/peertest/yggrouter": {},
		"gateway/internal/bench":              {may: []string{"federation", "federation/link", "federation/xmpp/setup", "gateway/internal/peertest", "transports", "transports/ygg"}},
		"gateway/internal/chaos":              {may: []string{"federation/localca", "federation/xmpp/frame", "federation/xmpp/s2s", "federation/xmpp/setup", "gateway/admin", "gateway/internal/peertest"}},
		"gateway/internal/sessiontest":        {tests: []string{"federation/mqtt/session", "federation/mqtt/session/disk", "gateway/internal/peertest", "store"}},
		"gateway/internal/demo":               {may: []string{"federation/xmpp/setup", "gateway/internal/peertest"}},
		"cmd/yggate":                          {may: list(protocols, "gateway", "gateway/admin", "gateway/config")},
		"bench/join":                          {may: []string{"transports", "transports/ygg"}},
		"bench/lane":                          {may: list(below, "transports/tcp")},
		"bench/mesh":                          {may: list(carriers, "transports")},
	},
)

type layer struct{ may, tests []string }

func list(head []string, tail ...string) []string { return slices.Concat(head, tail) }

func rows(packages, may, tests []string) map[string]layer {
	m := map[string]layer{}
	for _, p := range packages {
		m[p] = layer{may, tests}
	}
	return m
}

// merge joins tables; a later row takes the place of an earlier one.
func merge(tables ...map[string]layer) map[string]layer {
	all := map[string]layer{}
	for _, t := range tables {
		for p, l := range t {
			all[p] = l
		}
	}
	return all
}

// violation says what is wrong with an import of ours, or nothing.
func violation(file, imported string) string {
	from := path.Dir(file)
	l, known := layers[from]
	switch {
	case !known:
		return fmt.Sprintf("%s: package %s has no row in the table of layers: add it", file, from)
	case imported == from: // an external test
		return ""
	case slices.Contains(l.may, imported):
		return ""
	case strings.HasSuffix(file, "_test.go") && slices.Contains(l.tests, imported):
		return ""
	}
	return fmt.Sprintf("%s: %s may not import %s", file, from, imported)
}

// imports returns what the Go file imports of this module, as folders.
func imports(name string, src any) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, src, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, spec := range f.Imports {
		full, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if full == module || strings.HasPrefix(full, module+"/") {
			ours = append(ours, strings.TrimPrefix(strings.TrimPrefix(full, module), "/"))
		}
	}
	return ours, nil
}

// TestLayers reads every Go file of the tree itself: whatever the build tags, and
// without a child process whose result could come from a cache.
func TestLayers(t *testing.T) {
	read := map[string]bool{}
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch base := d.Name(); {
		case d.IsDir() && name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || name == "tools"):
			return fs.SkipDir // the go command does not look there either; tools is another module
		case d.IsDir() || filepath.Ext(base) != ".go":
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		ours, err := imports(name, src)
		if err != nil {
			return err
		}
		read[path.Dir(name)] = true
		if problem := violation(name, path.Dir(name)); problem != "" { // also without imports of ours
			t.Error(problem)
		}
		for _, imported := range ours {
			if problem := violation(name, imported); problem != "" {
				t.Error(problem)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"cmd/yggate", "gateway", "federation", "federation/xmpp/frame", "transports/ygg", "store"} {
		if !read[p] {
			t.Errorf("nothing read in %s", p)
		}
	}
}

// TestLayersRefuse proves that the picture can be false.
func TestLayersRefuse(t *testing.T) {
	for _, c := range []struct {
		file, imported string
		fine           bool
	}{
		{"store/store.go", "federation", false},
		{"transports/tcp/tcp.go", "store", false},
		{"transports/ygg/node.go", "transports/tcp", false},
		{"transports/ygg/node.go", "transports/transporttest", false},
		{"transports/ygg/ygg_test.go", "transports/transporttest", true},
		{"federation/peer.go", "federation/link", false},
		{"federation/link/link.go", "federation/lane", false},
		{"federation/link/link_test.go", "federation/pairing", false},
		{"federation/link/link_test.go", "transports/tcp", false},
		{"federation/xmpp/adapter.go", "federation/lane", true},
		{"federation/xmpp/adapter.go", "federation/xmpp/s2s", true},
		{"federation/xmpp/adapter.go", "federation/matrix", false},
		{"federation/xmpp/adapter.go", "transports/ygg", false},
		{"federation/xmpp/adapter.go", "gateway", false},
		{"federation/xmpp/frame/tag.go", "federation", false},
		{"federation/xmpp/dns/dns.go", "federation/localca", false},
		{"federation/localca/ca.go", "federation", false},
		{"federation/matrix/matrix.go", "federation/localca", true},
		{"federation/matrix/matrix.go", "federation/xmpp/frame", false},
		{"gateway/mesh.go", "transports/ygg", true},
		{"gateway/mesh.go", "cmd/yggate", false},
		{"gateway/mesh.go", "gateway/internal/peertest", false},
		{"gateway/federation_test.go", "gateway/internal/peertest", true},
		{"cmd/yggate/serve.go", "gateway", true},
		{"cmd/yggate/serve.go", "transports/ygg", false},
		{"bench/mesh/main.go", "transports/ygg", true},
		{"federation/sip/sip.go", "federation", false}, // no row
	} {
		src := fmt.Sprintf("package p\nimport _ %q\n", module+"/"+c.imported)
		ours, err := imports(c.file, src)
		if err != nil || len(ours) != 1 {
			t.Fatalf("%s: %v %v", c.file, ours, err)
		}
		if problem := violation(c.file, ours[0]); (problem == "") != c.fine {
			t.Errorf("%s imports %s: %q, want it fine: %v", c.file, c.imported, problem, c.fine)
		}
	}
}
