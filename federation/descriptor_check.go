package federation

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/yggate/yggate/transports"
)

// check judges what a signed descriptor says, member by member.
func (d *Descriptor) check(now time.Time) error {
	if id, err := ParseGridID(string(d.Grid)); err != nil {
		return err
	} else if id != d.Grid {
		return fmt.Errorf("grid id %q is not in lower case", d.Grid)
	}
	if d.Rot != len(d.Past) || d.Rot > MaxRotations {
		return fmt.Errorf("rot %d with %d past keys, at most %d are allowed", d.Rot, len(d.Past), MaxRotations)
	}
	if err := verifyHistory(d.Grid, d.Past, ed25519.PublicKey(d.Key)); err != nil {
		return err
	}
	if d.Next == (Hash{}) {
		return errors.New("no next")
	}
	if d.Seq > 1<<62 {
		return errors.New("seq is out of range")
	}
	if ahead := time.Unix(d.Issued, 0).Sub(now); d.Issued < 0 || ahead > maxClockAhead {
		return fmt.Errorf("issued at %d, it is %d here; compare the clocks of both sides", d.Issued, now.Unix())
	}
	if d.Expires < d.Issued {
		return errors.New("expires before it was issued")
	}
	if err := CheckGridName(d.Name); err != nil {
		return err
	}
	if err := checkNodes(d.Nodes); err != nil {
		return err
	}
	if len(d.Revoked) > maxRevoked {
		return fmt.Errorf("%d revoked nodes, at most %d are allowed", len(d.Revoked), maxRevoked)
	}
	return d.checkServices()
}

func (d *Descriptor) checkServices() error {
	if x := d.XMPP; x != nil {
		if err := checkClaims(XMPP, x.Domains); err != nil {
			return err
		}
		if x.MaxStanza < 0 || x.MaxStanza > 1<<30 {
			return fmt.Errorf("xmpp: max_stanza %d is out of range", x.MaxStanza)
		}
	}
	if m := d.Matrix; m != nil {
		if err := checkClaims(Matrix, m.ServerNames); err != nil {
			return err
		}
	}
	if m := d.MQTT; m != nil {
		return checkPrefixes(m.Prefixes)
	}
	return nil
}

// CheckGridName checks what a grid calls itself.
func CheckGridName(name string) error {
	if utf8.RuneCountInString(name) > maxGridName {
		return fmt.Errorf("name: want at most %d characters", maxGridName)
	}
	if err := CheckText(name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	return nil
}

// CheckText checks a text from another grid that is shown on terminals and in
// logs: it must hold nothing that could act there.
func CheckText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("not UTF-8")
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%.80q: %U cannot be printed", s, r)
		}
	}
	return nil
}

func checkNodes(nodes []Node) error {
	if len(nodes) == 0 || len(nodes) > maxNodes {
		return fmt.Errorf("%d nodes, want 1 to %d", len(nodes), maxNodes)
	}
	seen := map[string]bool{}
	for _, n := range nodes {
		if n.ID == "" || len(n.ID) > 32 || !printableASCII(n.ID) || seen["id:"+n.ID] {
			return fmt.Errorf("node %.40q: want a name of its own, 1 to 32 printable ASCII characters", n.ID)
		}
		seen["id:"+n.ID] = true
		if len(n.Addrs) == 0 || len(n.Addrs) > maxAddrs {
			return fmt.Errorf("node %q: %d addresses, want 1 to %d", n.ID, len(n.Addrs), maxAddrs)
		}
		for _, a := range n.Addrs {
			if err := CheckNodeAddr(a); err != nil {
				return fmt.Errorf("node %q: %w", n.ID, err)
			}
			if seen[a] {
				return fmt.Errorf("node %q: address %s occurs twice", n.ID, a)
			}
			seen[a] = true
		}
	}
	return nil
}

