package session

import (
	"bytes"
	"fmt"

	v3 "github.com/eclipse/paho.mqtt.golang/packets"
)

// length3 says whether the body of a packet of MQTT 3.1.1 is as long as it must be.
// The codec fills up with zeros what is missing.
func (f *frame) length3() bool {
	n := len(f.body)
	switch f.kind {
	case typePublish:
		topic := counted(f.body)
		return topic >= 0 && (f.flags&6 == 0 || n >= topic+2)
	case typeConnack, typePuback, typePubrec, typePubrel, typePubcomp, typeUnsuback:
		return n == 2
	case typeSuback:
		return n >= 3
	case typePingresp:
		return n == 0
	}
	return false
}

// receiveMax3 is how many messages at QoS 1 and 2 may be on their way to a broker of
// MQTT 3.1.1, which has no word for it. mosquitto (2.0.11) counts all the same, up to its
// max_inflight_messages, 20 as it comes, and loses without a word what goes beyond; see
// mayBegin.
const receiveMax3 = 20

func (f *frame) decode3() (*packet, error) {
	if f.kind == typeDisconnect {
		return nil, breach(codeProtocol, "DISCONNECT from a broker of MQTT 3.1.1")
	}
	if !f.length3() {
		return nil, breach(codeMalformed, "packet of type %d with %d bytes", f.kind, len(f.body))
	}
	cp, err := v3.NewControlPacketWithHeader(v3.FixedHeader{MessageType: f.kind, Dup: f.flags&8 != 0, Qos: f.flags >> 1 & 3,
		Retain: f.flags&1 != 0, RemainingLength: len(f.body)})
	if err != nil {
		return nil, breach(codeMalformed, "%v", err)
	}
	if err := cp.Unpack(bytes.NewBuffer(f.body)); err != nil {
		return nil, breach(codeMalformed, "packet of type %d: %v", f.kind, err)
	}
	p := &packet{kind: f.kind, id: cp.Details().MessageID}
	switch c := cp.(type) {
	case *v3.ConnackPacket:
		p.code = connackCode(c.ReturnCode)
		p.connack = &connack{present: c.SessionPresent, receiveMax: receiveMax3, maxQoS: 2, retain: true, wildcard: true} // which knows no shared subscriptions
	case *v3.PublishPacket:
		p.dup = c.Dup
		p.message = &Message{Topic: c.TopicName, Payload: c.Payload, QoS: c.Qos, Retain: c.Retain}
	case *v3.SubackPacket:
		p.codes = c.ReturnCodes
	}
	return p, nil
}

// connackCode translates a return code of MQTT 3.1.1 §3.2.2.3 as MQTT 5 has it.
func connackCode(code byte) byte {
	switch code {
	case v3.Accepted:
		return codeSuccess
	case v3.ErrRefusedBadProtocolVersion:
		return codeVersion
	case v3.ErrRefusedIDRejected:
		return codeClientID
	case v3.ErrRefusedServerUnavailable:
		return codeUnavailable
	case v3.ErrRefusedBadUsernameOrPassword:
		return codePassword
	case v3.ErrRefusedNotAuthorised:
		return codeNotAuthorized
	}
	return codeUnspecified
}

func (e encoder) publish3(m *Message, id uint16, dup bool) error {
	p := v3.NewControlPacket(v3.Publish).(*v3.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.Retain, p.Dup, p.MessageID = m.Topic, m.Payload, m.QoS, m.Retain, dup, id
	return p.Write(e.buf)
}

func (e encoder) subscribe3(id uint16, subs []Subscription) error {
	p := v3.NewControlPacket(v3.Subscribe).(*v3.SubscribePacket)
	p.MessageID = id
	for _, s := range subs {
		p.Topics, p.Qoss = append(p.Topics, s.Filter), append(p.Qoss, s.QoS)
	}
	return p.Write(e.buf)
}

func (e encoder) unsubscribe3(id uint16, filters []string) error {
	p := v3.NewControlPacket(v3.Unsubscribe).(*v3.UnsubscribePacket)
	p.MessageID, p.Topics = id, filters
	return p.Write(e.buf)
}

func (e encoder) connect3(cfg *Config, as identity, keepAlive uint16) error {
	if cfg.Password != "" && cfg.Username == "" {
		return fmt.Errorf("connect: MQTT 3.1.1 has no password without a user name")
	}
	p := v3.NewControlPacket(v3.Connect).(*v3.ConnectPacket)
	p.ProtocolName, p.ProtocolVersion, p.CleanSession, p.Keepalive, p.ClientIdentifier = "MQTT", V311, as.clean, keepAlive, as.clientID
	p.Username, p.UsernameFlag, p.Password, p.PasswordFlag = cfg.Username, cfg.Username != "", []byte(cfg.Password), cfg.Password != ""
	if will := as.will; will != nil {
		p.WillFlag, p.WillTopic, p.WillMessage, p.WillQos, p.WillRetain = true, will.Topic, will.Payload, will.QoS, will.Retain
	}
	return p.Write(e.buf)
}
