package ygg

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// defaultMaxBackoff stands in for core's own limit of 68 minutes, after which
// a peer that was away for a night would be away for another hour.
const defaultMaxBackoff = 10 * time.Second

// The least maxbackoff and the longest password that core takes.
const (
	leastMaxBackoff = 5 * time.Second
	longestPassword = 64
)

var (
	peerSchemes   = []string{"tcp", "tls", "quic", "ws", "wss", "unix", "socks", "sockstls"}
	listenSchemes = []string{"tcp", "tls", "quic", "ws", "unix"}
	peerOptions   = []string{"key", "priority", "password", "maxbackoff", "sni"}
	listenOptions = []string{"priority", "password", "origin"}
)

// parsePeer reads a URI to dial and sets maxbackoff where it does not.
func parsePeer(uri string) (*url.URL, error) {
	u, err := parseURI(uri, peerSchemes, peerOptions)
	if err != nil {
		return nil, fmt.Errorf("peer %q: %w", redact(uri), err)
	}
	q := u.Query()
	if !q.Has("maxbackoff") {
		q.Set("maxbackoff", defaultMaxBackoff.String())
		u.RawQuery = q.Encode()
	}
	return u, nil
}

// parseListen reads a URI to listen on.
func parseListen(uri string) (*url.URL, error) {
	if scheme, _, ok := strings.Cut(uri, "://"); ok && strings.EqualFold(scheme, "wss") {
		return nil, fmt.Errorf("listen %q: wss is not offered; listen on ws behind a reverse proxy that ends TLS", redact(uri))
	}
	u, err := parseURI(uri, listenSchemes, listenOptions)
	if err != nil {
		return nil, fmt.Errorf("listen %q: %w", redact(uri), err)
	}
	return u, nil
}

func parseURI(uri string, schemes, options []string) (*url.URL, error) {
	u, err := url.Parse(uri)
	if err != nil {
		// url.Error repeats the URI, which may hold a password.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("not a URI: %w; want SCHEME://HOST:PORT", err)
	}
	if !slices.Contains(schemes, u.Scheme) {
		return nil, fmt.Errorf("unknown scheme %q; want one of %s, as in tls://host.example:443", u.Scheme, strings.Join(schemes, ", "))
	}
	if err := checkTarget(u); err != nil {
		return nil, err
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("options after '?': %w", err)
	}
	u.ForceQuery = false // a lone '?' makes no other peering
	return u, checkOptions(q, options)
}

// checkTarget looks at what stands between the scheme and the options.
func checkTarget(u *url.URL) error {
	switch u.Scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return errors.New("a unix socket needs an absolute path: unix:///run/yggdrasil/peer.sock")
		}
		return nil
	case "socks", "sockstls":
		if err := checkHostPort(strings.Trim(u.Path, "/")); err != nil {
			return fmt.Errorf("behind the proxy: %w; want %s://PROXY:PORT/HOST:PORT", err, u.Scheme)
		}
	}
	return checkHostPort(u.Host)
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT (an IPv6 address goes in brackets: [2001:db8::1]:443)", s)
	}
	if host == "" {
		return fmt.Errorf("%q names no host", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q: want a number up to 65535", port)
	} else if n == 0 {
		return errors.New("port 0 cannot be dialled or announced; name one")
	}
	return nil
}

func checkOptions(q url.Values, known []string) error {
	for name, values := range q {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown option %q; known here: %s", name, strings.Join(known, ", "))
		}
		for _, v := range values {
			if err := checkOption(name, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOption(name, v string) error {
	switch name {
	case "key":
		// core pads a short key with zeros and then pins nobody.
		if b, err := hex.DecodeString(v); err != nil || len(b) != len(publicKey{}) {
			return fmt.Errorf("option key=%q: want the 64 hex digits of the peer's public key", v)
		}
	case "priority":
		if _, err := strconv.ParseUint(v, 10, 8); err != nil {
			return fmt.Errorf("option priority=%q: want 0 to 255", v)
		}
	case "password":
		if v == "" || len(v) > longestPassword {
			return fmt.Errorf("option password: %d bytes, want 1 to %d", len(v), longestPassword)
		}
	case "maxbackoff":
		if d, err := time.ParseDuration(v); err != nil || d < leastMaxBackoff {
			return fmt.Errorf("option maxbackoff=%q: want a duration of at least %v, such as 30s", v, leastMaxBackoff)
		}
	}
	return nil
}

// PeeringID is what a node tells peerings apart by: the URI without its options. What
// is no URI of a peering is returned as it is.
func PeeringID(uri string) string {
	u, err := parsePeer(uri)
	if err != nil {
		return uri
	}
	return peeringID(u)
}

// peeringID is what core tells peerings apart by: the URI without its options.
func peeringID(u *url.URL) string {
	v := *u
	v.RawQuery = ""
	return v.String()
}

// redact makes a URI fit for logs and status: no password, no options.
func redact(uri string) string {
	uri, _, _ = strings.Cut(uri, "?")
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok {
		return uri
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = rest[i+1:]
	}
	return scheme + "://" + rest
}
