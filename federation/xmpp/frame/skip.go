package frame

import (
	"errors"
	"io"
)

// maxTag is how much of the start tag of an element that is skipped is kept: room for
// addresses of any length (RFC 7622 §3.1).
const maxTag = 16 << 10

// Skipped is what a Reader gives in the place of an element that it has read over, as
// Limits.Skip has it. The stream goes on behind it.
type Skipped struct {
	Limit *Error // which limit the element is beyond, as it would have ended the stream
	Tag   []byte // the element's start tag, which ParseTop and ErrorReply take
	Size  int    // bytes of the element
}

func (s *Skipped) Error() string { return s.Limit.Error() }
func (s *Skipped) Unwrap() error { return s.Limit }

// skipper finds the end of an element, from its first byte on, and holds no more of it
// than its start tag: what is nested, however deep, is only counted. It refuses what
// the scanner does, but for what takes memory to know: whether the names of inner end
// tags match, names are qualified names, attributes unique and prefixes bound.
type skipper struct {
	scanner // of its fields only those of the token at hand
	limit   *Error
	most    int    // bytes that may be skipped
	size    int    // bytes consumed
	tag     []byte // the start tag, as far as it is consumed
	whole   bool   // it is complete
	depth   int    // open elements
}

// refuse makes an error of the scanner one of the stream, unless it is about an
// element that can be skipped.
func (r *Reader) refuse(err error) error {
	var limit *Error
	if most := r.scan.lim.Skip; most > 0 && errors.As(err, &limit) && limit.Condition == PolicyViolation {
		r.scan.reset()
		r.skip = &skipper{limit: limit, most: most}
		return r.readOver()
	}
	return r.fail(err)
}

// readOver consumes what the buffer has of the element that is being skipped. At its
// end the error is a Skipped, and before nil.
func (r *Reader) readOver() error {
	for {
		n, err := r.skip.consume(r.buf[r.from:])
		r.from += n
		if err != nil {
			return r.fail(err)
		}
		if err := r.spend(n); err != nil {
			return err
		}
		switch k := r.skip; {
		case k.state == afterElement:
			r.skip = nil
			return r.fail(&Skipped{k.limit, k.tag, k.size})
		case n > 0:
		case r.ended == io.EOF:
			return r.fail(io.ErrUnexpectedEOF)
		case r.ended != nil:
			return r.fail(r.ended)
		default:
			return nil
		}
	}
}

// resume lets the stream go on once its reader has been told of a skipped element.
func (r *Reader) resume() {
	if _, ok := r.err.(*Skipped); ok {
		r.err = nil
	}
}

// consume takes b, which begins where it stopped, as far as it can, up to the end of
// the start tag or of the element.
func (k *skipper) consume(b []byte) (i int, err error) {
	whole, most := k.whole, k.most
	if !whole {
		most = min(most, maxTag)
	}
	room := most - k.size
	b = b[:min(len(b), room)]
	for i < len(b) && err == nil && k.state != afterElement && k.whole == whole {
		i, err = k.step(b, i)
	}
	if err == errShort {
		err = nil
	}
	k.size += i
	if !whole {
		k.tag = append(k.tag, b[:i]...)
	}
	if err == nil && len(b) == room && k.state != afterElement && k.whole == whole {
		err = k.limit
	}
	return i, err
}

func (k *skipper) step(b []byte, i int) (int, error) {
	switch k.state {
	case inText, inCDATA:
		return k.characters(b, i)
	case afterLess:
		return k.markup(b, i)
	case inEndTag, inEndName, afterEndName:
		return k.endTag(b, i)
	}
	return k.startTag(b, i)
}

// characters consumes text, but leaves brackets at the end of b, which "]]>" may
// begin with.
func (k *skipper) characters(b []byte, from int) (i int, err error) {
	if k.state == inText {
		i, err = k.text(b, from)
	} else {
		i, err = k.cdata(b, from)
	}
	if i < len(b) || err != nil {
		return i, err
	}
	for n := 0; n < len("]]") && i > from && b[i-1] == ']'; n++ {
		i, err = i-1, errShort
	}
	return i, err
}

