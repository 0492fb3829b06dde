package mqtt

import (
	"slices"
	"strings"
	"time"
)

// PeerStatus is how things stand with one peer that may use MQTT.
type PeerStatus struct {
	Peer             string
	Exports, Imports int // rules
	// Waiting are messages that wait for the disk here.
	Waiting int
	// Full is since when the queue to the peer has had no room; zero: it has.
	Full time.Time
	// Overflow is what becomes of messages then.
	Overflow string
}

// Peers returns how things stand with each peer that may use MQTT, by name.
func (a *Adapter) Peers() []PeerStatus {
	var all []PeerStatus
	for id, r := range a.rules.Load().peers {
		p := a.peer(id)
		p.mu.Lock()
		all = append(all, PeerStatus{
			Peer: r.name, Exports: len(r.exports), Imports: len(r.order), Waiting: len(p.keep.items), Full: p.full,
			Overflow: string(r.policy.Overflow),
		})
		p.mu.Unlock()
	}
	slices.SortFunc(all, func(x, y PeerStatus) int { return strings.Compare(x.Peer, y.Peer) })
	return all
}

// Item is a message on its way, for people.
type Item struct {
	Topic   string
	QoS     byte
	Retain  bool
	Reply   bool
	Payload []byte
}

// ReadItem reads the body of an item.
func ReadItem(body []byte) (*Item, error) {
	e, err := decodeEnvelope(body)
	if err != nil {
		return nil, err
	}
	return &Item{Topic: e.Topic, QoS: e.QoS, Retain: e.has(flagRetain), Reply: e.Kind == kindReply, Payload: e.Payload}, nil
}
