package setup

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
)

// Mode is how the homeserver reaches yggate for a peer's server.
type Mode string

const (
	// Proxy: the homeserver asks yggate for every HTTPS connection (CONNECT). New
	// peers need no change.
	Proxy Mode = "proxy"
	// Hosts: the hosts file leads each peer's server name to yggate's listeners. It is
	// for homeservers that cannot use a proxy.
	Hosts Mode = "hosts"
)

// Params is what the fragments depend on.
type Params struct {
	// Servers are the own server names.
	Servers []string
	// CA is the absolute path of the certificate of yggate's local CA.
	CA   string
	Mode Mode
	// Proxy is where yggate takes CONNECT requests. Proxy mode only.
	Proxy netip.AddrPort
	// Listen is where yggate takes TLS connections, of the ports 443 and 8448, on one
	// address. Hosts mode only.
	Listen netip.Addr
	// PeerServers are the peers' server names. Hosts mode, and Conduit.
	PeerServers []string
	// Upstream says that yggate hands what is no peer's to a proxy of the operator's.
	Upstream bool
}

// ProxyMode and HostsMode are for templates.
func (p Params) ProxyMode() bool { return p.Mode == Proxy }

// HostsMode says whether Mode is Hosts.
func (p Params) HostsMode() bool { return p.Mode == Hosts }

// Gateway is the one address of yggate's that the homeserver has to reach.
func (p Params) Gateway() netip.Addr {
	if p.HostsMode() {
		return p.Listen
	}
	return p.Proxy.Addr()
}

// Network is Gateway as a network of one address.
func (p Params) Network() netip.Prefix { return netip.PrefixFrom(p.Gateway(), p.Gateway().BitLen()) }

// PeerHosts are the hosts of the peers' server names, without ports.
func (p Params) PeerHosts() []string {
	var hosts []string
	for _, s := range p.PeerServers {
		host, _, _ := strings.Cut(s, ":")
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// Validate says what is missing or unfit. What passes can be put between double
// quotes in YAML, TOML and a systemd unit as it is.
func (p Params) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(p.Servers) == 0 {
		add("no own Matrix server name")
	}
	for _, s := range slices.Concat(p.Servers, p.PeerServers) {
		if !fitServer(s) {
			add("server name %q: want a host name in lower case, with a port or without", s)
		}
	}
	if !filepath.IsAbs(p.CA) || strings.ContainsFunc(p.CA, unfit) {
		add("path of the local CA %q: want an absolute path without spaces and quotes", p.CA)
	}
	switch p.Mode {
	case Proxy:
		if !fitAddr(p.Proxy.Addr()) || p.Proxy.Port() == 0 {
			add("yggate's proxy %q: want the IP address and port at which it listens (matrix.proxy)", p.Proxy)
		}
	case Hosts:
		switch {
		case !p.Listen.IsValid():
			add("yggate takes no connections but as a proxy: set matrix.listen to an address with the ports 443 and 8448")
		case !fitAddr(p.Listen):
			add("yggate's listener %q: want the IP address at which it listens on the ports 443 and 8448 (matrix.listen)", p.Listen)
		}
		if len(p.PeerServers) == 0 {
			add("no server name of a peer yet: mode %q lists each of them", Hosts)
		}
	default:
		add("mode %q: want %q or %q", p.Mode, Proxy, Hosts)
	}
	return errors.Join(errs...)
}

func fitServer(s string) bool {
	return s != "" && len(s) <= 255 && s == strings.ToLower(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return unfit(r) || strings.ContainsRune("/@;#,(){}[]<>*", r)
	})
}

func fitAddr(a netip.Addr) bool { return a.IsValid() && !a.IsUnspecified() && a.Zone() == "" }

func unfit(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || !unicode.IsPrint(r) || strings.ContainsRune("\"'\\`$%", r)
}
