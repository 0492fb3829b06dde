package config

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// MQTT is the broker and how the gateway meets it.
type MQTT struct {
	// Broker is where it listens, as mqtt://HOST:PORT, or mqtts for TLS. Once loaded it
	// has a port.
	Broker string `yaml:"broker" env:"YGGATE_MQTT_BROKER"`
	// User and Password may be empty, for a broker that does not ask.
	User     string `yaml:"user" env:"YGGATE_MQTT_USER"`
	Password string `yaml:"password" env:"YGGATE_MQTT_PASSWORD"`
	// CA is a PEM file of whom the broker's certificate must come from; empty: one that
	// the system trusts. Cert and Key are PEM files of the gateway's own certificate,
	// for a broker that asks for one. All absolute once loaded.
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// ClientID names the gateway's session with the broker; empty: made of the grid's
	// id.
	ClientID string `yaml:"client_id"`
	// Version is auto, 5 or 3.1.1; auto once loaded if the file says nothing.
	Version string `yaml:"version"`
	// Share, if not empty, is the group of a shared subscription by which messages are
	// taken.
	Share string `yaml:"share"`
	// MaxPacket bounds one packet of the broker's.
	MaxPacket Size `yaml:"max_packet"`
	// State is the beginning of the topics that tell whether peers can be reached. Once
	// loaded it is there.
	State string `yaml:"state"`
	// Prefixes are announced to peers as where this grid's own topics are.
	Prefixes []string `yaml:"prefixes"`
}

// PeerMQTT is which topics cross to and from a peer. What is nil or zero is as in
// peer_defaults.
type PeerMQTT struct {
	Export       []MQTTExport       `yaml:"export"`
	Import       []MQTTImport       `yaml:"import"`
	Availability []MQTTAvailability `yaml:"availability"`
	Overflow     string             `yaml:"overflow"`
	// Rate is how many messages per second may go to the peer.
	Rate float64 `yaml:"rate"`
	// TTL is how long one may wait for it.
	TTL Duration `yaml:"ttl"`
}

// MQTTExport lets topics cross to a peer.
type MQTTExport struct {
	Filter string `yaml:"filter"`
	// As is what the topics become there; {peer} in it is the peer's name.
	As     string `yaml:"as"`
	QoS    *int   `yaml:"qos"`    // nil: 2
	Retain *bool  `yaml:"retain"` // nil: true
	// Transit lets what came from another grid go on.
	Transit bool `yaml:"transit"`
}

// MQTTImport takes topics from a peer.
type MQTTImport struct {
	Filter string `yaml:"filter"`
	// To is what the topics become here; {peer} in it is the peer's name. Empty:
	// grid/{peer}/.
	To     string `yaml:"to"`
	QoS    *int   `yaml:"qos"`
	Retain *bool  `yaml:"retain"`
}

// MQTTAvailability is a topic that tells whether a peer can be reached.
type MQTTAvailability struct {
	Topic   string `yaml:"topic"`
	Online  string `yaml:"online"`  // empty: online
	Offline string `yaml:"offline"` // empty: offline
}

const (
	// A packet is to fit into an item of a lane with what is written around it.
	defaultMaxPacket = 960 << 10
	minPacket        = 4 << 10

	maxClientID = 128
	maxPrefixes = 64
	maxRules    = 1000
	// defaultImport is where what a peer sends is found.
	defaultImport = gridHome + "{peer}/"
	gridHome      = "grid/"
	defaultState  = "$grid/"
	peerVariable  = "{peer}"
)

var (
	versions  = []string{"auto", "5", "3.1.1"}
	overflows = []string{string(federation.OverflowBlock), string(federation.OverflowDropOldest), string(federation.OverflowDropNewest)}
	// plainWord is what names a share (MQTT 5 §4.8.2) and a client without doubt.
	plainWord = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
)

