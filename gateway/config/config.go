// Package config reads the one file that an operator writes.
//
// Reading is strict: an unknown or repeated key, a wrong type and a value that
// makes no sense are each reported with file, line and column, all of them at
// once, with what is allowed there and how to mend it. What loads without an
// error is complete: defaults are filled in and every value has been checked.
package config

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/yggate/yggate/federation"
)

// DefaultPath is where the file is looked for when no command line or
// environment names another.
const DefaultPath = "/etc/yggate/yggate.yaml"

// maxFile bounds what is read before any parser sees it.
const maxFile = 1 << 20

// Config is one gateway's configuration. A field with an env tag can be set by
// that environment variable, which wins over the file.
type Config struct {
	// Name is what peers see this grid called.
	Name string `yaml:"name" env:"YGGATE_NAME"`
	// State is the directory of the identity, the database and the admin
	// socket; absolute once loaded.
	State        string          `yaml:"state" env:"YGGATE_STATE"`
	Log          Log             `yaml:"log"`
	Mesh         Mesh            `yaml:"mesh"`
	XMPP         *XMPP           `yaml:"xmpp"`   // nil: this grid has no XMPP
	Matrix       *Matrix         `yaml:"matrix"` // nil: this grid has no Matrix
	MQTT         *MQTT           `yaml:"mqtt"`   // nil: this grid has no MQTT; one of the three is there
	PeerDefaults Peer            `yaml:"peer_defaults"`
	Peers        map[string]Peer `yaml:"peers"`
	Metrics      Metrics         `yaml:"metrics"`

	// Path is the file this was read from.
	Path string `yaml:"-"`
	// Warnings are things that load but are seldom meant.
	Warnings []string `yaml:"-"`
}

// Log says what is logged and how.
type Log struct {
	Level  string `yaml:"level" env:"YGGATE_LOG_LEVEL"`   // debug, info, warn, error
	Format string `yaml:"format" env:"YGGATE_LOG_FORMAT"` // text, json
}

// Mesh is this gateway's place in the Yggdrasil network.
type Mesh struct {
	// Peers are the nodes to connect to, as Yggdrasil peering URIs. They may
	// hold passwords, hence the environment variable (separated by spaces).
	Peers  []string `yaml:"peers" env:"YGGATE_MESH_PEERS"`
	Listen []string `yaml:"listen" env:"YGGATE_MESH_LISTEN"`
	// Advertise are peering URIs that an invite carries, so that whoever
	// accepts it finds a way here.
	Advertise []string `yaml:"advertise" env:"YGGATE_MESH_ADVERTISE"`
	Multicast bool     `yaml:"multicast"`
	// Port is where other gateways reach this one, inside the mesh only.
	Port uint16 `yaml:"port"`
}

// XMPP is the local XMPP server and how it and the gateway meet.
type XMPP struct {
	// Domains are this grid's own, those of users first: the server's virtual
	// hosts, normalised.
	Domains []string `yaml:"domains"`
	// MUC are the domains of its group chat and other services, normalised.
	MUC []string `yaml:"muc"`
	// Server is where the local server takes s2s connections, as HOST:PORT.
	Server string `yaml:"server" env:"YGGATE_XMPP_SERVER"`
	// Listen is where the gateway takes s2s connections of the local server.
	Listen netip.AddrPort `yaml:"listen"`
	// AllowFrom are the only sources that Listen and DNS answer.
	AllowFrom []Prefix `yaml:"allow_from"`
	// ServerCA is a PEM file; when set, the local server's certificate must
	// chain to it. Otherwise the certificate `yggate setup` issued is expected.
	ServerCA string `yaml:"server_ca" env:"YGGATE_XMPP_SERVER_CA"`
	// DNS answers SRV questions of the local server; nil in hosts mode.
	DNS       *DNS `yaml:"dns"`
	MaxStanza Size `yaml:"max_stanza"`
}

