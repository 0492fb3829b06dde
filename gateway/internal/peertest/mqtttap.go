package peertest

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/eclipse/paho.golang/packets"
)

// MQTTTap is a cable between a client of MQTT 5 and its broker that counts which
// messages of a flow either side took from the other for good. By it one knows which
// of two did what was done when both were killed in turn.
type MQTTTap struct {
	*Cable

	mu    sync.Mutex
	ways  [2]tapWay // to the broker, from the broker
	taken map[tapKey]int
}

type tapKey struct {
	topic  string
	number uint64
}

// tapWay has, by packet id, what is between PUBLISH and its last acknowledgement.
type tapWay map[uint16]*tapped

type tapped struct {
	tapKey
	taken bool
}

// NewMQTTTap listens at from for a client and forwards to its broker.
func NewMQTTTap(from, broker string) (*MQTTTap, error) {
	t := &MQTTTap{taken: map[tapKey]int{}, ways: [2]tapWay{{}, {}}}
	var err error
	t.Cable, err = NewWatchedCable(from, broker, func() (there, back func([]byte)) {
		return t.reader(0), t.reader(1)
	})
	return t, err
}

// passed is how often a message was taken, in whichever direction it went.
func (t *MQTTTap) passed(k tapKey) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken[k]
}

// reader cuts what passes one way of a connection into packets.
func (t *MQTTTap) reader(way int) func([]byte) {
	var rest []byte
	return func(b []byte) {
		rest = append(rest, b...)
		for {
			n := wholePacket(rest)
			if n == 0 {
				return
			}
			if p, err := packets.ReadPacket(bytes.NewReader(rest[:n])); err == nil {
				t.see(way, p)
			}
			rest = rest[n:]
		}
	}
}

// wholePacket is the length of the packet that b begins with, 0 if it is not whole.
func wholePacket(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	size, n := binary.Uvarint(b[1:]) // what MQTT has is the same, of up to four bytes
	if n <= 0 || len(b) < 1+n+int(size) {
		return 0
	}
	return 1 + n + int(size)
}

// see counts a message when the side it goes to answers PUBLISH with PUBACK or
// PUBREC: from then on it is answerable for it. The same packet id before PUBREL
// has come is the same message.
func (t *MQTTTap) see(way int, p *packets.ControlPacket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	there, back := t.ways[way], t.ways[1-way]
	switch c := p.Content.(type) {
	case *packets.Connack:
		if !c.SessionPresent {
			clear(there)
			clear(back)
		}
	case *packets.Publish:
		_, number, ok := flowNumber(c)
		k := tapKey{c.Topic, number}
		if c.QoS == 0 || there[c.PacketID] != nil && there[c.PacketID].tapKey == k {
			return
		}
		delete(there, c.PacketID)
		if ok {
			there[c.PacketID] = &tapped{tapKey: k}
		}
	case *packets.Puback:
		t.take(back, c.PacketID, c.ReasonCode)
		delete(back, c.PacketID)
	case *packets.Pubrec:
		t.take(back, c.PacketID, c.ReasonCode)
	case *packets.Pubrel:
		delete(there, c.PacketID)
	}
}

func (t *MQTTTap) take(way tapWay, id uint16, code byte) {
	if m := way[id]; m != nil && !m.taken && code < 0x80 {
		m.taken = true
		t.taken[m.tapKey]++
	}
}