func (m *MQTT) validate(r *reader) {
	switch {
	case r.failed("mqtt.broker"):
	case m.Broker == "":
		r.failAt("mqtt.broker", "is missing; say where your broker listens, as in mqtt://127.0.0.1:1883")
	default:
		m.validateBroker(r)
	}
	if m.Password != "" && m.User == "" && !r.failed("mqtt.user") {
		r.failAt("mqtt.password", "has no user beside it; write user, too")
	}
	m.validateTLS(r)
	if m.ClientID != "" && (len(m.ClientID) > maxClientID || !plainWord.MatchString(m.ClientID)) {
		r.failAt("mqtt.client_id", "%.40q: use 1 to %d of the characters A-Z, a-z, 0-9, _, . and -", m.ClientID, maxClientID)
	}
	if m.Version != "" {
		r.oneOf("mqtt.version", m.Version, versions...)
	}
	if m.Share != "" && (len(m.Share) > maxClientID || !plainWord.MatchString(m.Share)) {
		r.failAt("mqtt.share", "%.40q: use 1 to %d of the characters A-Z, a-z, 0-9, _, . and -", m.Share, maxClientID)
	}
	if m.Share != "" && m.Version == "3.1.1" {
		r.failAt("mqtt.share", "shared subscriptions are of MQTT 5; remove the key, or the version")
	}
	if m.MaxPacket != 0 && (m.MaxPacket < minPacket || m.MaxPacket > defaultMaxPacket) {
		r.failAt("mqtt.max_packet", "must be between 4KiB and 960KiB")
	}
	if s := m.State; s != "" && !r.failed("mqtt.state") && (len(s) < 2 || len(s) > 256 || !strings.HasSuffix(s, "/") || s == gridHome || topic.CheckName(s) != nil) {
		r.failAt("mqtt.state", "%.80q: write the beginning of topics that ends in /, without wildcards, other than %s, as in grid-state/", s, gridHome)
	}
	m.validatePrefixes(r)
}

// validateBroker checks the URL; a password in it is not shown.
func (m *MQTT) validateBroker(r *reader) {
	const key, example = "mqtt.broker", "mqtt://127.0.0.1:1883"
	u, err := url.Parse(m.Broker)
	switch {
	case err != nil, u.Scheme == "", u.Host == "":
		r.failAt(key, "this is not a URL; write one such as %s", example)
	case u.Scheme != "mqtt" && u.Scheme != "mqtts":
		r.failAt(key, "the scheme %q is not used here; write mqtt, or mqtts for TLS, as in %s", u.Scheme, example)
	case u.User != nil:
		r.failAt(key, "a user and a password have keys of their own: user, and password or YGGATE_MQTT_PASSWORD")
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(m.Broker, "#"):
		r.failAt(key, "write no more than host and port: %s", u.Scheme+"://"+u.Host)
	default:
		if u.Port() == "" && !strings.HasSuffix(u.Host, ":") {
			u.Host += map[string]string{"mqtt": ":1883", "mqtts": ":8883"}[u.Scheme]
		}
		if _, err := hostPort(u.Host); err != nil {
			r.failAt(key, "%v", err)
		}
		m.Broker = u.Scheme + "://" + u.Host
	}
}

func (m *MQTT) validateTLS(r *reader) {
	if strings.HasPrefix(m.Broker, "mqtt://") && !r.failed("mqtt.broker") {
		for _, f := range []struct{ key, v string }{{"mqtt.ca", m.CA}, {"mqtt.cert", m.Cert}, {"mqtt.key", m.Key}} {
			if f.v != "" && !r.failed(f.key) {
				r.failAt(f.key, "is for TLS, which the broker's URL does not ask for; write mqtts, or remove the key")
			}
		}
	}
	switch {
	case m.Cert != "" && m.Key == "" && !r.failed("mqtt.key"):
		r.failAt("mqtt.cert", "has no key beside it; name the PEM file of its private key")
	case m.Key != "" && m.Cert == "" && !r.failed("mqtt.cert"):
		r.failAt("mqtt.key", "has no cert beside it; name the PEM file of the certificate")
	}
}

