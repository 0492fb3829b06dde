package frame

// Classes of bytes, so that each loop over bytes is one look-up a byte.
const (
	nameByte  uint8 = 1 << iota // may stand in a name
	nameStart                   // may begin a name
	odd                         // makes a name need a closer look: ':' or beyond ASCII
	space                       // XML white space
	stopText                    // ends a run of plain text
	stopValue                   // ends a run of a plain attribute value
	stopCDATA                   // ends a run within a CDATA section
)

var class = func() (t [256]uint8) {
	for i := range t {
		switch c := byte(i); {
		case c == ' ', c == '\t', c == '\n', c == '\r':
			t[i] = space
		case c < 0x20:
			t[i] = stopText | stopValue | stopCDATA
		case c >= 0x80:
			t[i] = nameByte | nameStart | odd | stopText | stopValue | stopCDATA
		case c == ':':
			t[i] = nameByte | nameStart | odd
		case c == '_', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			t[i] = nameByte | nameStart
		case c == '-', c == '.', '0' <= c && c <= '9':
			t[i] = nameByte
		case c == '<', c == '&':
			t[i] = stopText | stopValue
		case c == '\'', c == '"':
			t[i] = stopValue
		case c == '>':
			t[i] = stopText | stopCDATA
		}
	}
	return t
}()
