package peertest

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"net"
	"net/netip"

	"github.com/eclipse/paho.golang/packets"
)

// mqttWire is a connection of MQTT 5 on which packets are read and written one by one.
type mqttWire struct {
	net.Conn
	// present: the broker had kept the session.
	present bool
}

// MQTTLogin is as whom to come to a broker; empty: as nobody.
type MQTTLogin struct{ User, Password string }

// dialMQTT connects. An empty id is a session that ends with the connection, any other
// one that stays.
func dialMQTT(ctx context.Context, broker netip.AddrPort, id string, as MQTTLogin) (*mqttWire, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", broker.String())
	if err != nil {
		return nil, err
	}
	w := &mqttWire{Conn: conn}
	if err := w.greet(ctx, id, as); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to MQTT broker %s: %w", broker, err)
	}
	return w, nil
}

func (w *mqttWire) greet(ctx context.Context, id string, as MQTTLogin) error {
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	hello := packets.NewControlPacket(packets.CONNECT)
	c := hello.Content.(*packets.Connect)
	c.ClientID, c.CleanStart = id, id == ""
	if as.User != "" {
		c.Username, c.UsernameFlag, c.Password, c.PasswordFlag = as.User, true, []byte(as.Password), true
	}
	window := uint16(math.MaxUint16)
	c.Properties.ReceiveMaximum = &window
	if id != "" {
		forever := uint32(math.MaxUint32)
		c.Properties.SessionExpiryInterval = &forever
	}
	if err := w.write(hello); err != nil {
		return err
	}
	p, err := packets.ReadPacket(w)
	if err != nil {
		return err
	}
	a, ok := p.Content.(*packets.Connack)
	if !ok || a.ReasonCode != 0 {
		return fmt.Errorf("answered %v", p)
	}
	w.present = a.SessionPresent
	return nil
}

// write sends a packet in one piece.
func (w *mqttWire) write(p *packets.ControlPacket) error {
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// send sends a packet of one of the types that hold no more than an id.
func (w *mqttWire) send(kind byte, id uint16) error {
	var b bytes.Buffer
	if err := put(&b, kind, id); err != nil {
		return err
	}
	_, err := w.Write(b.Bytes())
	return err
}

// put adds a packet of one of the types that hold no more than an id.
func put(out *bytes.Buffer, kind byte, id uint16) error {
	p := packets.NewControlPacket(kind)
	switch c := p.Content.(type) {
	case *packets.Puback:
		c.PacketID = id
	case *packets.Pubrec:
		c.PacketID = id
	case *packets.Pubrel:
		c.PacketID = id
	case *packets.Pubcomp:
		c.PacketID = id
	}
	_, err := p.WriteTo(out)
	return err
}

// subscribe sends SUBSCRIBE. SUBACK is one of the packets to read.
func (w *mqttWire) subscribe(id uint16, filter string, qos byte) error {
	p := packets.NewControlPacket(packets.SUBSCRIBE)
	c := p.Content.(*packets.Subscribe)
	c.PacketID = id
	c.Subscriptions = []packets.SubOptions{{Topic: filter, QoS: qos}}
	return w.write(p)
}

// publish sends PUBLISH.
func (w *mqttWire) publish(m *packets.Publish) error { return w.write(m.ToControlPacket()) }
