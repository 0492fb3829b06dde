package frame

import (
	"encoding/binary"
	"math/bits"
)

// Eight bytes are looked at in one go, as a word whose lowest byte comes first.
// The flags below are the high bits of the bytes that have a property. Carries
// may set wrong flags above the first right one, so only the lowest counts.
const (
	wordSize = 8
	ones     = 0x0101010101010101
	highs    = 0x80 * ones
)

func word(b []byte, i int) uint64 { return binary.LittleEndian.Uint64(b[i:]) }

// first is the index of the byte that the lowest flag belongs to.
func first(flags uint64) int { return bits.TrailingZeros64(flags) / 8 }

// zero flags bytes that are 0.
func zero(w uint64) uint64 { return (w - ones) &^ w & highs }

// unusual flags control characters and bytes beyond ASCII.
func unusual(w uint64) uint64 { return ((w - 0x20*ones) | w) & highs }

// lower flags the letters a to z. Bytes beyond ASCII are never flagged: they set
// the high bit of both sums or of neither.
func lower(w uint64) uint64 {
	return (w + (0x80-'a')*ones) &^ (w + (0x80-'z'-1)*ones) & highs
}

// below has all bits of the first n bytes set; n is less than 8.
func below(n int) uint64 { return 1<<(8*n) - 1 }

// skipText returns the index of the first byte that text has to look at.
func skipText(b []byte, i int) int {
	for len(b)-i >= wordSize {
		w := word(b, i)
		// '<' and '>' differ in one bit.
		if f := zero((w|2*ones)^'>'*ones) | zero(w^'&'*ones) | unusual(w); f != 0 {
			return i + first(f)
		}
		i += wordSize
	}
	for i < len(b) && class[b[i]]&stopText == 0 {
		i++
	}
	return i
}

// skipValue does the same for a value between quotation marks.
func skipValue(b []byte, i int, quote byte) int {
	// Either quotation mark differs from '&' in one bit.
	differs := uint64(quote^'&') * ones
	marks := '&'*ones | differs
	for len(b)-i >= wordSize {
		w := word(b, i)
		if f := zero((w|differs)^marks) | zero(w^'<'*ones) | unusual(w); f != 0 {
			return i + first(f)
		}
		i += wordSize
	}
	for i < len(b) && class[b[i]]&stopValue == 0 {
		i++
	}
	return i
}
