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

// Mode is how the local server finds yggate for a peer's domain.
type Mode string

const (
	// DNS: the server asks yggate's DNS responder. New peers need no change.
	DNS Mode = "dns"
	// Hosts: the hosts file names every peer domain. Needs no DNS responder.
	Hosts Mode = "hosts"
)

// Params is what the fragments depend on.
type Params struct {
	// Domains are the server's own virtual hosts that federate through yggate,
	// MUC the host names of its group chat and other services.
	Domains, MUC []string
	// Cert is the absolute path of a PEM file with key, certificate and chain,
	// which yggate issues for Domains and MUC; CA that of yggate's local CA.
	Cert, CA string
	// Gateway is where yggate listens for s2s streams of the local server. The
	// port has to be 5269 in Hosts mode, since a hosts file has none.
	Gateway netip.AddrPort
	Mode    Mode
	// DNS is yggate's DNS responder. DNS mode only.
	DNS netip.AddrPort
	// PeerDomains are the peers' XMPP and MUC domains. Hosts mode only.
	PeerDomains []string
	// Isolated, in Hosts mode, is for a server that speaks to grid peers only:
	// it then asks no DNS at all. (ejabberd's guide shows that as an optional
	// fragment in any case.)
	Isolated bool
}

// DNSMode and HostsMode are for templates.
func (p Params) DNSMode() bool { return p.Mode == DNS }

// HostsMode says whether Mode is Hosts.
func (p Params) HostsMode() bool { return p.Mode == Hosts }

// LocalZone is the special-use top level (RFC 6761, RFC 8375) of an own domain
// that libunbound would answer itself, or empty.
func (p Params) LocalZone() string {
	for _, zone := range []string{"test", "home.arpa", "onion", "invalid"} {
		for _, d := range p.Domains {
			if strings.HasSuffix(d, "."+zone) {
				return zone
			}
		}
	}
	return ""
}

// Detached returns the services that are not one label below one of Domains.
func (p Params) Detached() []string {
	return slices.DeleteFunc(slices.Clone(p.MUC), func(service string) bool {
		_, parent, _ := strings.Cut(service, ".")
		return slices.Contains(p.Domains, parent)
	})
}

// Validate says what is missing or unfit. What passes can be put between double
// quotes in YAML, Lua and Erlang as it is.
func (p Params) Validate() error {
	var errs []error
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(p.Domains) == 0 {
		add("no own XMPP domain")
	}
	for _, list := range [][]string{p.Domains, p.MUC, p.PeerDomains} {
		for _, d := range list {
			if !fitDomain(d) {
				add("domain %q: want a host name in lower case", d)
			}
		}
	}
	for _, f := range [][2]string{{"certificate", p.Cert}, {"local CA", p.CA}} {
		if !filepath.IsAbs(f[1]) || strings.ContainsFunc(f[1], unfit) {
			add("path of the %s %q: want an absolute path without spaces and quotes", f[0], f[1])
		}
	}
	if !fitListen(p.Gateway) {
		add("gateway's s2s address %q: want the IP address and port at which yggate listens", p.Gateway)
	}
	switch p.Mode {
	case DNS:
		if !fitListen(p.DNS) {
			add("DNS responder %q: want the IP address and port at which yggate listens", p.DNS)
		}
	case Hosts:
		if p.Gateway.Port() != 5269 {
			add("gateway's s2s address %q: a hosts file carries no port, so it has to be 5269; or use mode %q", p.Gateway, DNS)
		}
		if len(p.PeerDomains) == 0 {
			add("no peer domain yet: mode %q lists each of them", Hosts)
		}
	default:
		add("mode %q: want %q or %q", p.Mode, DNS, Hosts)
	}
	return errors.Join(errs...)
}

func fitDomain(d string) bool {
	return d != "" && len(d) <= 255 && d == strings.ToLower(d) && !strings.ContainsFunc(d, func(r rune) bool {
		return unfit(r) || strings.ContainsRune("/@:;#,(){}[]<>", r)
	})
}

func fitListen(a netip.AddrPort) bool {
	return a.IsValid() && !a.Addr().IsUnspecified() && a.Addr().Zone() == "" && a.Port() != 0
}

func unfit(r rune) bool {
	return unicode.IsSpace(r) || unicode.IsControl(r) || !unicode.IsPrint(r) || strings.ContainsRune("\"'\\`$", r)
}
