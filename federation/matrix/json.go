package matrix

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"maunium.net/go/mautrix"
)

const (
	// maxDepth is how deeply the JSON of a request may be nested. Events are far
	// flatter; what reads JSON by recursion is safe with it.
	maxDepth = 64
	// maxMembers is how many members the objects of a request may have; keys for
	// some ten thousand devices have as many. See costOfOrder.
	maxMembers = 256 << 10
)

// checkJSON refuses what is no JSON (RFC 8259), what is nested too deeply or has
// too many members, and what has no canonical form (Matrix appendices, "Canonical
// JSON"). It comes before any parser and has no recursion. members is how many
// there are, for costOfOrder.
func checkJSON(body []byte) (members int, err *mautrix.RespError) {
	no := func(e mautrix.RespError, text string) (int, *mautrix.RespError) {
		return 0, respond(e, text)
	}
	if !utf8.Valid(body) {
		return no(mautrix.MNotJSON, "the body is no UTF-8")
	}
	depth := 0
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return no(mautrix.MBadJSON, "the JSON is nested more than 64 levels deep")
			}
		case '}', ']':
			depth--
		case ':':
			if members++; members > maxMembers {
				return no(mautrix.MTooLarge, "the JSON has more than 262144 members")
			}
		case '"':
			end, ok := stringEnd(body, i+1)
			if !ok {
				return no(mautrix.MBadJSON, "the JSON has half of a surrogate pair")
			}
			i = end
		}
	}
	if !json.Valid(body) {
		return no(mautrix.MNotJSON, "the body is no JSON")
	}
	return members, nil
}

// costOfOrder is what it takes at most to put JSON into its canonical form, in
// bytes: three copies, and for each member a record, however short it is.
func costOfOrder(size, members int) int64 { return 3*int64(size) + 240*int64(members) }

// stringEnd returns where the string whose text begins at i has its closing quote,
// or the end of b. ok is false where an escape stands for half of a surrogate pair:
// there is no such character, and what makes JSON canonical loses its place there.
func stringEnd(b []byte, i int) (end int, ok bool) {
	for {
		n := bytes.IndexAny(b[min(i, len(b)):], `"\`)
		if n < 0 {
			return len(b), true
		}
		i += n
		if b[i] == '"' {
			return i, true
		}
		size := 2
		if unit, is := escapedUnit(b[i:]); is {
			size = 6
			if unit >= 0xdc00 && unit < 0xe000 {
				return i, false
			}
			if unit >= 0xd800 && unit < 0xdc00 {
				low, is := escapedUnit(b[i+size:])
				if !is || low < 0xdc00 || low >= 0xe000 {
					return i, false
				}
				size = 12
			}
		}
		i += size
	}
}

// escapedUnit reads \uXXXX.
func escapedUnit(b []byte) (unit uint16, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		unit = unit<<4 | uint16(c)
	}
	return unit, true
}