func (m *MQTT) validatePrefixes(r *reader) {
	if len(m.Prefixes) > maxPrefixes {
		r.failAt("mqtt.prefixes", "are %d, at most %d are announced; write common ones", len(m.Prefixes), maxPrefixes)
	}
	seen := map[string]bool{}
	for i, p := range m.Prefixes {
		at := fmt.Sprintf("mqtt.prefixes[%d]", i)
		switch {
		case r.failed(at):
		case len(p) < 2 || len(p) > 256 || !strings.HasSuffix(p, "/") || topic.Reserved(p) || topic.CheckName(p) != nil:
			r.failAt(at, "%.80q: write the beginning of topics that ends in /, without wildcards and $, as in house/", p)
		case seen[p]:
			r.failAt(at, "%q stands here a second time", p)
		}
		seen[p] = true
	}
}

func (p *PeerMQTT) validate(r *reader, key string) {
	who, all := strings.TrimSuffix(strings.TrimPrefix(key, "peers."), ".mqtt"), key == "peer_defaults.mqtt"
	if all {
		who = "peer"
	}
	rules := make([]rule, 0, len(p.Export)+len(p.Import))
	for i, e := range p.Export {
		rules = append(rules, rule{fmt.Sprintf("%s.export[%d]", key, i), e.Filter, "as", e.As, e.QoS})
	}
	for i, m := range p.Import {
		rules = append(rules, rule{fmt.Sprintf("%s.import[%d]", key, i), m.Filter, "to", m.To, m.QoS})
	}
	if len(rules) > maxRules {
		r.failAt(key, "has %d rules, at most %d are taken; write wider filters", len(rules), maxRules)
		return
	}
	for _, x := range rules {
		x.validate(r, who)
		if all && x.word == "to" && x.to != "" && !strings.Contains(x.to, peerVariable) && !r.failed(x.key+".to") {
			r.failAt(x.key+".to", "%q: the topics of all peers would become the same; put {peer} into it", x.to)
		}
	}
	for i, a := range p.Availability {
		a.validate(r, fmt.Sprintf("%s.availability[%d]", key, i), who, all)
	}
	if p.Overflow != "" {
		r.oneOf(key+".overflow", p.Overflow, overflows...)
	}
	if _, set := r.pos[key+".rate"]; set && !(p.Rate > 0 && p.Rate < 1e12) && !r.failed(key+".rate") {
		r.failAt(key+".rate", "must be above 0; it is a number of messages per second")
	}
	if ttl := time.Duration(p.TTL); ttl != 0 && (ttl < time.Second || ttl > maxTTL) && !r.failed(key+".ttl") {
		r.failAt(key+".ttl", "must be between 1s and 90d; it is how long a message waits for the peer")
	}
}

// rule is an export or an import.
type rule struct {
	key, filter, word, to string
	qos                   *int
}

func (x *rule) validate(r *reader, who string) {
	at := x.key + ".filter"
	switch err := topic.CheckFilter(x.filter); {
	case r.failed(at):
		return
	case x.filter == "":
		r.failAt(at, "is missing; write the topics that it is about, as in sensors/# or sensors/+/temp")
		return
	case err != nil:
		r.failAt(at, "%v", err)
		return
	case topic.Reserved(x.filter):
		r.failAt(at, "%.80q begins with $: such topics belong to the broker and never cross", x.filter)
		return
	}
	if at = x.key + "." + x.word; x.to != "" && !r.failed(at) {
		if _, err := topic.NewRule(x.filter, strings.ReplaceAll(x.to, peerVariable, who)); err != nil {
			r.failAt(at, "%v; write a prefix such as bob/ or a template such as bob/{1}/temp", err)
		}
	}
	if at = x.key + ".qos"; x.qos != nil && (*x.qos < 0 || *x.qos > 2) && !r.failed(at) {
		r.failAt(at, "%d is no quality of service; write 0, 1 or 2", *x.qos)
	}
}

