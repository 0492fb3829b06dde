// Package frame finds the stanzas in an XMPP stream at wire speed, and refuses
// what must never reach an XML parser.
//
// A Reader turns the bytes of one stream direction into whole stanzas without
// building a tree. What it yields is well-formed XML within Limits: names match
// and are bound to a namespace, attributes are unique, text is valid UTF-8 of
// XML 1.0 characters, and none of what RFC 6120 §11.1 restricts is in it. So a
// stanza that one server sent can be written into the stream of another and
// cannot break it. Check asks the same of a single stanza that came by another
// way. ParseTop reads what policy needs from the first tag; only the small
// elements of the handshake are ever decoded (Reader.Element).
package frame

import (
	"errors"
	"fmt"
)

// Limits bound what one element may be. They are checked while bytes arrive,
// before anything is decoded. A zero field means its default.
type Limits struct {
	Stanza int // bytes of one top-level element; default 262144
	Depth  int // nested elements, the stanza itself included; default 64
	Attrs  int // attributes of one element; default 64
	// Skip is how many bytes an element may have in all for a Reader to read over it
	// when it is beyond the other limits, which it says by a Skipped; zero: such an
	// element ends the stream, as all else does that is refused.
	Skip int
	// Total is how many bytes may be consumed under these limits in all; zero
	// means any number. It bounds a handshake.
	Total int
}

// DefaultLimits are what a stream of stanzas gets.
func DefaultLimits() Limits { return Limits{}.orDefault() }

// HandshakeLimits are for a peer that has not shown who it is.
func HandshakeLimits() Limits {
	return Limits{Stanza: 16 << 10, Depth: 16, Attrs: 32, Total: 64 << 10}
}

func (l Limits) orDefault() Limits {
	if l.Stanza <= 0 {
		l.Stanza = 256 << 10
	}
	if l.Depth <= 0 {
		l.Depth = 64
	}
	if l.Attrs <= 0 {
		l.Attrs = 64
	}
	return l
}

// Condition is a stream error condition of RFC 6120 §4.9.3.
type Condition string

// The conditions that an Error of this package carries.
const (
	// BadFormat is for text where only elements may stand.
	BadFormat Condition = "bad-format"
	// InvalidNamespace is for a header or stanza in a foreign namespace.
	InvalidNamespace Condition = "invalid-namespace"
	// NotWellFormed is for what is not XML with namespaces.
	NotWellFormed Condition = "not-well-formed"
	// PolicyViolation is for what goes beyond Limits, or could not go on to another
	// stream.
	PolicyViolation Condition = "policy-violation"
	// RestrictedXML is for comments, processing instructions, DTDs and entity
	// references (RFC 6120 §11.1).
	RestrictedXML Condition = "restricted-xml"
	// UnsupportedEncoding is for bytes that are not UTF-8.
	UnsupportedEncoding Condition = "unsupported-encoding"
)

// Error says why a stream or stanza is refused, in a form that can be told to
// whoever sent it.
type Error struct {
	Condition Condition
	Text      string // for people; never holds what was received
}

func (e *Error) Error() string { return string(e.Condition) + ": " + e.Text }

// XML is the stream error to send before the stream is closed, for streams that
// bind the prefix "stream" as all do.
func (e *Error) XML() []byte {
	b := []byte("<stream:error><")
	b = append(b, e.Condition...)
	b = append(b, " xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>"...)
	b = AppendEscaped(b, []byte(e.Text))
	return append(b, "</text></stream:error>"...)
}

func refuse(c Condition, format string, args ...any) error {
	return &Error{c, fmt.Sprintf(format, args...)}
}

// ErrStreamClosed is returned after the closing tag of the stream: the far end
// has said all it had to say (RFC 6120 §4.4).
var ErrStreamClosed = errors.New("the stream was closed by its closing tag")
