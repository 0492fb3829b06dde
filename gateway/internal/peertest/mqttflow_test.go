package peertest

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
	"testing"

	"github.com/eclipse/paho.golang/packets"
)

// flowMessage is message number of a topic as it arrives.
func flowMessage(topic string, number uint64, id uint16) *packets.Publish {
	body := make([]byte, flowBody)
	binary.BigEndian.PutUint64(body, number)
	return &packets.Publish{Topic: topic, QoS: 2, PacketID: id, Payload: body, Properties: &packets.Properties{}}
}

func tapOf() *MQTTTap {
	return &MQTTTap{taken: map[tapKey]int{}, sessions: map[string]*tapWays{"gateway": {{}, {}}}}
}

// pass shows a tap a message and its whole acknowledgement, cut anywhere.
func pass(t *testing.T, tap *MQTTTap, way int, m *packets.Publish, kinds ...byte) {
	t.Helper()
	w := tap.sessions["gateway"]
	there, back := tap.reader(&w, way), tap.reader(&w, 1-way)
	for i, kind := range append([]byte{packets.PUBLISH}, kinds...) {
		p := m.ToControlPacket()
		if i > 0 {
			p = packets.NewControlPacket(kind)
		}
		to := there
		switch c := p.Content.(type) {
		case *packets.Pubrec:
			c.PacketID, to = m.PacketID, back
		case *packets.Pubrel:
			c.PacketID = m.PacketID
		}
		var b bytes.Buffer
		if _, err := p.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		to(b.Bytes()[:3])
		to(b.Bytes()[3:])
	}
}

func TestMQTTFlowCounts(t *testing.T) {
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
	pass(t, f.NearTap, 1, flowMessage("x/1", 5, 7), rec, rel)
	pass(t, f.NearTap, 1, flowMessage("x/1", 6, 8), rec, rel)
	pass(t, f.FarTap, 0, flowMessage("x/1", 6, 9), rec, rel)
	// 0/2 was sent anew before it was acknowledged, 0/1 after.
	pass(t, f.NearTap, 1, flowMessage("x/0", 2, 3), rec, rel)
	pass(t, f.FarTap, 0, flowMessage("x/0", 2, 3))
	pass(t, f.FarTap, 0, flowMessage("x/0", 2, 3), rec, rec, rel)
	pass(t, f.FarTap, 0, flowMessage("x/0", 1, 3), rec, rel)
	pass(t, f.FarTap, 0, flowMessage("x/0", 1, 3), rec, rel)
	res := r.resultLocked()
	res.Examples = nil
	if want := (MQTTResult{Acked: 12, Received: 9, Lost: 3, Dup: 1, Disorder: 1, LostBetween: 1, DupBetween: 1}); res.String() != want.String() || res.LostBetween != 1 || res.DupBetween != 1 {
		t.Errorf("counted %+v, want %+v", res, want)
	}
	if err := r.got(&packets.Publish{Topic: "x/0", Payload: []byte("else")}); err == nil || !strings.Contains(err.Error(), "nothing that was sent") {
		t.Errorf("what was not sent: %v", err)
	}
}
