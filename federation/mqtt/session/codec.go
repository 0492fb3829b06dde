package session

import (
	"bytes"
	"fmt"

	v5 "github.com/eclipse/paho.golang/packets"
)

// packet is what a broker says, of either version.
type packet struct {
	kind    byte
	id      uint16
	code    byte // a reason code of MQTT 5
	text    string
	dup     bool
	message *Message // of PUBLISH
	codes   []byte   // of SUBACK and UNSUBACK
	connack *connack
}

// connack is what a broker says of itself.
type connack struct {
	present                  bool
	receiveMax               uint16
	maxQoS                   byte
	retain, wildcard, shared bool
	maxPacket                uint32
	keepAlive                *uint16
	assigned                 string
}

// decode reads what a broker sent. The codecs take for granted that lengths are
// right, so these are looked at first.
func (f *frame) decode(version byte) (*packet, error) {
	var p *packet
	var err error
	if version == V5 {
		p, err = f.decode5()
	} else {
		p, err = f.decode3()
	}
	if err != nil {
		return nil, err
	}
	switch p.kind {
	case typePublish:
		if p.message.QoS > 0 && p.id == 0 {
			return nil, breach(codeMalformed, "PUBLISH with packet id 0")
		}
		if err := p.message.check(); err != nil {
			code := codeMalformed
			if checkTopic(p.message.Topic) != nil && checkString(p.message.Topic) == nil {
				code = codeTopicInvalid
			}
			return nil, breach(code, "PUBLISH: %v", err)
		}
	case typePuback, typePubrec, typePubrel, typePubcomp, typeSuback, typeUnsuback:
		if p.id == 0 {
			return nil, breach(codeMalformed, "packet of type %d with packet id 0", p.kind)
		}
	}
	return p, nil
}

// propertiesAt is where the properties of a packet of MQTT 5 begin, or -1 where it
// has none.
func (f *frame) propertiesAt() int {
	switch f.kind {
	case typePublish:
		at := counted(f.body)
		if at < 0 {
			return len(f.body) + 1
		}
		if f.flags&6 != 0 {
			at += 2
		}
		return at
	case typeConnack, typeSuback, typeUnsuback:
		return 2
	case typePuback, typePubrec, typePubrel, typePubcomp:
		if len(f.body) == 2 || len(f.body) == 3 {
			return -1
		}
		return 3
	case typeDisconnect:
		if len(f.body) <= 1 {
			return -1
		}
		return 1
	}
	return -1
}

func (f *frame) decode5() (*packet, error) {
	if at := f.propertiesAt(); at >= 0 {
		props, end, err := f.properties(at)
		if err != nil {
			return nil, err
		}
		if err := checkProperties(props); err != nil {
			return nil, err
		}
		if end < len(f.body) && f.kind != typePublish && f.kind != typeSuback && f.kind != typeUnsuback {
			return nil, breach(codeMalformed, "packet of type %d goes on after its end", f.kind)
		}
	}
	if f.kind == typePingresp && len(f.body) > 0 {
		return nil, breach(codeMalformed, "PINGRESP of %d bytes", len(f.body))
	}
	if f.kind == typeDisconnect && len(f.body) == 0 { // the codec wants a code
		return &packet{kind: f.kind}, nil
	}
	cp := v5.NewControlPacket(f.kind)
	if p, ok := cp.Content.(*v5.Publish); ok {
		p.QoS, p.Duplicate, p.Retain = f.flags>>1&3, f.flags&8 != 0, f.flags&1 != 0
	}
	if err := cp.Content.Unpack(bytes.NewBuffer(f.body)); err != nil {
		return nil, breach(codeMalformed, "packet of type %d: %v", f.kind, err)
	}
	return from5(f.kind, cp.Content)
}

