package frame

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// maxReference is the length of the longest reference that is taken, leading
// zeros of a character reference included.
const maxReference = 16

// reference reads the character or predefined entity reference at the start of
// b, which begins with '&'.
func reference(b []byte) (r rune, n int, err error) {
	end := bytes.IndexByte(b[:min(len(b), maxReference)], ';')
	name := b[1:min(len(b), maxReference)]
	if end >= 0 {
		name = b[1:end]
	}
	for i, c := range name {
		if class[c]&nameByte == 0 && (i > 0 || c != '#') {
			return 0, 0, refuse(NotWellFormed, "'&' that begins no reference")
		}
	}
	switch {
	case end < 0 && len(b) < maxReference:
		return 0, 0, errShort
	case end < 0, end == 1:
		return 0, 0, refuse(RestrictedXML, "reference other than to a character or a predefined entity")
	case name[0] == '#':
		r, err = characterReference(name[1:])
		return r, end + 1, err
	}
	switch string(name) {
	case "amp":
		r = '&'
	case "lt":
		r = '<'
	case "gt":
		r = '>'
	case "apos":
		r = '\''
	case "quot":
		r = '"'
	default:
		return 0, 0, refuse(RestrictedXML, "entity reference")
	}
	return r, end + 1, nil
}

func characterReference(digits []byte) (rune, error) {
	base := 10
	if len(digits) > 0 && digits[0] == 'x' {
		base, digits = 16, digits[1:]
	}
	n, err := strconv.ParseUint(string(digits), base, 31)
	if err != nil || !isChar(rune(n)) {
		return 0, refuse(NotWellFormed, "reference to what is no character")
	}
	return rune(n), nil
}

// isChar is Char of XML 1.0 §2.2.
func isChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || (r >= 0x20 && r <= 0xFFFD && utf8.ValidRune(r)) || (r >= 0x10000 && r <= utf8.MaxRune)
}

// unescape returns the value of an attribute as a parser would give it: white
// space is spaces and references are what they stand for (XML 1.0 §3.3.3). The
// result is b itself where nothing has to change.
func unescape(b []byte) []byte {
	if !bytes.ContainsAny(b, "&\t\n\r") {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); {
		switch c := b[i]; c {
		case '\t', '\n', '\r':
			if c == '\r' && i+1 < len(b) && b[i+1] == '\n' {
				i++
			}
			out = append(out, ' ')
			i++
		case '&':
			r, n, err := reference(b[i:])
			if err != nil { // not of a checked stanza: leave it as it stands
				return append(out, b[i:]...)
			}
			out = utf8.AppendRune(out, r)
			i += n
		default:
			out = append(out, c)
			i++
		}
	}
	return out
}

// AppendEscaped appends text as it may stand in element content and in attribute
// values of either quotation mark. Characters that XML cannot hold become U+FFFD.
func AppendEscaped(dst, text []byte) []byte {
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRune(text[i:])
			if !isChar(r) {
				r = utf8.RuneError
			}
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		i++
		switch c {
		case '&':
			dst = append(dst, "&amp;"...)
		case '<':
			dst = append(dst, "&lt;"...)
		case '>':
			dst = append(dst, "&gt;"...)
		case '\'':
			dst = append(dst, "&apos;"...)
		case '"':
			dst = append(dst, "&quot;"...)
		case '\t', '\n', '\r':
			dst = append(dst, "&#"...)
			dst = strconv.AppendUint(dst, uint64(c), 10)
			dst = append(dst, ';')
		default:
			if c < 0x20 {
				dst = utf8.AppendRune(dst, utf8.RuneError)
				continue
			}
			dst = append(dst, c)
		}
	}
	return dst
}
