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

	mu       sync.Mutex
	sessions map[string]*tapWays // by client id
	taken    map[tapKey]int
}

// tapWays is what is under way in a session: to the broker, from the broker.
type tapWays [2]tapWay

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
	t := &MQTTTap{taken: map[tapKey]int{}, sessions: map[string]*tapWays{}}
	var err error
	t.Cable, err = NewWatchedCable(from, broker, func() (there, back func([]byte)) {
		return t.readers()
	})
	return t, err
}

// passed is how often a message was taken, in whichever direction it went.
func (t *MQTTTap) passed(k tapKey) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken[k]
}

// readers are those of both ways of a connection.
func (t *MQTTTap) readers() (there, back func([]byte)) {
	w := new(*tapWays) // once CONNECT has named the session
	return t.reader(w, 0), t.reader(w, 1)
}

// reader cuts what passes one way of a connection into packets.
func (t *MQTTTap) reader(w **tapWays, way int) func([]byte) {
	var rest []byte
	return func(b []byte) {
		rest = append(rest, b...)
		for {
			n := wholePacket(rest)
			if n == 0 {
				return
			}
			if p, err := packets.ReadPacket(bytes.NewReader(rest[:n])); err == nil {
				t.see(w, way, p)
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
func (t *MQTTTap) see(w **tapWays, way int, p *packets.ControlPacket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, ok := p.Content.(*packets.Connect); ok {
		if t.sessions[c.ClientID] == nil {
			t.sessions[c.ClientID] = &tapWays{{}, {}}
		}
		*w = t.sessions[c.ClientID]
	}
	if *w == nil {
		return
	}
	there, back := (*w)[way], (*w)[1-way]
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
