package peertest

import (
	"bytes"
	"encoding/binary"

	"github.com/eclipse/paho.golang/packets"
	v3 "github.com/eclipse/paho.mqtt.golang/packets"
)

// mqtt311 is MQTT 3.1.1 as it stands in CONNECT.
const mqtt311 = 4

// versionOf is the version that a CONNECT announces, 0 if it is cut short.
func versionOf(connect []byte) byte {
	_, n := binary.Uvarint(connect[1:])
	body := connect[1+n:]
	if len(body) < 2 {
		return 0
	}
	if at := 2 + int(binary.BigEndian.Uint16(body)); at < len(body) {
		return body[at]
	}
	return 0
}

// readMQTT reads a whole packet of a version. One of MQTT 3.1.1 is given as the same
// of MQTT 5, as far as taps look at it: the reason for each acknowledgement is success.
func readMQTT(version byte, b []byte) (*packets.ControlPacket, error) {
	if version != mqtt311 {
		return packets.ReadPacket(bytes.NewReader(b))
	}
	old, err := v3.ReadPacket(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	p := packets.NewControlPacket(b[0] >> 4)
	id := old.Details().MessageID
	switch o := old.(type) {
	case *v3.ConnectPacket:
		p.Content.(*packets.Connect).ClientID = o.ClientIdentifier
	case *v3.ConnackPacket:
		c := p.Content.(*packets.Connack)
		c.SessionPresent, c.ReasonCode = o.SessionPresent, o.ReturnCode
	case *v3.PublishPacket:
		c := p.Content.(*packets.Publish)
		c.Topic, c.Payload, c.QoS, c.PacketID, c.Duplicate = o.TopicName, o.Payload, o.Qos, id, o.Dup
	case *v3.PubackPacket:
		p.Content.(*packets.Puback).PacketID = id
	case *v3.PubrecPacket:
		p.Content.(*packets.Pubrec).PacketID = id
	case *v3.PubrelPacket:
		p.Content.(*packets.Pubrel).PacketID = id
	}
	return p, nil
}
