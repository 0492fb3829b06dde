package frame

import "bytes"

// Kind is what a top-level element is.
type Kind uint8

// The kinds of stanza (RFC 6120 §8); Other is anything else.
const (
	Other Kind = iota
	Message
	Presence
	IQ
)

func (k Kind) String() string {
	return [...]string{"other", "message", "presence", "iq"}[k]
}

// Top is what the first tag of an element says. Values are decoded; they are
// part of the element where nothing had to be decoded. An attribute that is
// absent is nil.
type Top struct {
	Kind               Kind
	Name               []byte // as it stands, with its prefix
	From, To, Type, ID []byte
	Empty              bool // the element ends in its first tag
	Len                int  // of the first tag, in bytes
}

// ParseTop reads the first tag of an element that a Reader or Check let through.
// A stanza has no prefix and is in no namespace but jabber:server; a message,
// presence or iq in another is refused.
func ParseTop(element []byte) (Top, error) {
	var t Top
	if len(element) < 2 || element[0] != '<' {
		return t, refuse(NotWellFormed, "element that does not begin with a tag")
	}
	i := 1
	for i < len(element) && class[element[i]]&nameByte != 0 {
		i++
	}
	t.Name = element[1:i]
	switch string(t.Name) {
	case "message":
		t.Kind = Message
	case "presence":
		t.Kind = Presence
	case "iq":
		t.Kind = IQ
	}
	for {
		name, value, n := nextAttr(element[i:])
		i += n
		switch {
		case n == 0:
			return Top{}, refuse(NotWellFormed, "first tag that cannot be read")
		case name == nil:
			t.Empty, t.Len = element[i-2] == '/', i
			return t, nil
		}
		if err := t.set(name, value); err != nil {
			return Top{}, err
		}
	}
}

func (t *Top) set(name, value []byte) error {
	var field *[]byte
	switch string(name) {
	case "from":
		field = &t.From
	case "to":
		field = &t.To
	case "type":
		field = &t.Type
	case "id":
		field = &t.ID
	case "xmlns":
		if t.Kind != Other && string(unescape(value)) != NSServer {
			return refuse(InvalidNamespace, "stanza outside jabber:server")
		}
		return nil
	default:
		return nil
	}
	if *field != nil {
		return refuse(NotWellFormed, "attribute given twice")
	}
	*field = unescape(value)
	return nil
}

// nextAttr reads one attribute, or the end of the tag (name is nil), and returns
// how many bytes that took: 0 for what is neither.
func nextAttr(b []byte) (name, value []byte, n int) {
	i := skip(b, 0, space)
	switch {
	case i == len(b):
		return nil, nil, 0
	case b[i] == '>':
		return nil, nil, i + 1
	case b[i] == '/' && i+1 < len(b) && b[i+1] == '>':
		return nil, nil, i + 2
	}
	end := skip(b, i, nameByte)
	name = b[i:end]
	i = skip(b, end, space)
	if len(name) == 0 || i == len(b) || b[i] != '=' {
		return nil, nil, 0
	}
	i = skip(b, i+1, space)
	if i == len(b) || (b[i] != '\'' && b[i] != '"') {
		return nil, nil, 0
	}
	size := bytes.IndexByte(b[i+1:], b[i])
	if size < 0 {
		return nil, nil, 0
	}
	return name, b[i+1 : i+1+size : i+1+size], i + 1 + size + 1
}

func skip(b []byte, i int, of uint8) int {
	for i < len(b) && class[b[i]]&of != 0 {
		i++
	}
	return i
}
