package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode"

	"github.com/yggate/yggate/federation"
)

// Matrix is the homeserver and how it and the gateway meet.
type Matrix struct {
	// ServerNames are this grid's own, normalised.
	ServerNames []string `yaml:"server_names"`
	// Server is the homeserver's HTTP listener, for federation and the client
	// API, as http://HOST:PORT.
	Server string `yaml:"server" env:"YGGATE_MATRIX_SERVER"`
	// Proxy is where the gateway is the HTTP proxy of the homeserver; the zero
	// value is none. It or Listen is there.
	Proxy netip.AddrPort `yaml:"proxy"`
	// Listen is where the gateway takes TLS connections of a homeserver that
	// cannot use a proxy.
	Listen []netip.AddrPort `yaml:"listen"`
	// AllowFrom are the only sources that Proxy and Listen answer.
	AllowFrom []Prefix `yaml:"allow_from"`
	// UpstreamProxy takes what the homeserver asks Proxy for and is no peer's,
	// as http://HOST:PORT; empty: that is refused.
	UpstreamProxy string `yaml:"upstream_proxy" env:"YGGATE_MATRIX_UPSTREAM_PROXY"`
	// MaxBody bounds the body of one federation request, in either direction.
	MaxBody Size `yaml:"max_body"`
}

// PeerMatrix is what a peer may do over Matrix beyond being allowed it.
type PeerMatrix struct {
	// Servers are the only server names of the peer that take part; nil: all
	// that it holds.
	Servers []string `yaml:"servers"`
	// DenyServers and DenyRooms do not take part; what peer_defaults denies
	// stays denied for each peer.
	DenyServers []string `yaml:"deny_servers"`
	DenyRooms   []string `yaml:"deny_rooms"`
	// Custody keeps transactions for the peer on disk while it is away; nil: as
	// in peer_defaults.
	Custody *bool `yaml:"custody"`
}

const (
	defaultMaxBody = 16 << 20
	// A transaction may hold 50 PDUs of 64 KiB and 100 EDUs
	// (server-server API, "Transactions"): a lower bound would break one for good.
	minBody = 4 << 20
	maxBody = 64 << 20 // a request is held in memory to verify it

	maxRoomID = 255 // bytes; appendices, "Common identifier format"
)

func (m *Matrix) validate(r *reader) {
	if len(m.ServerNames) == 0 && !r.failed("matrix.server_names") {
		r.failAt("matrix.server_names", "is missing; list what stands behind the colon in your users' addresses, as in [a.grid]")
	}
	r.names("matrix.server_names", federation.Matrix, m.ServerNames, map[string]bool{})
	switch {
	case r.failed("matrix.server"):
	case m.Server == "":
		r.failAt("matrix.server", "is missing; say where your homeserver listens for HTTP, as in http://127.0.0.1:8008")
	default:
		r.httpURL("matrix.server", m.Server, "http://127.0.0.1:8008")
	}
	if m.UpstreamProxy != "" && !r.failed("matrix.upstream_proxy") {
		r.httpURL("matrix.upstream_proxy", m.UpstreamProxy, "http://127.0.0.1:3128")
		if m.Proxy.IsValid() && m.UpstreamProxy == "http://"+m.Proxy.String() {
			r.failAt("matrix.upstream_proxy", "this is the gateway's own proxy; name another one or remove the key")
		}
	}
	m.validateListen(r)
	r.sources("matrix.allow_from", m.AllowFrom)
	if m.MaxBody != 0 && (m.MaxBody < minBody || m.MaxBody > maxBody) {
		r.failAt("matrix.max_body", "must be between 4MiB and 64MiB")
	}
}