func (k *skipper) markup(b []byte, i int) (int, error) {
	switch c := b[i]; {
	case class[c]&nameStart != 0:
		k.depth++
		k.state = inName
		return i, nil
	case c == '/':
		k.state = inEndTag
		return i + 1, nil
	}
	return k.noTag(b, i, k.depth > 0)
}

func (k *skipper) endTag(b []byte, i int) (int, error) {
	switch {
	case k.state == inEndTag && k.depth == 1:
		name := k.tag[1:skip(k.tag, 1, nameByte)]
		end := i + len(name)
		if end >= len(b) {
			return i, errShort
		}
		if string(b[i:end]) != string(name) {
			return i, refuse(NotWellFormed, "end tag that does not match its start tag")
		}
		k.state = afterEndName
		return end, nil
	case k.state == inEndTag && class[b[i]]&nameStart == 0:
		return i, refuse(NotWellFormed, "end tag without a name")
	case k.state != afterEndName:
		k.state = inEndName
		return k.longName(b, i, afterEndName)
	}
	i, err := k.expect(b, i, '>', inText, "end tag with more than a name")
	if k.state == inText {
		k.leave()
	}
	return i, err
}

// leave notes the end of the innermost element.
func (k *skipper) leave() {
	k.state = inText
	if k.depth--; k.depth == 0 {
		k.state = afterElement
	}
}

// longName consumes a name that need not be whole, up to the byte behind it.
func (k *skipper) longName(b []byte, i int, behind state) (int, error) {
	for i < len(b) {
		switch c := class[b[i]]; {
		case c&nameByte == 0:
			k.state, k.spaced = behind, false
			return i, nil
		case c&stopText == 0:
			i++
		default:
			n, err := k.character(b[i:])
			if err != nil {
				return i, err
			}
			i += n
		}
	}
	return i, nil
}

func (k *skipper) startTag(b []byte, i int) (int, error) {
	switch k.state {
	case inName:
		return k.longName(b, i, wantAttr)
	case inAttrName:
		return k.longName(b, i, wantEquals)
	case wantAttr:
		return k.attribute(b, i)
	case wantEquals:
		return k.expect(b, i, '=', wantQuote, "attribute without '='")
	case wantQuote:
		if i = skip(b, i, space); i < len(b) {
			if k.quote = b[i]; k.quote != '\'' && k.quote != '"' {
				return i, refuse(NotWellFormed, "attribute value without quotation marks")
			}
			k.state = inValue
			i++
		}
		return i, nil
	case inValue:
		return k.value(b, i)
	}
	if b[i] != '>' {
		return i, refuse(NotWellFormed, "'/' in a tag that '>' does not follow")
	}
	k.whole = true
	k.leave()
	return i + 1, nil
}

// attribute finds an attribute or the end of the tag.
func (k *skipper) attribute(b []byte, i int) (int, error) {
	if end := skip(b, i, space); end > i {
		k.spaced = true
		i = end
	}
	if i == len(b) {
		return i, nil
	}
	switch c := b[i]; {
	case c == '>':
		k.state, k.whole = inText, true
		return i + 1, nil
	case c == '/':
		k.state = wantClose
		return i + 1, nil
	case class[c]&nameStart == 0:
		return i, refuse(NotWellFormed, "tag with more than a name and attributes")
	case !k.spaced:
		return i, refuse(NotWellFormed, "no white space before an attribute")
	}
	k.state = inAttrName
	return i, nil
}

func (k *skipper) value(b []byte, i int) (int, error) {
	i, err := k.quoted(b, i)
	if err != nil || i == len(b) {
		return i, err
	}
	k.state, k.spaced = wantAttr, false
	return i + 1, nil
}