// CheckNodeAddr checks a node address in the form of transports.Addr.ID. Those of
// networks that this version does not know must at least be harmless text.
func CheckNodeAddr(id string) error {
	addr, err := transports.ParseID(id)
	if err != nil {
		return err
	}
	ok := len(id) <= 128 && printableASCII(id)
	switch addr.Net {
	case "ygg":
		raw, err := hex.DecodeString(addr.Node)
		ok = err == nil && len(raw) == ed25519.PublicKeySize && addr.Node == strings.ToLower(addr.Node)
	case "tcp":
		ip, err := netip.ParseAddr(addr.Node)
		ok = err == nil && ip.String() == addr.Node
	case "grid":
		ok = false // is the other name in leaves
	}
	if !ok {
		return fmt.Errorf("node address %.140q: not in the form of its network", id)
	}
	return nil
}

func checkClaims(proto Protocol, names []string) error {
	if len(names) == 0 || len(names) > maxClaims {
		return fmt.Errorf("%s: %d domains, want 1 to %d, or leave the protocol out", proto, len(names), maxClaims)
	}
	seen := map[string]bool{}
	for _, name := range names {
		norm, err := NormalizeClaim(proto, name)
		if err != nil {
			return fmt.Errorf("%s: %w", proto, err)
		}
		if norm != name {
			return fmt.Errorf("%s: domain %.260q must be written %q", proto, name, norm)
		}
		if seen[name] {
			return fmt.Errorf("%s: domain %q occurs twice", proto, name)
		}
		seen[name] = true
	}
	return nil
}

func checkPrefixes(prefixes []string) error {
	if len(prefixes) == 0 || len(prefixes) > maxClaims {
		return fmt.Errorf("mqtt: %d prefixes, want 1 to %d, or leave the protocol out", len(prefixes), maxClaims)
	}
	for _, p := range prefixes {
		if len(p) < 2 || len(p) > 256 || !strings.HasSuffix(p, "/") || strings.HasPrefix(p, "$") ||
			strings.ContainsAny(p, "+#\x00") || !utf8.ValidString(p) {
			return fmt.Errorf("mqtt: prefix %.260q: want a topic that ends in \"/\", without wildcards", p)
		}
	}
	return nil
}

func printableASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// DecodeJSON decodes one JSON object into v after checking what encoding/json
// leaves open: depth, trailing data, and member names, which must occur once and
// be of a-z, 0-9 and "_" (encoding/json would also take "GRID" for "grid", and the
// last of several). Unknown members are ignored.
func DecodeJSON(raw []byte, v any) error {
	if !utf8.Valid(raw) {
		return errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	tok, err := dec.Token()
	if err != nil {
		return jsonError(err)
	}
	if tok != json.Delim('{') {
		return errors.New("want a JSON object")
	}
	if err := checkObject(dec, 1); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON object")
	}
	return json.Unmarshal(raw, v)
}

func checkObject(dec *json.Decoder, depth int) error {
	seen := map[string]bool{}
	for {
		tok, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		if tok == json.Delim('}') {
			return nil
		}
		name := tok.(string) // the decoder lets nothing else stand here
		if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			return fmt.Errorf("member %.40q: names are of a-z, 0-9 and _", name)
		}
		if seen[name] {
			return fmt.Errorf("member %.40q occurs twice", name)
		}
		seen[name] = true
		if tok, err = dec.Token(); err != nil {
			return jsonError(err)
		}
		if err := checkValue(dec, tok, depth); err != nil {
			return err
		}
	}
}

func checkValue(dec *json.Decoder, tok json.Token, depth int) error {
	if tok != json.Delim('{') && tok != json.Delim('[') {
		return nil
	}
	if depth++; depth > maxDepth {
		return fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if tok == json.Delim('{') {
		return checkObject(dec, depth)
	}
	for {
		tok, err := dec.Token()
		if err != nil {
			return jsonError(err)
		}
		if tok == json.Delim(']') {
			return nil
		}
		if err := checkValue(dec, tok, depth); err != nil {
			return err
		}
	}
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the JSON ends early")
	}
	return err
}
