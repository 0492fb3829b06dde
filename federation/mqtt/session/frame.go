package session

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Packet types (MQTT 5 §2.1.2).
const (
	typeConnect byte = 1 + iota
	typeConnack
	typePublish
	typePuback
	typePubrec
	typePubrel
	typePubcomp
	typeSubscribe
	typeSuback
	typeUnsubscribe
	typeUnsuback
	typePingreq
	typePingresp
	typeDisconnect
	typeAuth
)

// frame is a packet as it stands on the wire, without its fixed header.
type frame struct {
	kind, flags byte
	body        []byte
}

// readFrame reads a packet of at most limit bytes, its fixed header included. It
// does so itself because the codecs allocate what the remaining length says, the
// one for MQTT 5 after reading a length without end.
func readFrame(r *bufio.Reader, limit uint32) (f frame, err error) {
	first, err := r.ReadByte()
	if err != nil {
		return f, err
	}
	f.kind, f.flags = first>>4, first&0xf
	length, header := uint32(0), uint32(1)
	for shift := 0; ; shift += 7 {
		if shift > 21 {
			return f, breach(codeMalformed, "remaining length of more than four bytes")
		}
		b, err := r.ReadByte()
		if err != nil {
			return f, noEOF(err)
		}
		header++
		length |= uint32(b&0x7f) << shift
		if b&0x80 == 0 {
			break
		}
	}
	if limit != 0 && length+header > limit {
		return f, breach(codeTooLarge, "packet of %d bytes; the limit is %d", length+header, limit)
	}
	if err := f.checkHeader(); err != nil {
		return f, err
	}
	f.body = make([]byte, length)
	if _, err := io.ReadFull(r, f.body); err != nil {
		return f, noEOF(err)
	}
	return f, nil
}

// noEOF makes an error of an end within a packet.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkHeader is MQTT 5 §2.1.3, for what a broker may send.
func (f *frame) checkHeader() error {
	switch f.kind {
	case typePublish:
		if f.flags>>1&3 == 3 {
			return breach(codeMalformed, "PUBLISH with QoS 3")
		}
		if f.flags>>1&3 == 0 && f.flags&8 != 0 {
			return breach(codeMalformed, "PUBLISH with DUP at QoS 0")
		}
		return nil
	case typePubrel:
		if f.flags != 2 {
			return breach(codeMalformed, "PUBREL with flags %x", f.flags)
		}
		return nil
	case typeConnack, typePuback, typePubrec, typePubcomp, typeSuback, typeUnsuback, typePingresp, typeDisconnect:
		if f.flags != 0 {
			return breach(codeMalformed, "packet of type %d with flags %x", f.kind, f.flags)
		}
		return nil
	}
	return breach(codeProtocol, "packet of type %d from a broker", f.kind)
}

// properties returns the properties that begin at an offset of the body, and where
// they end.
func (f *frame) properties(at int) (props []byte, end int, err error) {
	if at > len(f.body) {
		return nil, 0, breach(codeMalformed, "packet of type %d ends early", f.kind)
	}
	length, n := varint(f.body[at:])
	if n == 0 || length > len(f.body)-at-n {
		return nil, 0, breach(codeMalformed, "packet of type %d: properties run over its end", f.kind)
	}
	return f.body[at+n : at+n+length], at + n + length, nil
}

// varint reads a variable byte integer; n is 0 where there is none.
func varint(b []byte) (v, n int) {
	for i := 0; i < len(b) && i < 4; i++ {
		v |= int(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return v, i + 1
		}
	}
	return 0, 0
}

// checkProperties finds what the codec passes over: properties that repeat though
// they must not, and integers and strings that end early. Which property may stand
// in which packet the codec knows.
func checkProperties(props []byte) error {
	var seen [4]uint64
	for len(props) > 0 {
		id := props[0]
		n := propertyLength(id, props[1:])
		if n < 0 {
			return breach(codeMalformed, "property %d ends early or does not exist", id)
		}
		if id != propUser && id != propSubscriptionID {
			if seen[id/64]&(1<<(id%64)) != 0 {
				return breach(codeProtocol, "property %d stands twice", id)
			}
			seen[id/64] |= 1 << (id % 64)
		}
		props = props[1+n:]
	}
	return nil
}

const (
	propSubscriptionID = 11
	propUser           = 38
)

// propertyLength is what the value of a property takes of b, or -1 (MQTT 5 §2.2.2.2).
func propertyLength(id byte, b []byte) int {
	switch id {
	case 1, 23, 25, 36, 37, 40, 41, 42:
		return within(1, b)
	case 19, 33, 34, 35:
		return within(2, b)
	case 2, 17, 24, 39:
		return within(4, b)
	case propSubscriptionID:
		if _, n := varint(b); n > 0 {
			return n
		}
		return -1
	case 3, 8, 9, 18, 21, 22, 26, 28, 31:
		return counted(b)
	case propUser:
		k := counted(b)
		if k < 0 {
			return -1
		}
		if v := counted(b[k:]); v >= 0 {
			return k + v
		}
	}
	return -1
}

func within(n int, b []byte) int {
	if len(b) < n {
		return -1
	}
	return n
}

// counted is the length of a string with its own.
func counted(b []byte) int {
	if len(b) < 2 {
		return -1
	}
	return within(2+int(binary.BigEndian.Uint16(b)), b)
}

func (f *frame) String() string {
	return fmt.Sprintf("packet of type %d, %d bytes", f.kind, len(f.body))
}
