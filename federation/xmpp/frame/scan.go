package frame

import (
	"errors"
	"unicode/utf8"
)

// state is where in an element the scanner stands between two bytes.
type state uint8

const (
	inText       state = iota
	afterLess          // after '<'
	inName             // within a start tag's name
	wantAttr           // after a start tag's name or an attribute
	inAttrName         //
	wantEquals         // after an attribute's name
	wantQuote          // after '='
	inValue            // within an attribute's value
	wantClose          // after the '/' of an empty-element tag
	inEndTag           // after "</"
	afterEndName       // after an end tag's name
	inCDATA            //
	afterElement       // the top element is complete
	inEndName          // within an end tag's name that is not compared
)

// span is a part of the element at hand, as offsets from its first byte. They
// stay true while the buffer moves.
type span struct{ from, to int32 }

func (s span) of(b []byte) []byte { return b[s.from:s.to] }
func (s span) len() int           { return int(s.to - s.from) }

// name is the name of an element or attribute. The key is its first eight bytes.
type name struct {
	span
	key uint64
}

type attr struct {
	name  name
	value span
}

// scanner finds the end of one top-level element. It may be fed any prefix that
// grows; what it says depends only on the bytes, never on how they were cut.
type scanner struct {
	lim   Limits
	state state
	pos   int // first byte not consumed yet

	quote  byte  // the quotation mark around the value at hand
	seen   uint8 // classes of the bytes of the name at hand
	spaced bool  // white space stood before what may be an attribute
	ref    bool  // a reference stood in the value at hand
	ns     bool  // the tag at hand needs a look at its namespaces

	open   []name // of the open elements
	attrs  []attr // attributes of the tag at hand
	spaces []int  // of these
	bound  []binding
	// ambient are prefixes that the stream header has bound. Only a top-level
	// element that itself has such a prefix may use them: a stanza must stay
	// whole when it moves to another stream.
	ambient []prefix
}

// errShort means that the bytes at hand end within a token that is only taken
// whole. Such tokens are short.
var errShort = errors.New("need more bytes")

func (s *scanner) reset() {
	s.state, s.pos = inText, 0
	s.open, s.attrs, s.bound = s.open[:0], s.attrs[:0], s.bound[:0]
}

// scan consumes b, which starts with the '<' of an element, and returns the
// element's length, or 0 when it is not complete.
func (s *scanner) scan(b []byte) (int, error) { return s.scanTo(b, afterElement) }

// scanTag does the same up to the end of the element's start tag.
func (s *scanner) scanTag(b []byte) (int, error) { return s.scanTo(b, inText) }

func (s *scanner) scanTo(b []byte, until state) (n int, err error) {
	b = b[:min(len(b), s.lim.Stanza)]
	i := s.pos
	for i < len(b) {
		switch s.state {
		case inText:
			if until == afterElement { // plain does not stop at the end of a tag
				i = s.plain(b, i)
			}
			if s.state == inText {
				i, err = s.text(b, i)
			}
		case afterLess:
			i, err = s.markup(b, i)
		case inEndTag, afterEndName:
			i, err = s.endTag(b, i)
		case inCDATA:
			i, err = s.cdata(b, i)
		default:
			i, err = s.startTag(b, i)
		}
		switch {
		case err == errShort:
			s.pos = i
			return 0, s.full(b)
		case err != nil:
			return 0, err
		case s.state == afterElement, s.state == until && i > 1:
			s.pos = i
			return i, nil
		}
	}
	s.pos = i
	return 0, s.full(b)
}

// full refuses an element that has used up its bytes and is not complete.
func (s *scanner) full(b []byte) error {
	if len(b) < s.lim.Stanza {
		return nil
	}
	return refuse(PolicyViolation, "an element is larger than %d bytes", s.lim.Stanza)
}

func (s *scanner) text(b []byte, i int) (int, error) {
	for {
		i = skipText(b, i)
		if i == len(b) {
			return i, nil
		}
		switch c := b[i]; {
		case c == '<':
			s.state = afterLess
			return i + 1, nil
		case class[c]&space != 0:
			i++
		case c == '>':
			if i >= 2 && b[i-1] == ']' && b[i-2] == ']' {
				return i, refuse(NotWellFormed, `"]]>" in text`)
			}
			i++
		default:
			n, err := s.character(b[i:])
			if err != nil {
				return i, err
			}
			i += n
		}
	}
}

