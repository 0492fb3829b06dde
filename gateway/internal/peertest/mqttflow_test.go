package peertest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"
	v3 "github.com/eclipse/paho.mqtt.golang/packets"
)

// flowMessage is message number of a topic as it arrives.
func flowMessage(topic string, number uint64, id uint16) *packets.Publish {
	body := make([]byte, flowBody)
	binary.BigEndian.PutUint64(body, number)
	return &packets.Publish{Topic: topic, QoS: 2, PacketID: id, Payload: body, Properties: &packets.Properties{}}
}

func tapOf() *MQTTTap {
	return &MQTTTap{taken: map[tapKey]int{}, sessions: map[string]*tapWays{"gateway": {{}, {}}}, versions: map[byte]bool{}}
}

// pass shows a tap a message and its whole acknowledgement, cut anywhere, on a
// connection of a version.
func pass(t *testing.T, tap *MQTTTap, version byte, way int, m *packets.Publish, kinds ...byte) {
	t.Helper()
	c := &tapConn{version: version, ways: tap.sessions["gateway"]}
	there, back := tap.reader(c, way), tap.reader(c, 1-way)
	for i, kind := range append([]byte{packets.PUBLISH}, kinds...) {
		var b bytes.Buffer
		var err error
		to := there
		switch {
		case i > 0:
			if kind == packets.PUBREC {
				to = back
			}
			err = put(&b, kind, m.PacketID)
		case version == mqtt311:
			p := v3.NewControlPacket(v3.Publish).(*v3.PublishPacket)
			p.TopicName, p.Payload, p.Qos, p.MessageID = m.Topic, m.Payload, m.QoS, m.PacketID
			err = p.Write(&b)
		default:
			_, err = m.ToControlPacket().WriteTo(&b)
		}
		if err != nil {
			t.Fatal(err)
		}
		to(b.Bytes()[:3])
		to(b.Bytes()[3:])
	}
}

func TestMQTTFlowCounts(t *testing.T) {
	for _, version := range []byte{5, mqtt311} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) { testFlowCounts(t, version) })
	}
}

func testFlowCounts(t *testing.T, version byte) {
	f := MQTTFlow{Topic: "x", QoS: 2, NearTap: tapOf(), FarTap: tapOf()}
	r := &RunningFlow{flow: f, topics: make([]flowTopic, 2), changed: make(chan struct{})}
	for i := range r.topics {
		r.topics[i] = flowTopic{acked: 6, count: map[uint64]int{}}
	}
	const rec, rel = packets.PUBREC, packets.PUBREL
	arrive := func(topic int, numbers ...uint64) {
		for _, n := range numbers {
			if err := r.got(flowMessage("x/"+strconv.Itoa(topic), n, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrive(0, 1, 2, 2, 4, 3, 6) // 2 again, 3 after 4, 5 never
	arrive(1, 1, 2, 3, 4)       // 5 and 6 never
	// The near broker never gave 0/5 on; 1/5 got lost between; 1/6 the far broker had.
	pass(t, f.NearTap, version, 1, flowMessage("x/1", 5, 7), rec, rel)
	pass(t, f.NearTap, version, 1, flowMessage("x/1", 6, 8), rec, rel)
	pass(t, f.FarTap, version, 0, flowMessage("x/1", 6, 9), rec, rel)
	// 0/2 was sent anew before it was acknowledged, 0/1 after.
	pass(t, f.NearTap, version, 1, flowMessage("x/0", 2, 3), rec, rel)
	pass(t, f.FarTap, version, 0, flowMessage("x/0", 2, 3))
	pass(t, f.FarTap, version, 0, flowMessage("x/0", 2, 3), rec, rec, rel)
	pass(t, f.FarTap, version, 0, flowMessage("x/0", 1, 3), rec, rel)
	pass(t, f.FarTap, version, 0, flowMessage("x/0", 1, 3), rec, rel)
	res := r.resultLocked()
	res.Examples = nil
	if want := (MQTTResult{Acked: 12, Received: 9, Lost: 3, Dup: 1, Disorder: 1, LostBetween: 1, DupBetween: 1}); res.String() != want.String() || res.LostBetween != 1 || res.DupBetween != 1 {
		t.Errorf("counted %+v, want %+v", res, want)
	}
	if err := errors.Join(f.NearTap.unread, f.FarTap.unread); err != nil {
		t.Error(err)
	}
	if err := r.got(&packets.Publish{Topic: "x/0", Payload: []byte("else")}); err == nil || !strings.Contains(err.Error(), "nothing that was sent") {
		t.Errorf("what was not sent: %v", err)
	}
}

// A tap reads the version of each connection out of CONNECT, and says what it could
// not read.
func TestMQTTTapVersions(t *testing.T) {
	tap := tapOf()
	old := v3.NewControlPacket(v3.Connect).(*v3.ConnectPacket)
	old.ProtocolName, old.ProtocolVersion, old.ClientIdentifier = "MQTT", mqtt311, "gateway"
	tap.sessions["gateway"][0][3] = &tapped{}
	for _, c := range []struct {
		version byte
		connect interface {
			WriteTo(io.Writer) (int64, error)
		}
		connack []byte
		kept    int
	}{
		{mqtt311, writerTo(old.Write), []byte{0x20, 2, 1, 0}, 1},
		{5, packets.NewControlPacket(packets.CONNECT), []byte{0x20, 3, 1, 0, 0}, 1},
		{mqtt311, writerTo(old.Write), []byte{0x20, 2, 0, 0}, 0},
	} {
		var b bytes.Buffer
		if _, err := c.connect.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		tap.versions = map[byte]bool{}
		there, back := tap.readers()
		there(b.Bytes())
		back(c.connack)
		if !tap.Spoke(c.version) || tap.unread != nil {
			t.Errorf("of version %d: %v, %v", c.version, tap.versions, tap.unread)
		}
		if n := len(tap.sessions["gateway"][0]); n != c.kept {
			t.Errorf("after % x there are %d messages under way, want %d", c.connack, n, c.kept)
		}
	}
	there, _ := tap.readers()
	there([]byte{0xe0, 0}) // DISCONNECT, which the codec of MQTT 5 does not read
	if tap.unread != nil {
		t.Error(tap.unread)
	}
	there([]byte{0x30, 1, 0})
	if tap.unread == nil {
		t.Error("a PUBLISH without a topic was read")
	}
}

type writerTo func(io.Writer) error

func (w writerTo) WriteTo(to io.Writer) (int64, error) { return 0, w(to) }