func (m *Matrix) validateListen(r *reader) {
	if !m.Proxy.IsValid() && len(m.Listen) == 0 && !r.failed("matrix.proxy") && !r.failed("matrix.listen") {
		r.failAt("matrix.proxy", "is missing; say where the gateway is your homeserver's proxy, as in 127.0.0.1:8118, or give matrix.listen")
	}
	r.address("matrix.proxy", m.Proxy, false)
	taken := map[netip.AddrPort]string{}
	if m.Proxy.IsValid() {
		taken[m.Proxy] = "matrix.proxy"
	}
	for i, a := range m.Listen {
		at := fmt.Sprintf("matrix.listen[%d]", i)
		r.address(at, a, true)
		if other := taken[a]; other != "" && a.IsValid() && !r.failed(at) {
			r.failAt(at, "%s is taken by %s", a, other)
		}
		taken[a] = at
	}
}

// httpURL checks an http URL of a host and a port and no more. Its password, if it
// has one, is not shown.
func (r *reader) httpURL(key, s, example string) {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Scheme == "", u.Host == "":
		r.failAt(key, "this is not a URL; write one such as %s", example)
	case u.Scheme != "http":
		r.failAt(key, "the scheme %q is not used here; write http, as in %s", u.Scheme, example)
	case u.User != nil:
		r.failAt(key, "a user and a password are not used here; write %s", "http://"+u.Host)
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || strings.Contains(s, "#"):
		r.failAt(key, "write no more than host and port: %s", "http://"+u.Host)
	default:
		if _, err := hostPort(u.Host); err != nil {
			r.failAt(key, "%v", err)
		}
	}
}

func (p *PeerMatrix) validate(r *reader, key string) {
	if servers := key + ".servers"; p.Servers != nil && !r.failed(servers) {
		switch {
		case key == "peer_defaults.matrix":
			r.failAt(servers, "a server name belongs to one peer; write it under peers.NAME.matrix")
		case len(p.Servers) == 0:
			r.failAt(servers, "is empty; remove the key to allow all that the peer holds, or leave matrix out of its allow to allow none")
		}
	}
	r.names(key+".servers", federation.Matrix, p.Servers, map[string]bool{})
	denied := map[string]bool{}
	r.names(key+".deny_servers", federation.Matrix, p.DenyServers, denied)
	for i, name := range p.Servers {
		if at := fmt.Sprintf("%s.servers[%d]", key, i); denied[name] && !r.failed(at) {
			r.failAt(at, "%q stands under deny_servers as well; keep one of them", name)
		}
	}
	for i, id := range p.DenyRooms {
		if at := fmt.Sprintf("%s.deny_rooms[%d]", key, i); !r.failed(at) {
			r.roomID(at, id)
		}
	}
}

// roomID checks the form of a room id. It ends with a server name, but for those
// of room version 12, which are a hash.
func (r *reader) roomID(key, id string) {
	switch {
	case strings.HasPrefix(id, "#"):
		r.failAt(key, "%.300q is an alias, which may come to mean another room; write the room's id, which begins with ! and stands in its settings", id)
	case len(id) < 2 || id[0] != '!':
		r.failAt(key, `%.300q is not the id of a room; write one such as "!abc:b.grid"`, id)
	case len(id) > maxRoomID || strings.ContainsFunc(id, func(c rune) bool { return unicode.IsSpace(c) || !unicode.IsPrint(c) }):
		r.failAt(key, "%.20q... is not the id of a room; it has at most %d printable bytes and no spaces", id, maxRoomID)
	}
}

// complete fills in what was left out.
func (m *Matrix) complete() {
	if m == nil {
		return
	}
	if m.MaxBody == 0 {
		m.MaxBody = defaultMaxBody
	}
	if m.AllowFrom == nil {
		m.AllowFrom = loopback
	}
}

// apply lays these settings over those that are there.
func (p PeerMatrix) apply(to *federation.MatrixPolicy) {
	if p.Servers != nil {
		to.Servers = nil
		add(&to.Servers, p.Servers)
	}
	add(&to.DenyServers, p.DenyServers)
	add(&to.DenyRooms, p.DenyRooms)
	if p.Custody != nil {
		to.Custody = *p.Custody
	}
}

func add(to *map[string]bool, names []string) {
	for _, name := range names {
		if *to == nil {
			*to = map[string]bool{}
		}
		(*to)[name] = true
	}
}
