package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

const testdata = "../../testdata/config"

// The example that `yggate init` writes is documentation: it must load, mean what
// its comments say, and offer every key there is.
func TestExampleLoads(t *testing.T) {
	var b bytes.Buffer
	if err := ExampleDefaults().Write(&b); err != nil {
		t.Fatal(err)
	}
	c, err := Parse("/etc/yggate/yggate.yaml", b.Bytes(), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, &b)
	}
	if c.XMPP.Listen.String() != "127.0.10.11:5269" || c.XMPP.DNS.Listen.String() != "127.0.10.53:53" || c.XMPP.MaxStanza != 256<<10 {
		t.Errorf("xmpp = %+v", c.XMPP)
	}
	p := c.Policy("anyone")
	if !p.Allow[federation.XMPP] || p.Limits != federation.DefaultLimits() {
		t.Errorf("policy = %+v", p)
	}

	// Uncommenting every commented setting must load as well, and mean the
	// defaults where it shows them.
	full := uncommented(b.String(), "# For Matrix, beside XMPP or instead of it:\n")
	full = uncommented(full, "# For MQTT, beside the others or alone:\n")
	full = strings.NewReplacer("  # upstream_proxy:", "  upstream_proxy:", "  # listen: [127", "  listen: [127", "  # matrix:", "  matrix:", "  # mqtt:", "  mqtt:", "#     mqtt:", "    mqtt:", "#       import:", "      import:",
		"  # user: ygg", "  user: ygg", "  # password:", "  password:", "  # ca: /etc/mosq", "  ca: /etc/mosq", "  # cert: /etc/ygg", "  cert: /etc/ygg",
		"  # key: /etc", "  key: /etc", "  # client_id:", "  client_id:", "  # share:", "  share:", "  # prefixes:", "  prefixes:", "mqtt://127", "mqtts://127",
		"#     matrix:", "    matrix:", "#       servers:", "      servers:",
		"  # server_ca:", "  server_ca:", "    # upstream:", "    upstream:", "  # listen: 127.0.0.1:9747", "  listen: 127.0.0.1:9747",
		"# peers:\n", "peers:\n", "#   bob:", "  bob:", "#     allow:", "    allow:", "#     limits:", "    limits:",
		"  # limits:", "  limits:", "  #   ", "    ").Replace(full)
	c, err = Parse("yggate.yaml", []byte(full), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, full)
	}
	if got := c.Policy("anyone").Limits; got != federation.DefaultLimits() {
		t.Errorf("the limits that the example shows as defaults are %+v, the defaults are %+v", got, federation.DefaultLimits())
	}
	if m := c.Matrix; m.Server != "http://127.0.0.1:8008" || m.Proxy.String() != "127.0.0.1:8118" || len(m.Listen) != 2 || m.MaxBody != 16<<20 {
		t.Errorf("matrix = %+v", m)
	}
	if got := c.Policy("bob"); !got.Matrix.Servers["b.grid"] || !got.Matrix.DenyRooms["!id:spam.grid"] || got.Matrix.Custody {
		t.Errorf("bob may over Matrix: %+v", got.Matrix)
	}
	if m := c.MQTT; m.Broker != "mqtts://127.0.0.1:1883" || m.Version != "auto" || m.MaxPacket != 960<<10 || m.CA != "/etc/mosquitto/ca.pem" {
		t.Errorf("mqtt = %+v", m)
	}
	if m := c.Policy("anyone").MQTT; len(m.Exports) != 1 || m.Imports[0].As != "grid/anyone/" || m.Availability[0].Topic != "grid/anyone/online" || m.TTL != 7*24*time.Hour {
		t.Errorf("anyone may over MQTT: %+v", m)
	}
	if m := c.Policy("bob").MQTT; len(m.Exports) != 1 || len(m.Imports) != 1 || m.Imports[0].As != "bob/weather/{1}" || m.Imports[0].QoS != 2 || !m.Imports[0].Retain {
		t.Errorf("bob may over MQTT: %+v", m)
	}
	if got := c.Policy("bob").Limits; got.MessagesPerSecond != 50 || got.Burst != 500 || got.TTL != 12*time.Hour || got.QueueItems != federation.DefaultLimits().QueueItems || got.Streams != federation.DefaultLimits().Streams {
		t.Errorf("bob's limits = %+v", got)
	}
	allKeys(reflect.TypeFor[Config](), func(key string) {
		if !strings.Contains(full, "\n"+key+":") && !strings.Contains(full, " "+key+":") && !strings.Contains(full, "{"+key+":") {
			t.Errorf("the example does not show %q", key)
		}
	})
}

