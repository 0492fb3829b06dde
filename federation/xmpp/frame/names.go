package frame

import (
	"bytes"
	"encoding/xml"
	"hash/maphash"
	"slices"
	"unicode/utf8"
)

const (
	xmlURI   = "http://www.w3.org/XML/1998/namespace"
	xmlnsURI = "http://www.w3.org/2000/xmlns/"
	// maxBound is how many prefixes may be bound at one place. Every use of a
	// prefix is looked up among them.
	maxBound = 64
)

// binding is a prefix bound by an open element.
type binding struct {
	prefix, uri span
	depth       int
	sum         uint64 // of the namespace, so that long ones are seldom compared
	// same is the first binding in force for this namespace: namespaces are compared
	// once, where they are bound, and not each time that a prefix is used.
	same int
}

var sumSeed = maphash.MakeSeed()

// prefix is what a stream header binds.
type prefix struct{ name, uri string }

// checkName refuses what is not a qualified name (Namespaces in XML 1.0 §4).
// It is only asked about names that hold a colon or bytes beyond ASCII.
func checkName(name []byte) error {
	if !utf8.Valid(name) {
		return refuse(UnsupportedEncoding, "bytes that are not UTF-8")
	}
	prefix, local, prefixed := bytes.Cut(name, []byte(":"))
	parts := [][]byte{prefix, local}
	if !prefixed {
		parts = parts[:1]
	}
	for _, part := range parts {
		if len(part) == 0 || class[part[0]]&nameStart == 0 || bytes.IndexByte(part, ':') >= 0 || !isName(part) {
			return refuse(NotWellFormed, "name that is not a qualified XML name")
		}
	}
	return nil
}

// isName leaves the tables of characters to encoding/xml: such names are rare.
func isName(part []byte) bool {
	for _, c := range part {
		if c >= utf8.RuneSelf {
			tag := append(append([]byte{'<'}, part...), '/', '>')
			_, err := xml.NewDecoder(bytes.NewReader(tag)).RawToken()
			return err == nil
		}
	}
	return true
}

// cutName splits a qualified name.
func cutName(name []byte) (prefix, local []byte) {
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		return name[:i], name[i+1:]
	}
	return nil, name
}

// namespaces checks the complete start tag at hand: what it binds, that what it
// uses is bound, and that no two attributes are one after expansion.
func (s *scanner) namespaces(b []byte) error {
	for _, a := range s.attrs {
		if err := s.declare(b, a); err != nil {
			return err
		}
	}
	el := s.open[len(s.open)-1]
	if prefix, _ := cutName(el.of(b)); prefix != nil {
		if _, ok := s.lookup(b, prefix); !ok {
			return s.unbound(prefix, "element")
		}
	}
	s.spaces = s.spaces[:0]
	for i, a := range s.attrs {
		prefix, local := cutName(a.name.of(b))
		space := noSpace
		if prefix != nil && string(prefix) != "xmlns" && string(prefix) != "xml" {
			var ok bool
			if space, ok = s.lookup(b, prefix); !ok {
				return s.unbound(prefix, "attribute")
			}
		}
		s.spaces = append(s.spaces, space)
		if space == noSpace {
			continue
		}
		for j, other := range s.spaces[:i] {
			if other != space {
				continue
			}
			if _, l := cutName(s.attrs[j].name.of(b)); bytes.Equal(l, local) {
				return refuse(NotWellFormed, "attribute given twice under two prefixes")
			}
		}
	}
	return nil
}

// unbound refuses a prefix that the element at hand does not bind. That of a stream's
// header is well-formed, so that a user of the server can send it; an element that uses
// it does not stay whole when it moves to another stream.
func (s *scanner) unbound(prefix []byte, what string) error {
	if s.isAmbient(prefix) != nil {
		return refuse(PolicyViolation, "%s name with a prefix that only the stream's header binds", what)
	}
	return refuse(NotWellFormed, "%s name with a prefix that is not bound", what)
}

// declare takes note of an attribute that binds a namespace.
func (s *scanner) declare(b []byte, a attr) error {
	prefix, local := cutName(a.name.of(b))
	isDefault := prefix == nil && string(local) == "xmlns"
	if !isDefault && string(prefix) != "xmlns" {
		return nil
	}
	uri := unescape(a.value.of(b))
	switch {
	case bytes.ContainsAny(uri, "\t\n\r"):
		// Parsers join name and local name by such a character.
		return refuse(NotWellFormed, "namespace name with a control character")
	case string(uri) == xmlnsURI, string(local) == "xmlns" && !isDefault,
		(string(uri) == xmlURI) != (string(local) == "xml"):
		return refuse(NotWellFormed, "reserved namespace bound")
	case isDefault:
		return nil
	case len(uri) == 0:
		return refuse(NotWellFormed, "prefix bound to no namespace")
	case len(s.bound) == maxBound:
		return refuse(PolicyViolation, "more than %d namespace prefixes bound", maxBound)
	}
	from := a.name.to - int32(len(local))
	s.bound = append(s.bound, binding{
		prefix: span{from, a.name.to}, uri: a.value, depth: len(s.open),
		sum: maphash.Bytes(sumSeed, uri), same: s.boundTo(b, uri),
	})
	return nil
}

// boundTo is the first binding for a namespace, or the next if there is none.
func (s *scanner) boundTo(b, uri []byte) int {
	sum := maphash.Bytes(sumSeed, uri)
	for i := range s.bound {
		if o := &s.bound[i]; o.sum == sum && bytes.Equal(unescape(o.uri.of(b)), uri) {
			return i
		}
	}
	return len(s.bound)
}

// noSpace is the number of what is in no namespace, and of that of "xml", which only
// this prefix has.
const noSpace = -1

// lookup returns the namespace that a prefix is bound to, as a number that no other
// namespace has within the tag.
func (s *scanner) lookup(b, prefix []byte) (space int, ok bool) {
	for i := len(s.bound) - 1; i >= 0; i-- {
		if bytes.Equal(s.bound[i].prefix.of(b), prefix) {
			return s.bound[i].same, true
		}
	}
	if string(prefix) == "xml" {
		return noSpace, true
	}
	if top, _ := cutName(s.open[0].of(b)); top != nil && s.isAmbient(top) != nil {
		if p := s.isAmbient(prefix); p != nil {
			return s.ambientSpace(b, p.uri), true
		}
	}
	return noSpace, false
}

// ambientSpace is the number of a namespace that the header binds, which an open
// element may bind, too.
func (s *scanner) ambientSpace(b []byte, uri string) int {
	if i := s.boundTo(b, []byte(uri)); i < len(s.bound) {
		return i
	}
	return maxBound + slices.IndexFunc(s.ambient, func(p prefix) bool { return p.uri == uri })
}

func (s *scanner) isAmbient(name []byte) *prefix {
	for i := range s.ambient {
		if s.ambient[i].name == string(name) {
			return &s.ambient[i]
		}
	}
	return nil
}

// unbind forgets what elements deeper than depth have bound.
func (s *scanner) unbind(depth int) {
	for len(s.bound) > 0 && s.bound[len(s.bound)-1].depth > depth {
		s.bound = s.bound[:len(s.bound)-1]
	}
}
