package frame

import "encoding/binary"

// startTag goes on in a start tag.
func (s *scanner) startTag(b []byte, i int) (int, error) {
	for i < len(b) {
		var err error
		switch s.state {
		case inName:
			i, err = s.elementName(b, i)
		case wantAttr:
			i, err = s.nextAttr(b, i)
		case inAttrName:
			i, err = s.attrName(b, i)
		case wantEquals:
			i, err = s.expect(b, i, '=', wantQuote, "attribute without '='")
		case wantQuote:
			i, err = s.openQuote(b, i)
		case inValue:
			i, err = s.attrValue(b, i)
		case wantClose:
			if b[i] != '>' {
				return i, refuse(NotWellFormed, "'/' in a tag that '>' does not follow")
			}
			if err := s.endStartTag(b); err != nil {
				return i, err
			}
			s.pop()
			return i + 1, nil
		default:
			return i, nil
		}
		if err != nil {
			return i, err
		}
	}
	return i, nil
}

// name goes on in a name and says whether its end is seen.
func (s *scanner) name(b []byte, i int) (int, bool) {
	seen := s.seen
	if len(b)-i >= wordSize {
		i += first(^lower(word(b, i)) & highs)
	}
	for i < len(b) {
		c := class[b[i]]
		if c&nameByte == 0 {
			s.seen = seen
			return i, true
		}
		seen |= c
		i++
	}
	s.seen = seen
	return i, false
}

func (s *scanner) elementName(b []byte, i int) (int, error) {
	i, ended := s.name(b, i)
	if !ended {
		return i, nil
	}
	el := &s.open[len(s.open)-1]
	el.to = int32(i)
	el.key = keyOf(el.of(b))
	if s.seen&odd != 0 {
		if err := checkName(el.of(b)); err != nil {
			return i, err
		}
		s.ns = true
	}
	s.state, s.spaced = wantAttr, false
	return i, nil
}

// nextAttr finds an attribute or the end of the tag.
func (s *scanner) nextAttr(b []byte, i int) (int, error) {
	if !s.spaced {
		i = s.plainAttrs(b, i)
	}
	for i < len(b) && class[b[i]]&space != 0 {
		s.spaced = true
		i++
	}
	if i == len(b) {
		return i, nil
	}
	switch c := b[i]; {
	case c == '>':
		s.state = inText
		return i + 1, s.endStartTag(b)
	case c == '/':
		s.state = wantClose
		return i + 1, nil
	case class[c]&nameStart == 0:
		return i, refuse(NotWellFormed, "tag with more than a name and attributes")
	case !s.spaced:
		return i, refuse(NotWellFormed, "no white space before an attribute")
	case len(s.attrs) == s.lim.Attrs:
		return i, refuse(PolicyViolation, "more than %d attributes", s.lim.Attrs)
	}
	s.attrs = append(s.attrs, attr{name: name{span: span{int32(i), int32(i)}}})
	s.state, s.seen = inAttrName, 0
	return i, nil
}

func (s *scanner) attrName(b []byte, i int) (int, error) {
	i, ended := s.name(b, i)
	if !ended {
		return i, nil
	}
	a := &s.attrs[len(s.attrs)-1]
	a.name.to = int32(i)
	text := a.name.of(b)
	a.name.key = keyOf(text)
	if s.seen&odd != 0 && string(text) != "xml:lang" {
		if err := checkName(text); err != nil {
			return i, err
		}
		s.ns = true
	}
	for _, other := range s.attrs[:len(s.attrs)-1] {
		if other.name.key == a.name.key && string(other.name.of(b)) == string(text) {
			return i, refuse(NotWellFormed, "attribute given twice")
		}
	}
	s.state = wantEquals
	return i, nil
}

func keyOf(text []byte) uint64 {
	var first [wordSize]byte
	copy(first[:], text)
	return binary.LittleEndian.Uint64(first[:])
}

// expect skips white space and consumes c.
func (s *scanner) expect(b []byte, i int, c byte, next state, otherwise string) (int, error) {
	for i < len(b) && class[b[i]]&space != 0 {
		i++
	}
	if i == len(b) {
		return i, nil
	}
	if b[i] != c {
		return i, refuse(NotWellFormed, "%s", otherwise)
	}
	s.state = next
	return i + 1, nil
}

func (s *scanner) openQuote(b []byte, i int) (int, error) {
	for i < len(b) && class[b[i]]&space != 0 {
		i++
	}
	if i == len(b) {
		return i, nil
	}
	if b[i] != '\'' && b[i] != '"' {
		return i, refuse(NotWellFormed, "attribute value without quotation marks")
	}
	s.quote, s.ref, s.state = b[i], false, inValue
	i++
	s.attrs[len(s.attrs)-1].value = span{int32(i), int32(i)}
	return i, nil
}

func (s *scanner) attrValue(b []byte, i int) (int, error) {
	i, err := s.quoted(b, i)
	if err != nil || i == len(b) {
		return i, err
	}
	a := &s.attrs[len(s.attrs)-1]
	a.value.to = int32(i)
	if a.name.key == xmlnsKey && (s.ref || mayBeReserved(a.value.len())) {
		s.ns = true
	}
	s.state, s.spaced = wantAttr, false
	return i + 1, nil
}

// quoted consumes an attribute's value up to the quotation mark that ends it.
func (s *scanner) quoted(b []byte, i int) (int, error) {
	for {
		i = skipValue(b, i, s.quote)
		if i == len(b) {
			return i, nil
		}
		switch c := b[i]; c {
		case s.quote:
			return i, nil
		case '\'', '"', ' ', '\t', '\n', '\r':
			i++
		case '<':
			return i, refuse(NotWellFormed, "'<' in an attribute value")
		default:
			n, err := s.character(b[i:])
			if err != nil {
				return i, err
			}
			i += n
		}
	}
}

var (
	xmlnsKey   = keyOf([]byte("xmlns"))
	xmlLangKey = keyOf([]byte("xml:lang"))
)

// mayBeReserved says of a default namespace's length whether it might be the
// name of one that must not be bound.
func mayBeReserved(n int) bool { return n == len(xmlURI) || n == len(xmlnsURI) }

// endStartTag is called when a start tag is complete.
func (s *scanner) endStartTag(b []byte) error {
	if !s.ns {
		return nil
	}
	return s.namespaces(b)
}