// DNS is the responder that points the local server at the gateway.
type DNS struct {
	Listen netip.AddrPort `yaml:"listen"`
	// Upstream is asked about every name that is no peer's; without it they
	// do not exist.
	Upstream []netip.AddrPort `yaml:"upstream"`
}

// Peer is what a peer may do. What is left out comes from peer_defaults, and
// what is left out there allows nothing.
type Peer struct {
	Allow  []federation.Protocol `yaml:"allow"`
	Limits Limits                `yaml:"limits"`
	Matrix PeerMatrix            `yaml:"matrix"`
	MQTT   PeerMQTT              `yaml:"mqtt"`
}

// Limits bound what one peer can make this gateway do. Zero means "as in
// peer_defaults".
type Limits struct {
	MessagesPerSecond float64 `yaml:"messages_per_second"`
	Burst             int     `yaml:"burst"`
	BytesPerSecond    Size    `yaml:"bytes_per_second"`
	Streams           int     `yaml:"streams"`
	// What waits for the peer, in each of its lanes.
	QueueItems int  `yaml:"queue_items"`
	QueueBytes Size `yaml:"queue_bytes"`
	// TTL is how long it may wait.
	TTL Duration `yaml:"ttl"`
}

// Metrics is the Prometheus endpoint; without an address there is none.
type Metrics struct {
	Listen netip.AddrPort `yaml:"listen" env:"YGGATE_METRICS_LISTEN"`
	// Insecure allows an address that is not loopback.
	Insecure bool `yaml:"insecure"`
}

// Default returns what a file that says nothing means.
func Default() *Config {
	return &Config{
		State: "/var/lib/yggate",
		Log:   Log{Level: "info", Format: "text"},
		Mesh:  Mesh{Port: 4747},
	}
}

// The sources that are answered where the configuration names none.
var loopback = []Prefix{{netip.MustParsePrefix("127.0.0.0/8")}, {netip.MustParsePrefix("::1/128")}}

// defaultMaxStanza is well above what clients send and what stock servers
// accept from each other.
const defaultMaxStanza = 256 << 10

// Load reads, checks and completes a file. Its error is Problems when the file
// could be read: every mistake in it, in order.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	case st.Size() > maxFile:
		return nil, fmt.Errorf("read configuration: %s has %d bytes, at most %d are read", path, st.Size(), maxFile)
	}
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1)) // Parse refuses more: not every file says its size
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, src, os.LookupEnv)
}

// Parse is Load on bytes; path names them in errors and is what relative paths
// in them start from. env looks up the overriding variables; it may be nil.
func Parse(path string, src []byte, env func(string) (string, bool)) (*Config, error) {
	c := Default()
	c.Path = path
	r := &reader{file: path, pos: map[string]position{}}
	r.read(src, c)
	if env != nil {
		r.environment(c, env)
	}
	c.validate(r)
	if len(r.problems) > 0 {
		r.problems.sort()
		return nil, r.problems
	}
	c.complete()
	return c, nil
}

// NoPeerings is the warning of a configuration that leads to no other node. It is
// beside the point once an invite has brought a peering.
const NoPeerings = "mesh: no peers, no listen and no multicast: this gateway is reached only through the peerings that accepted invites brought"

// complete fills in what depends on other values, once all are known good.
func (c *Config) complete() {
	dir := filepath.Dir(c.Path)
	abs := func(p string) string {
		if p == "" || filepath.IsAbs(p) {
			return p
		}
		if full, err := filepath.Abs(filepath.Join(dir, p)); err == nil {
			return full
		}
		return p
	}
	c.State = abs(c.State)
	if x := c.XMPP; x != nil {
		x.ServerCA = abs(x.ServerCA)
		if x.MaxStanza == 0 {
			x.MaxStanza = defaultMaxStanza
		}
		if x.AllowFrom == nil {
			x.AllowFrom = loopback
		}
	}
	c.Matrix.complete()
	c.MQTT.complete(abs)
	if len(c.Mesh.Peers) == 0 && len(c.Mesh.Listen) == 0 && !c.Mesh.Multicast {
		c.Warnings = append(c.Warnings, NoPeerings)
	}
	c.warnOfAllow()
	c.warnOfMQTT()
}

