package peertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/eclipse/paho.golang/packets"
)

// MQTTTap is a cable between a client of MQTT 5 or 3.1.1 and its broker that counts
// which messages of a flow either side took from the other for good. By it one knows
// which of two did what was done when both were killed in turn.
type MQTTTap struct {
	*Cable

	mu       sync.Mutex
	sessions map[string]*tapWays // by client id
	taken    map[tapKey]int
	versions map[byte]bool // that CONNECT announced
	unread   error         // why the first packet that could not be read could not
}

// tapConn is what both readers of a connection know of it once CONNECT has passed.
type tapConn struct {
	version byte
	ways    *tapWays // of the session that it named
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
	t := &MQTTTap{taken: map[tapKey]int{}, sessions: map[string]*tapWays{}, versions: map[byte]bool{}}
	var err error
	t.Cable, err = NewWatchedCable(from, broker, func() (there, back func([]byte)) {
		return t.readers()
	})
	return t, err
}

// Close closes the cable. That it could not read what passed is an error, since its
// counts mean nothing then.
func (t *MQTTTap) Close() error {
	err := t.Cable.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(err, t.unread)
}

// Spoke says whether all connections were of a version, as it stands in CONNECT: 5, or
// 4 for MQTT 3.1.1.
func (t *MQTTTap) Spoke(version byte) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.versions[version] && len(t.versions) == 1
}

// passed is how often a message was taken, in whichever direction it went.
func (t *MQTTTap) passed(k tapKey) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken[k]
}

// readers are those of both ways of a connection.
func (t *MQTTTap) readers() (there, back func([]byte)) {
	c := &tapConn{}
	return t.reader(c, 0), t.reader(c, 1)
}

// reader cuts what passes one way of a connection into packets.
func (t *MQTTTap) reader(c *tapConn, way int) func([]byte) {
	var rest []byte
	return func(b []byte) {
		rest = append(rest, b...)
		for {
			n := wholePacket(rest)
			if n == 0 {
				return
			}
			t.read(c, way, rest[:n])
			rest = rest[n:]
		}
	}
}

func (t *MQTTTap) read(c *tapConn, way int, packet []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch packet[0] >> 4 {
	case packets.CONNECT:
		c.version = versionOf(packet)
		t.versions[c.version] = true
	case packets.CONNACK, packets.PUBLISH, packets.PUBACK, packets.PUBREC, packets.PUBREL:
	default:
		return // says nothing of messages
	}
	p, err := readMQTT(c.version, packet)
	if err == nil {
		t.see(c, way, p)
	} else if t.unread == nil {
		t.unread = fmt.Errorf("tap of MQTT: packet % x of version %d: %w", packet[:min(len(packet), 32)], c.version, err)
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
func (t *MQTTTap) see(conn *tapConn, way int, p *packets.ControlPacket) {
	if c, ok := p.Content.(*packets.Connect); ok {
		if t.sessions[c.ClientID] == nil {
			t.sessions[c.ClientID] = &tapWays{{}, {}}
		}
		conn.ways = t.sessions[c.ClientID]
	}
	if conn.ways == nil {
		return
	}
	there, back := conn.ways[way], conn.ways[1-way]
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