// uncommented makes a section of what stands as a comment under a heading.
func uncommented(example, heading string) string {
	before, rest, _ := strings.Cut(example, heading)
	part, after, _ := strings.Cut(rest, "\n\n")
	return before + strings.ReplaceAll("\n"+part, "\n# ", "\n") + "\n\n" + after
}

func allKeys(typ reflect.Type, each func(string)) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		key := f.Tag.Get("yaml")
		if key == "-" {
			continue
		}
		each(key)
		sub := f.Type
		if sub.Kind() == reflect.Pointer || sub.Kind() == reflect.Map || sub.Kind() == reflect.Slice {
			sub = sub.Elem()
		}
		if sub.Kind() == reflect.Struct && sub.PkgPath() == typ.PkgPath() && sub != reflect.TypeFor[Prefix]() {
			allKeys(sub, each)
		}
	}
}

// Whatever an operator types at init must come back as it was.
func TestExampleQuotes(t *testing.T) {
	for _, name := range []string{"no", "#lounge", "@bob", "a: b", "007", `q"uote`, "über", "- x", "null", "a #b", "~"} {
		e := ExampleDefaults()
		e.Name = name
		e.MeshPeers = []string{"tls://[2001:db8::1]:443?key=00&password=a b", "tcp://192.0.2.1:1"}
		var b bytes.Buffer
		if err := e.Write(&b); err != nil {
			t.Fatal(err)
		}
		c, err := Parse("yggate.yaml", b.Bytes(), nil)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		} else if c.Name != name || c.Mesh.Peers[0] != e.MeshPeers[0] {
			t.Errorf("%q came back as %q, %q", name, c.Name, c.Mesh.Peers)
		}
	}
}

// Each file in testdata/config/bad holds its mistakes; the .txt beside it is what
// an operator is told, every mistake with its line and column.
func TestBadFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testdata, "bad", "*.yaml"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		t.Run(name, func(t *testing.T) {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Parse(name, src, nil)
			var ps Problems
			if !errors.As(err, &ps) {
				t.Fatalf("loaded without a complaint, or with another error: %v", err)
			}
			got := ps.Error() + "\n"
			golden := strings.TrimSuffix(f, ".yaml") + ".txt"
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("told:\n%swant:\n%s", got, want)
			}
		})
	}
}

func TestGoodFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(testdata, "good", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		if c, err := Load(f); err != nil {
			t.Errorf("%s: %v", f, err)
		} else if !filepath.IsAbs(c.State) {
			t.Errorf("%s: state %q is not absolute", f, c.State)
		}
	}
}

const minimal = "name: a\nxmpp:\n  domains: [a.grid]\n  server: 127.0.0.1:5269\n  listen: 127.0.10.11:5269\npeer_defaults: {allow: [xmpp]}\n"

func TestEnvironmentWins(t *testing.T) {
	env := map[string]string{
		"YGGATE_STATE": "/srv/y", "YGGATE_MESH_PEERS": "tls://192.0.2.1:1?password=x tcp://192.0.2.2:2", "YGGATE_XMPP_SERVER": "127.0.0.9:5269",
		"YGGATE_METRICS_LISTEN": "127.0.0.1:9000",
	}
	lookup := func(k string) (string, bool) { v, ok := env[k]; return v, ok }
	c, err := Parse("yggate.yaml", []byte(minimal), lookup)
	if err != nil {
		t.Fatal(err)
	}
	if c.State != "/srv/y" || len(c.Mesh.Peers) != 2 || c.XMPP.Server != "127.0.0.9:5269" || c.Metrics.Listen.Port() != 9000 {
		t.Errorf("%+v %+v", c, c.XMPP)
	}
	env["YGGATE_METRICS_LISTEN"] = "nonsense"
	env["YGGATE_LOG_LEVEL"] = "loud"
	_, err = Parse("yggate.yaml", []byte(minimal), lookup)
	if err == nil || !strings.Contains(err.Error(), "environment: YGGATE_METRICS_LISTEN: ") || !strings.Contains(err.Error(), "environment: log.level: \"loud\"") {
		t.Errorf("err = %v", err)
	}
}