// warnOfAllow warns of a protocol that runs and is allowed to nobody, and of one
// that is allowed and does not run.
func (c *Config) warnOfAllow() {
	allowed := map[federation.Protocol]bool{}
	for _, p := range append(slices.Collect(maps.Values(c.Peers)), c.PeerDefaults) {
		for _, proto := range p.Allow {
			allowed[proto] = true
		}
	}
	warn := func(format string, args ...any) { c.Warnings = append(c.Warnings, fmt.Sprintf(format, args...)) }
	runs := c.Protocols()
	if len(allowed) == 0 {
		warn("peer_defaults: allow is empty and no peer has its own: nothing will cross (write allow: [%s])", runs[0])
		return
	}
	for _, proto := range allProtocols {
		switch run := slices.Contains(runs, proto); {
		case run && !allowed[proto]:
			warn("%s: no peer is allowed it: nothing of it will cross (write %s under allow, in peer_defaults or for a peer)", proto, proto)
		case !run && allowed[proto]:
			warn("%s is allowed to peers, but there is no section %s: nothing of it will cross", proto, proto)
		}
	}
}

// Policy returns what the peer of that petname may do: its own settings, then
// peer_defaults, then federation.DefaultLimits. No protocol is allowed that
// neither of the first two names.
func (c *Config) Policy(petname string) federation.Policy {
	own, ok := c.Peers[petname]
	allow := own.Allow
	if !ok || allow == nil {
		allow = c.PeerDefaults.Allow
	}
	p := federation.Policy{Allow: map[federation.Protocol]bool{}, Limits: federation.DefaultLimits()}
	for _, proto := range allow {
		p.Allow[proto] = true
	}
	c.PeerDefaults.Limits.apply(&p.Limits)
	own.Limits.apply(&p.Limits)
	c.PeerDefaults.Matrix.apply(&p.Matrix)
	own.Matrix.apply(&p.Matrix)
	c.PeerDefaults.MQTT.apply(&p.MQTT, petname)
	own.MQTT.apply(&p.MQTT, petname)
	return p
}

func (l Limits) apply(to *federation.Limits) {
	if l.MessagesPerSecond > 0 {
		to.MessagesPerSecond = l.MessagesPerSecond
	}
	if l.Burst > 0 {
		to.Burst = l.Burst
	}
	if l.BytesPerSecond > 0 {
		to.BytesPerSecond = int64(l.BytesPerSecond)
	}
	if l.Streams > 0 {
		to.Streams = l.Streams
	}
	if l.QueueItems > 0 {
		to.QueueItems = l.QueueItems
	}
	if l.QueueBytes > 0 {
		to.QueueBytes = int64(l.QueueBytes)
	}
	if l.TTL > 0 {
		to.TTL = time.Duration(l.TTL)
	}
}

// Own returns this grid's domains by protocol, as the directory wants them.
func (c *Config) Own() map[federation.Protocol][]string {
	own := map[federation.Protocol][]string{}
	if c.XMPP != nil {
		own[federation.XMPP] = slices.Concat(c.XMPP.Domains, c.XMPP.MUC)
	}
	if c.Matrix != nil {
		own[federation.Matrix] = slices.Clone(c.Matrix.ServerNames)
	}
	if c.MQTT != nil {
		own[federation.MQTT] = slices.Clone(c.MQTT.Prefixes)
	}
	return own
}

// Protocols returns those that this grid has a section for.
func (c *Config) Protocols() []federation.Protocol {
	var run []federation.Protocol
	if c.XMPP != nil {
		run = append(run, federation.XMPP)
	}
	if c.Matrix != nil {
		run = append(run, federation.Matrix)
	}
	if c.MQTT != nil {
		run = append(run, federation.MQTT)
	}
	return run
}

// PeerNames returns the petnames that the file has settings for, sorted.
func (c *Config) PeerNames() []string { return slices.Sorted(maps.Keys(c.Peers)) }