func (s *scanner) cdata(b []byte, i int) (int, error) {
	for {
		for i < len(b) && class[b[i]]&stopCDATA == 0 {
			i++
		}
		if i == len(b) {
			return i, nil
		}
		if b[i] == '>' {
			i++
			if i >= len("]]>") && b[i-2] == ']' && b[i-3] == ']' {
				s.state = inText
				return i, nil
			}
			continue
		}
		n, err := s.character(b[i:])
		if err != nil {
			return i, err
		}
		i += n
	}
}

// character consumes a reference or a character beyond ASCII.
func (s *scanner) character(b []byte) (int, error) {
	if b[0] == '&' {
		s.ref = true
		_, n, err := reference(b)
		return n, err
	}
	if b[0] < 0x20 {
		return 0, refuse(NotWellFormed, "control character %#02x", b[0])
	}
	if !utf8.FullRune(b) {
		return 0, errShort
	}
	r, n := utf8.DecodeRune(b)
	switch {
	case r == utf8.RuneError && n == 1:
		return 0, refuse(UnsupportedEncoding, "bytes that are not UTF-8")
	case r == 0xFFFE || r == 0xFFFF:
		return 0, refuse(NotWellFormed, "character %U", r)
	}
	return n, nil
}

// markup decides what a '<' begins.
func (s *scanner) markup(b []byte, i int) (int, error) {
	switch c := b[i]; {
	case class[c]&nameStart != 0:
		if len(s.open) == s.lim.Depth {
			return i, refuse(PolicyViolation, "elements nested deeper than %d", s.lim.Depth)
		}
		s.open = append(s.open, name{span: span{int32(i), int32(i)}})
		s.attrs, s.seen, s.ns = s.attrs[:0], 0, false
		s.state = inName
		return i, nil
	case c == '/':
		s.state = inEndTag
		return i + 1, nil
	}
	return s.noTag(b, i, len(s.open) > 0)
}

// noTag takes what else a '<' may begin within an element, and refuses the rest.
func (s *scanner) noTag(b []byte, i int, within bool) (int, error) {
	switch b[i] {
	case '?':
		return i, refuse(RestrictedXML, "processing instruction")
	case '!':
		return s.declaration(b, i, within)
	}
	return i, refuse(NotWellFormed, "'<' that begins no tag")
}

func (s *scanner) declaration(b []byte, i int, within bool) (int, error) {
	const open = "![CDATA["
	if len(b)-i < 2 {
		return i, errShort
	}
	switch {
	case b[i+1] == '-':
		return i, refuse(RestrictedXML, "comment")
	case b[i+1] != '[':
		return i, refuse(RestrictedXML, "document type declaration")
	case !within:
		return i, refuse(BadFormat, "text between stanzas")
	case len(b)-i < len(open):
		return i, errShort
	case string(b[i:i+len(open)]) != open:
		return i, refuse(NotWellFormed, "'<![' that begins no CDATA section")
	}
	s.state = inCDATA
	return i + len(open), nil
}

// endTag takes "</name" when all of it is there, and then up to '>'.
func (s *scanner) endTag(b []byte, i int) (int, error) {
	if s.state == inEndTag {
		if len(s.open) == 0 {
			return i, refuse(NotWellFormed, "end tag without a start tag")
		}
		start := s.open[len(s.open)-1]
		end := i + start.len()
		if end >= len(b) {
			return i, errShort
		}
		if string(b[i:end]) != string(start.of(b)) {
			return i, refuse(NotWellFormed, "end tag that does not match its start tag")
		}
		i = end
		s.state = afterEndName
	}
	for i < len(b) && class[b[i]]&space != 0 {
		i++
	}
	if i == len(b) {
		return i, nil
	}
	if b[i] != '>' {
		return i, refuse(NotWellFormed, "end tag with more than a name")
	}
	s.pop()
	return i + 1, nil
}

// pop leaves the innermost element.
func (s *scanner) pop() {
	s.open = s.open[:len(s.open)-1]
	s.unbind(len(s.open))
	s.state = inText
	if len(s.open) == 0 {
		s.state = afterElement
	}
}
