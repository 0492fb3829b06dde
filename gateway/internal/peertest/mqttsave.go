package peertest

import (
	"context"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// KeepSaving makes the broker write its database again and again until ctx is done.
// By itself mosquitto 2.0 counts no message that is in flight to a client as a change to
// be saved, and forgets it when it is killed though it has acknowledged it; a retained
// message is one.
func (m *Mosquitto) KeepSaving(ctx context.Context) {
	for ctx.Err() == nil {
		if w, err := dialMQTT(ctx, m.MQTT, "", MQTTLogin{}); err == nil {
			stop := context.AfterFunc(ctx, func() { w.Close() })
			for err == nil {
				err = w.publish(&packets.Publish{Topic: "tick", QoS: 1, Retain: true, PacketID: 1, Payload: []byte("x"), Properties: &packets.Properties{}})
				if err == nil {
					_, err = packets.ReadPacket(w)
				}
			}
			stop()
			w.Close()
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
