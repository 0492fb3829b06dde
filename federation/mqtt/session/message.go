package session

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Message is an application message.
type Message struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
	// UID of a message from the broker: another message has another one, and one
	// at QoS 2 that the broker sends again has the same.
	UID []byte
	Properties
}

// Properties are those of a PUBLISH that belong to the message (MQTT 5 §3.3.2.3).
// Topic aliases and subscription identifiers are of the connection and are not
// among them. MQTT 3.1.1 has none.
type Properties struct {
	// UTF8 says that the payload is UTF-8 (payload format indicator 1).
	UTF8 bool
	// Expiry is in seconds, nil where the message does not expire.
	Expiry        *uint32
	ContentType   string
	ResponseTopic string
	Correlation   []byte
	User          []UserProperty
}

// UserProperty is a name and a value. Names may repeat, and order counts.
type UserProperty struct{ Key, Value string }

// longest is what a length of two bytes can say.
const longest = 65535

// check says what is wrong with a message that is to be published.
func (m *Message) check() error {
	if err := checkTopic(m.Topic); err != nil {
		return fmt.Errorf("topic: %w", err)
	}
	if m.QoS > 2 {
		return fmt.Errorf("QoS %d does not exist", m.QoS)
	}
	return m.Properties.check()
}

func (p *Properties) check() error {
	if p.ResponseTopic != "" {
		if err := checkTopic(p.ResponseTopic); err != nil {
			return fmt.Errorf("response topic: %w", err)
		}
	}
	if err := checkString(p.ContentType); err != nil {
		return fmt.Errorf("content type: %w", err)
	}
	if len(p.Correlation) > longest {
		return fmt.Errorf("correlation data of %d bytes: the longest is %d", len(p.Correlation), longest)
	}
	for _, u := range p.User {
		if err := errors.Join(checkString(u.Key), checkString(u.Value)); err != nil {
			return fmt.Errorf("user property: %w", err)
		}
	}
	return nil
}

// checkTopic is MQTT 5 §4.7 for the topic of a message.
func checkTopic(s string) error {
	if s == "" {
		return errors.New("empty")
	}
	if strings.ContainsAny(s, "+#") {
		return errors.New("has a wildcard")
	}
	return checkString(s)
}

// checkString is MQTT 5 §1.5.4. The codec would cut longer strings off.
func checkString(s string) error {
	switch {
	case len(s) > longest:
		return fmt.Errorf("%d bytes: the longest is %d", len(s), longest)
	case strings.IndexByte(s, 0) >= 0:
		return errors.New("has a NUL")
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	}
	return nil
}

// size is about what a message takes in memory.
func (m *Message) size() int {
	n := len(m.Topic) + len(m.Payload) + len(m.ContentType) + len(m.ResponseTopic) + len(m.Correlation) + 128
	for _, u := range m.User {
		n += len(u.Key) + len(u.Value) + 32
	}
	return n
}