func from5(kind byte, content v5.Packet) (*packet, error) {
	p := &packet{kind: kind}
	switch c := content.(type) {
	case *v5.Connack:
		p.code, p.text, p.connack = c.ReasonCode, c.Properties.ReasonString, connack5(c)
		if r := c.Properties.ReceiveMaximum; r != nil && *r == 0 {
			return nil, breach(codeProtocol, "CONNACK with receive maximum 0")
		}
		if m := c.Properties.MaximumPacketSize; m != nil && *m == 0 {
			return nil, breach(codeProtocol, "CONNACK with maximum packet size 0")
		}
	case *v5.Publish:
		if c.Properties.TopicAlias != nil {
			return nil, breach(codeAlias, "PUBLISH with a topic alias, of which none are wanted")
		}
		p.id, p.dup = c.PacketID, c.Duplicate
		m, err := message5(c)
		if err != nil {
			return nil, err
		}
		p.message = m
	case *v5.Puback:
		p.id, p.code, p.text = c.PacketID, c.ReasonCode, c.Properties.ReasonString
	case *v5.Pubrec:
		p.id, p.code, p.text = c.PacketID, c.ReasonCode, c.Properties.ReasonString
	case *v5.Pubrel:
		p.id, p.code, p.text = c.PacketID, c.ReasonCode, c.Properties.ReasonString
	case *v5.Pubcomp:
		p.id, p.code, p.text = c.PacketID, c.ReasonCode, c.Properties.ReasonString
	case *v5.Suback:
		p.id, p.codes, p.text = c.PacketID, c.Reasons, c.Properties.ReasonString
	case *v5.Unsuback:
		p.id, p.codes, p.text = c.PacketID, c.Reasons, c.Properties.ReasonString
	case *v5.Disconnect:
		p.code, p.text = c.ReasonCode, c.Properties.ReasonString
	case *v5.Pingresp:
	default:
		return nil, fmt.Errorf("decode packet of type %d: no case for it", kind)
	}
	return p, nil
}

func connack5(c *v5.Connack) *connack {
	p := c.Properties
	a := &connack{present: c.SessionPresent, receiveMax: 65535, maxQoS: 2, retain: true, wildcard: true, shared: true,
		keepAlive: p.ServerKeepAlive, assigned: p.AssignedClientID}
	if p.ReceiveMaximum != nil {
		a.receiveMax = *p.ReceiveMaximum
	}
	if p.MaximumQOS != nil {
		a.maxQoS = *p.MaximumQOS
	}
	if p.MaximumPacketSize != nil {
		a.maxPacket = *p.MaximumPacketSize
	}
	no := func(b *byte) bool { return b != nil && *b == 0 }
	a.retain, a.wildcard, a.shared = !no(p.RetainAvailable), !no(p.WildcardSubAvailable), !no(p.SharedSubAvailable)
	return a
}

func message5(c *v5.Publish) (*Message, error) {
	p := c.Properties
	m := &Message{Topic: c.Topic, Payload: c.Payload, QoS: c.QoS, Retain: c.Retain, Properties: Properties{
		Expiry: p.MessageExpiry, ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, Correlation: p.CorrelationData}}
	if p.PayloadFormat != nil {
		if *p.PayloadFormat > 1 {
			return nil, breach(codeProtocol, "payload format indicator %d", *p.PayloadFormat)
		}
		m.UTF8 = *p.PayloadFormat == 1
	}
	for _, u := range p.User {
		m.User = append(m.User, UserProperty{u.Key, u.Value})
	}
	return m, nil
}

// encoder writes packets of a version.
type encoder struct {
	version byte
	buf     *bytes.Buffer
}

// properties5 is the other way of message5.
func (m *Message) properties5() *v5.Properties {
	p := &v5.Properties{MessageExpiry: m.Expiry, ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.Correlation}
	if m.UTF8 {
		one := byte(1)
		p.PayloadFormat = &one
	}
	for _, u := range m.User {
		p.User = append(p.User, v5.User{Key: u.Key, Value: u.Value})
	}
	return p
}

// publish writes a message, if it is not larger than limit (0: as the protocol has it).
func (e encoder) publish(m *Message, id uint16, dup bool, limit uint32) error {
	if limit == 0 {
		limit = 1<<28 + 4 // the codec panics beyond what a remaining length can say
	}
	if n := e.publishSize(m); uint64(n) > uint64(limit) {
		return &Refused{What: "publish", Code: codeTooLarge, Text: fmt.Sprintf("%d bytes; it takes %d", n, limit)}
	}
	if e.version == V5 {
		return write5(e.buf, &v5.Publish{Topic: m.Topic, Payload: m.Payload, PacketID: id, QoS: m.QoS, Duplicate: dup, Retain: m.Retain, Properties: m.properties5()})
	}
	return e.publish3(m, id, dup)
}

