package federation

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxDomain is the longest domain name in text, RFC 1035 §2.3.4 less the length
// bytes of the wire form; RFC 7622 §3.2 would allow more than DNS can carry.
const maxDomain = 253

// NormalizeDomain returns the one form in which yggate compares domains: ASCII
// (A-labels), lower case, no trailing dot. It takes the domainpart of RFC 7622
// §3.2 in any spelling, but no IP literal, because an address is no name that a
// grid could own.
func NormalizeDomain(domain string) (string, error) {
	if canonical(domain) {
		return domain, nil
	}
	if len(domain) > 1023 { // RFC 7622 §3.2, in bytes; keeps IDNA's work bounded
		return "", fmt.Errorf("domain %.40q...: %d bytes is too long", domain, len(domain))
	}
	if !utf8.ValidString(domain) {
		return "", fmt.Errorf("domain %.260q: not UTF-8", domain)
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(domain, "."))
	if err != nil {
		return "", fmt.Errorf("domain %.260q: %w", domain, err)
	}
	if err := checkHostname(ascii); err != nil {
		return "", fmt.Errorf("domain %.260q: %w", domain, err)
	}
	return ascii, nil
}

// CanonicalDomain says, without allocating, that b is already what
// NormalizeDomain would return. False means only that NormalizeDomain must be
// asked: names with an A-label are canonical too, if IDNA says so.
func CanonicalDomain(b []byte) bool { return canonical(b) }

func canonical[T string | []byte](s T) bool {
	if len(s) == 0 || len(s) > maxDomain {
		return false
	}
	start, numeric := 0, true
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			c := s[i]
			switch {
			case c >= '0' && c <= '9':
			case c >= 'a' && c <= 'z', c == '-':
				numeric = false
			default:
				return false
			}
			continue
		}
		n := i - start
		if n == 0 || n > 63 || s[start] == '-' || s[i-1] == '-' {
			return false
		}
		if n >= 4 && s[start+2] == '-' && s[start+3] == '-' {
			return false // an A-label, or reserved
		}
		if i < len(s) {
			start, numeric = i+1, true
		}
	}
	return !numeric // a last label of digits alone is an IPv4 address
}

// checkHostname checks what IDNA leaves to its caller.
func checkHostname(ascii string) error {
	if ascii == "" {
		return errors.New("is empty")
	}
	if len(ascii) > maxDomain {
		return fmt.Errorf("%d bytes in ASCII form, at most %d are possible", len(ascii), maxDomain)
	}
	labels := strings.Split(ascii, ".")
	for _, l := range labels {
		if l == "" {
			return errors.New("has an empty label")
		}
		if len(l) > 63 {
			return fmt.Errorf("label %q is longer than 63 bytes", l)
		}
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return errors.New("an IP address is no domain; use a name")
	}
	return nil
}

// IsSubdomain says whether domain is parent or below it. Both must be normalised.
func IsSubdomain(domain, parent string) bool {
	return domain == parent || strings.HasSuffix(domain, "."+parent)
}

// NormalizeClaim returns the one form of a domain that is claimed for a protocol:
// a domain for XMPP, a server name, which may have a port, for Matrix.
func NormalizeClaim(proto Protocol, name string) (string, error) {
	switch proto {
	case XMPP:
		return NormalizeDomain(name)
	case Matrix:
		host, port, hasPort := strings.Cut(name, ":")
		domain, err := NormalizeDomain(host)
		if err != nil || !hasPort {
			return domain, err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
			return "", fmt.Errorf("server name %.260q: port %.10q is no number from 1 to 65535", name, port)
		}
		return domain + ":" + port, nil
	}
	return "", fmt.Errorf("protocol %q has no domains to claim", proto)
}

// NormalizeExpected returns the one form of what an operator expects a peer to
// claim: a domain, or a Matrix server name with a port.
func NormalizeExpected(name string) (string, error) {
	if strings.Contains(name, ":") {
		return NormalizeClaim(Matrix, name)
	}
	return NormalizeDomain(name)
}

// isExpected says whether a claim is what an operator expects. A domain covers
// itself and what lies below it, for every protocol and with any port; a server
// name with a port covers itself.
func (c Claim) isExpected(expected string) bool {
	host, _, _ := strings.Cut(c.Domain, ":")
	return c.Domain == expected || IsSubdomain(host, expected)
}
