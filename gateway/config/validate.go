package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/yggate/yggate/federation"
)

// Bounds of what can be asked for.
const (
	minStanza = 10_000   // RFC 6120 §13.12: a smaller limit breaks conforming servers
	maxStanza = 10 << 20 // a stanza is held in memory at both ends
	maxName   = 64

	minTTL = time.Minute
	maxTTL = 90 * 24 * time.Hour
)

var (
	dialSchemes   = []string{"tcp", "tls", "quic", "ws", "wss", "unix", "socks", "sockstls"}
	listenSchemes = []string{"tcp", "tls", "quic", "ws", "wss", "unix"}
	allProtocols  = []federation.Protocol{federation.XMPP, federation.Matrix, federation.MQTT}
	protocols     = []string{string(federation.XMPP), string(federation.Matrix), string(federation.MQTT)}
)

func (c *Config) validate(r *reader) {
	switch {
	case c.Name == "" && !r.failed("name"):
		r.failAt("name", "is missing; it is what peers see this grid called, such as name: riverside")
	case len(c.Name) > maxName || strings.ContainsFunc(c.Name, func(x rune) bool { return !unicode.IsPrint(x) }):
		r.failAt("name", "%.20q... is not a name; write at most %d printable bytes", c.Name, maxName)
	}
	if c.State == "" && !r.failed("state") {
		r.failAt("state", "is empty; name the directory of the identity and the database")
	}
	r.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	r.oneOf("log.format", c.Log.Format, "text", "json")
	c.Mesh.validate(r)
	if c.XMPP != nil {
		c.XMPP.validate(r)
	}
	if c.Matrix != nil {
		c.Matrix.validate(r)
	}
	if c.MQTT != nil {
		c.MQTT.validate(r)
	}
	if len(c.Protocols()) == 0 && !r.failed("xmpp") && !r.failed("matrix") && !r.failed("mqtt") {
		r.failAt("xmpp", "is missing, and so are matrix and mqtt; say in one of them, or more, what is yours and where its server is (`yggate init --print` shows an example)")
	}
	c.PeerDefaults.validate(r, "peer_defaults")
	for _, name := range c.PeerNames() {
		if err := federation.CheckPetname(name); err != nil {
			r.failAt("peers."+name, "%v", err)
		}
		p := c.Peers[name]
		p.validate(r, "peers."+name)
	}
	c.Metrics.validate(r)
}

// failed says whether something at or under key has been reported already, so
// that one mistake is told once, and of an unreadable file nothing but that.
func (r *reader) failed(key string) bool {
	return r.unread || slices.ContainsFunc(r.problems, func(p Problem) bool {
		return p.Key == key || strings.HasPrefix(p.Key, key+".") || strings.HasPrefix(p.Key, key+"[")
	})
}

func (r *reader) oneOf(key, value string, allowed ...string) {
	if slices.Contains(allowed, value) || r.failed(key) {
		return
	}
	hint := ""
	if near := nearest(value, allowed); near != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", near)
	}
	r.failAt(key, "%q is not known%s; allowed: %s", value, hint, strings.Join(allowed, ", "))
}

func (m *Mesh) validate(r *reader) {
	uris := func(key string, list []string, schemes []string) {
		for i, s := range list {
			if at := fmt.Sprintf("%s[%d]", key, i); !r.failed(at) {
				if err := CheckPeering(s, schemes); err != nil {
					r.failAt(at, "%v", err)
				}
			}
		}
	}
	uris("mesh.peers", m.Peers, dialSchemes)
	uris("mesh.listen", m.Listen, listenSchemes)
	uris("mesh.advertise", m.Advertise, dialSchemes)
	if m.Port == 0 && !r.failed("mesh.port") {
		r.failAt("mesh.port", "0 is not a port; write one between 1 and 65535, the same on every grid")
	}
}

// CheckPeering says what is wrong with a Yggdrasil peering URI.
func CheckPeering(s string, schemes []string) error {
	u, err := url.Parse(s)
	shown := s
	if err == nil && u.Query().Has("password") {
		shown = u.Redacted()
		shown, _, _ = strings.Cut(shown, "?")
	}
	switch {
	case err != nil, u.Scheme == "":
		return fmt.Errorf("%q is not a peering URI; write one such as tls://192.0.2.1:4443", shown)
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("%q: the scheme %q is not known here; allowed: %s", shown, u.Scheme, strings.Join(schemes, ", "))
	case u.Scheme == "unix":
		if u.Path == "" {
			return fmt.Errorf("%q: a unix peering needs a path, as in unix:///run/mesh.sock", shown)
		}
		return nil
	}
	if _, err := hostPort(u.Host); err != nil {
		return fmt.Errorf("%q: %w", shown, err)
	}
	return nil
}