// publishSize is the most that a PUBLISH takes on the wire.
func (e encoder) publishSize(m *Message) int {
	n := 5 + 2 + len(m.Topic) + 2 + len(m.Payload)
	if e.version != V5 {
		return n
	}
	n += 4 + 2 + 5
	if m.ContentType != "" {
		n += 3 + len(m.ContentType)
	}
	if m.ResponseTopic != "" {
		n += 3 + len(m.ResponseTopic)
	}
	if len(m.Correlation) > 0 {
		n += 3 + len(m.Correlation)
	}
	for _, u := range m.User {
		n += 5 + len(u.Key) + len(u.Value)
	}
	return n
}

// packet5 is a packet that can write itself.
func write5(buf *bytes.Buffer, p v5.Packet) error {
	_, err := p.WriteTo(buf)
	return err
}

// answer writes PUBACK, PUBREC, PUBREL or PUBCOMP: two bytes of packet id, in MQTT
// 5 the code where it is not success. The codecs allocate several times for these
// four bytes, of which each message takes up to four.
func (e encoder) answer(kind byte, id uint16, code byte) {
	first := kind << 4
	if kind == typePubrel {
		first |= 2
	}
	if e.version != V5 || code == codeSuccess {
		e.buf.Write([]byte{first, 2, byte(id >> 8), byte(id)})
		return
	}
	e.buf.Write([]byte{first, 3, byte(id >> 8), byte(id), code})
}

func (e encoder) ping() { e.buf.Write([]byte{typePingreq << 4, 0}) }

// disconnect takes leave.
func (e encoder) disconnect(code byte) {
	if e.version != V5 || code == codeSuccess {
		e.buf.Write([]byte{typeDisconnect << 4, 0})
		return
	}
	e.buf.Write([]byte{typeDisconnect << 4, 1, code})
}

func (e encoder) subscribe(id uint16, subs []Subscription) error {
	if e.version != V5 {
		return e.subscribe3(id, subs)
	}
	p := &v5.Subscribe{PacketID: id, Properties: &v5.Properties{}}
	for _, s := range subs {
		p.Subscriptions = append(p.Subscriptions, v5.SubOptions{Topic: s.Filter, QoS: s.QoS, NoLocal: s.NoLocal,
			RetainAsPublished: s.RetainAsPublished, RetainHandling: s.RetainHandling})
	}
	return write5(e.buf, p)
}

func (e encoder) unsubscribe(id uint16, filters []string) error {
	if e.version != V5 {
		return e.unsubscribe3(id, filters)
	}
	return write5(e.buf, &v5.Unsubscribe{PacketID: id, Topics: filters, Properties: &v5.Properties{}})
}

// connect writes CONNECT.
func (e encoder) connect(cfg *Config, as identity) error {
	keepAlive := uint16(cfg.KeepAlive.Seconds())
	if e.version != V5 {
		return e.connect3(cfg, as, keepAlive)
	}
	var aliases uint16
	p := &v5.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: as.clientID, CleanStart: as.clean, KeepAlive: keepAlive,
		Username: cfg.Username, UsernameFlag: cfg.Username != "", Password: []byte(cfg.Password), PasswordFlag: cfg.Password != "",
		Properties: &v5.Properties{ReceiveMaximum: &cfg.ReceiveMaximum, MaximumPacketSize: &cfg.MaxPacket, TopicAliasMaximum: &aliases}}
	if as.keep {
		expiry := cfg.expiry()
		p.Properties.SessionExpiryInterval = &expiry
	}
	if will := as.will; will != nil {
		p.WillFlag, p.WillTopic, p.WillMessage, p.WillQOS, p.WillRetain = true, will.Topic, will.Payload, will.QoS, will.Retain
		p.WillProperties = will.properties5()
	}
	return write5(e.buf, p)
}

// looksLike3 says whether a CONNACK is one of MQTT 3.1.1, which has no properties.
func (f *frame) looksLike3() bool { return f.kind == typeConnack && len(f.body) == 2 }