func (a *MQTTAvailability) validate(r *reader, key, who string, all bool) {
	at := key + ".topic"
	switch name := strings.ReplaceAll(a.Topic, peerVariable, who); {
	case r.failed(at):
	case a.Topic == "":
		r.failAt(at, "is missing; write the topic that tells whether the peer can be reached")
	case topic.CheckName(name) != nil:
		r.failAt(at, "%v", topic.CheckName(name))
	case topic.Reserved(name):
		r.failAt(at, "%.80q begins with $: such topics belong to the broker", name)
	case all && !strings.Contains(a.Topic, peerVariable):
		r.failAt(at, "%q: all peers would share it; put {peer} into it", a.Topic)
	}
	if on, off := a.texts(); on == off && !r.failed(key) {
		r.failAt(key, "says %q in both cases; let online and offline differ", on)
	}
}

func (a *MQTTAvailability) texts() (online, offline string) {
	if online = a.Online; online == "" {
		online = "online"
	}
	if offline = a.Offline; offline == "" {
		offline = "offline"
	}
	return online, offline
}

// complete fills in what was left out.
func (m *MQTT) complete(abs func(string) string) {
	if m == nil {
		return
	}
	m.CA, m.Cert, m.Key = abs(m.CA), abs(m.Cert), abs(m.Key)
	if m.Version == "" {
		m.Version = "auto"
	}
	if m.MaxPacket == 0 {
		m.MaxPacket = defaultMaxPacket
	}
	if m.State == "" {
		m.State = defaultState
	}
}

// apply lays these settings over those that are there, for the peer of that name.
func (p PeerMQTT) apply(to *federation.MQTTPolicy, petname string) {
	named := func(s string) string { return strings.ReplaceAll(s, peerVariable, petname) }
	if p.Export != nil {
		to.Exports = nil
		for _, e := range p.Export {
			to.Exports = append(to.Exports, federation.MQTTRule{
				Filter: e.Filter, As: named(e.As), QoS: qosOf(e.QoS), Retain: e.Retain == nil || *e.Retain, Transit: e.Transit,
			})
		}
	}
	if p.Import != nil {
		to.Imports = nil
		for _, m := range p.Import {
			if m.To == "" {
				m.To = defaultImport
			}
			to.Imports = append(to.Imports, federation.MQTTRule{
				Filter: m.Filter, As: named(m.To), QoS: qosOf(m.QoS), Retain: m.Retain == nil || *m.Retain,
			})
		}
	}
	if p.Availability != nil {
		to.Availability = nil
		for _, a := range p.Availability {
			on, off := a.texts()
			to.Availability = append(to.Availability, federation.MQTTAvailability{Topic: named(a.Topic), Online: on, Offline: off})
		}
	}
	if p.Overflow != "" {
		to.Overflow = federation.MQTTOverflow(p.Overflow)
	}
	if p.Rate > 0 {
		to.Rate = p.Rate
	}
	if p.TTL > 0 {
		to.TTL = time.Duration(p.TTL)
	}
}

func qosOf(q *int) byte {
	if q == nil {
		return 2
	}
	return byte(*q)
}

// warnOfMQTT warns where MQTT is allowed to a peer of the file and nothing crosses.
func (c *Config) warnOfMQTT() {
	if c.MQTT == nil {
		return
	}
	names := append([]string{"peer_defaults"}, c.PeerNames()...)
	for _, name := range names {
		p := c.Policy(name)
		if p.Allow[federation.MQTT] && len(p.MQTT.Exports)+len(p.MQTT.Imports) > 0 {
			return
		}
	}
	c.Warnings = append(c.Warnings, "mqtt: no peer has an export or an import: no topic will cross (write them under mqtt of a peer, or of peer_defaults)")
}