// hostPort checks HOST:PORT and returns the port.
func hostPort(s string) (uint16, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return 0, fmt.Errorf("%q is not HOST:PORT; write both, as in 127.0.0.1:5269 or [::1]:5269", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q has no port between 1 and 65535", s)
	}
	return uint16(n), nil
}

func (x *XMPP) validate(r *reader) {
	if len(x.Domains) == 0 && !r.failed("xmpp.domains") {
		r.failAt("xmpp.domains", "is missing; list the domains of your server's users, as in [a.grid]")
	}
	seen := map[string]bool{}
	r.names("xmpp.domains", federation.XMPP, x.Domains, seen)
	r.names("xmpp.muc", federation.XMPP, x.MUC, seen)
	if !r.failed("xmpp.server") {
		if x.Server == "" {
			r.failAt("xmpp.server", "is missing; say where your XMPP server takes s2s connections, as in 127.0.0.1:5269")
		} else if _, err := hostPort(x.Server); err != nil {
			r.failAt("xmpp.server", "%v", err)
		}
	}
	r.address("xmpp.listen", x.Listen, true)
	r.sources("xmpp.allow_from", x.AllowFrom)
	if x.DNS != nil {
		r.address("xmpp.dns.listen", x.DNS.Listen, true)
		for i, u := range x.DNS.Upstream {
			r.address(fmt.Sprintf("xmpp.dns.upstream[%d]", i), u, true)
		}
	}
	if x.MaxStanza != 0 && (x.MaxStanza < minStanza || x.MaxStanza > maxStanza) {
		r.failAt("xmpp.max_stanza", "must be between 10000B and 10MiB")
	}
}

// sources refuses a list of them that nobody is on.
func (r *reader) sources(key string, allow []Prefix) {
	if allow != nil && len(allow) == 0 {
		r.failAt(key, "is empty: not even your own server could connect; list its addresses or remove the key")
	}
}

// names normalises a list of domains or server names in place and refuses what
// stands twice.
func (r *reader) names(key string, proto federation.Protocol, list []string, seen map[string]bool) {
	for i, d := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		if r.failed(at) {
			continue
		}
		norm, err := federation.NormalizeClaim(proto, d)
		switch {
		case err != nil:
			r.failAt(at, "%v", err)
		case seen[norm]:
			r.failAt(at, "%q stands here a second time", norm)
		}
		seen[norm] = true
		list[i] = norm
	}
}

// address checks an address that a socket is opened on or sent to.
func (r *reader) address(key string, a netip.AddrPort, required bool) {
	switch {
	case r.failed(key):
	case !a.IsValid():
		if required {
			r.failAt(key, "is missing; write an address with a port, as in 127.0.10.11:5269")
		}
	case a.Port() == 0:
		r.failAt(key, "0 is not a port; write one between 1 and 65535")
	}
}

func (p *Peer) validate(r *reader, key string) {
	for i, proto := range p.Allow {
		r.oneOf(fmt.Sprintf("%s.allow[%d]", key, i), string(proto), protocols...)
	}
	p.Matrix.validate(r, key+".matrix")
	p.MQTT.validate(r, key+".mqtt")
	l := p.Limits
	for _, f := range []struct {
		name string
		v    float64
	}{
		{"messages_per_second", l.MessagesPerSecond}, {"burst", float64(l.Burst)},
		{"streams", float64(l.Streams)}, {"queue_items", float64(l.QueueItems)},
	} {
		at := key + ".limits." + f.name
		if _, set := r.pos[at]; set && !(f.v > 0 && f.v < 1e12) && !r.failed(at) {
			r.failAt(at, "must be above 0 (to let nothing cross, write allow: [])")
		}
	}
	at := key + ".limits.ttl"
	if ttl := time.Duration(l.TTL); ttl != 0 && (ttl < minTTL || ttl > maxTTL) && !r.failed(at) {
		r.failAt(at, "must be between 1m and 90d; it is how long a message waits for the peer")
	}
}

func (m *Metrics) validate(r *reader) {
	r.address("metrics.listen", m.Listen, false)
	if m.Listen.IsValid() && !m.Listen.Addr().IsLoopback() && !m.Insecure && !r.failed("metrics.listen") {
		r.failAt("metrics.listen", "%s is not a loopback address, and metrics have no password; use 127.0.0.1, or add insecure: true beside it", m.Listen)
	}
}