// A peer that neither section names may do nothing.
func TestPolicyDeniesByDefault(t *testing.T) {
	src := strings.Replace(minimal, "peer_defaults: {allow: [xmpp]}\n", "peers: {bob: {allow: [xmpp], limits: {bytes_per_second: 2kB}}, eve: {allow: []}}\n", 1)
	c, err := Parse("yggate.yaml", []byte(src), nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Policy("stranger").Allow[federation.XMPP] || c.Policy("eve").Allow[federation.XMPP] {
		t.Error("a peer may do what no one allowed it")
	}
	if p := c.Policy("bob"); !p.Allow[federation.XMPP] || p.Limits.BytesPerSecond != 2000 || p.Limits.Streams != federation.DefaultLimits().Streams {
		t.Errorf("bob = %+v", p)
	}
	src = strings.Replace(minimal, "{allow: [xmpp]}", "{allow: [xmpp], limits: {burst: 7, queue_items: 9, ttl: 2d}}", 1) +
		"peers: {eve: {allow: [], limits: {queue_bytes: 3MB, ttl: 90m}}}\n"
	if c, err = Parse("yggate.yaml", []byte(src), nil); err != nil {
		t.Fatal(err)
	}
	if c.Policy("eve").Allow[federation.XMPP] {
		t.Error("allow: [] did not override peer_defaults")
	}
	if got := c.Policy("eve").Limits; got.Burst != 7 || got.QueueItems != 9 || got.QueueBytes != 3_000_000 || got.TTL != 90*time.Minute {
		t.Errorf("eve's limits, of both sections, are %+v", got)
	}
	if got := c.Policy("anyone").Limits; got.QueueBytes != federation.DefaultLimits().QueueBytes || got.TTL != 48*time.Hour {
		t.Errorf("limits of a peer without its own = %+v", got)
	}
}

func TestSizesAndDurations(t *testing.T) {
	for in, want := range map[string]Size{"256KiB": 256 << 10, "1.5MB": 1_500_000, "12B": 12, "2 GiB": 2 << 30, "3kB": 3000} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want {
			t.Errorf("%q = %d, %v; want %d", in, s, err, want)
		}
	}
	for _, in := range []string{"", "256", "-1KiB", "0B", "NaNKiB", "InfMB", "1e300TiB", "KiB", "0.1B", "1 foo"} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q was taken as %d", in, s)
		}
	}
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 168 * time.Hour, "0.5d": 12 * time.Hour} {
		if d, err := ParseDuration(in); err != nil || d != want {
			t.Errorf("%q = %v, %v; want %v", in, d, err, want)
		}
	}
	for _, in := range []string{"", "7", "-1s", "0s", "1e300d", "NaNd", "d", "7 days"} {
		if d, err := ParseDuration(in); err == nil {
			t.Errorf("%q was taken as %v", in, d)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(minimal))
	for _, pattern := range []string{"bad/*.yaml", "good/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(testdata, pattern))
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range files {
			src, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, err := Parse("fuzz.yaml", src, nil)
		var ps Problems
		switch {
		case err == nil:
			x, m, q := c.XMPP, c.Matrix, c.MQTT
			if c.Name == "" || c.Mesh.Port == 0 || x == nil && m == nil && q == nil ||
				q != nil && (!strings.HasPrefix(q.Broker, "mqtt") || q.MaxPacket == 0 || q.Version == "") ||
				x != nil && (len(x.Domains) == 0 || !x.Listen.IsValid() || x.MaxStanza == 0) ||
				m != nil && (len(m.ServerNames) == 0 || !m.Proxy.IsValid() && len(m.Listen) == 0 || m.MaxBody == 0) {
				t.Fatalf("incomplete configuration loaded: %+v", c)
			}
		case !errors.As(err, &ps) || len(ps) == 0:
			t.Fatalf("error without a position: %v", err)
		default:
			for _, p := range ps {
				if p.Line < 1 || p.Column < 1 || p.Line > len(lineBreak.FindAll(src, -1))+2 {
					t.Fatalf("mistake without a place in the file: %+v", p)
				}
			}
		}
	})
}
