package mqtt

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// envelopeVersion is that of the items. Others are refused.
const envelopeVersion = 1

const (
	// maxPath is through how many grids a message may go.
	maxPath = 16
	// maxUser bounds the names and values of user properties in a message, together.
	maxUser = 4096
	// maxOrigin bounds what names a message among all grids, in bytes.
	maxOrigin = 32
)

// kind is what an envelope is about.
type kind uint64

const (
	kindPublish kind = iota
	// kindReply is for a response topic that the peer was told of.
	kindReply
	// kindImports tells a digest of what is imported from the peer, so that it sends
	// its retained messages anew when that has changed. It goes over lane.Eph alone.
	kindImports
)

// Flags of an envelope.
const (
	flagRetain uint64 = 1 << iota
	// flagState: not a message that was just published, but what is retained.
	flagState
	flagUTF8
	flagExpiry
)

// envelope is the Body of an item: a message on its way to another grid. The keys are
// small integers and absent ones are zero, so that later versions can add to it.
type envelope struct {
	Version uint64 `cbor:"1,keyasint"`
	Kind    kind   `cbor:"2,keyasint,omitempty"`
	Topic   string `cbor:"3,keyasint,omitempty"`
	Payload []byte `cbor:"4,keyasint,omitempty"`
	QoS     byte   `cbor:"5,keyasint,omitempty"`
	Flags   uint64 `cbor:"6,keyasint,omitempty"`
	// Expiry is in seconds from lane.Item.At, with flagExpiry.
	Expiry      uint32   `cbor:"7,keyasint,omitempty"`
	ContentType string   `cbor:"8,keyasint,omitempty"`
	Response    string   `cbor:"9,keyasint,omitempty"`
	Correlation []byte   `cbor:"10,keyasint,omitempty"`
	User        []string `cbor:"11,keyasint,omitempty"` // names and values in turn
	// Path are the ids of the grids that had the message, its own first, the sender's
	// last.
	Path []string `cbor:"12,keyasint,omitempty"`
	// Origin names the message among all grids.
	Origin []byte `cbor:"13,keyasint,omitempty"`
}

var (
	envelopeEnc = must(cbor.EncOptions{}.EncMode())
	envelopeDec = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 4, MaxArrayElements: maxUser, MaxMapPairs: 16, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

// must is for options that are constant and known to be valid.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// errNoItem is a message that no item can hold.
var errNoItem = errors.New("the message is too large to cross")

// encode packs an envelope that check accepts.
func (e *envelope) encode() ([]byte, error) {
	e.Version = envelopeVersion
	if err := e.check(); err != nil {
		return nil, err
	}
	raw, err := envelopeEnc.Marshal(e)
	if err == nil && len(raw) > lane.MaxBody {
		err = errNoItem
	}
	return raw, err
}

// decodeEnvelope unpacks an item of a peer, and checks what of it can be checked
// without knowing the peer.
func decodeEnvelope(raw []byte) (*envelope, error) {
	e := &envelope{}
	if err := envelopeDec.Unmarshal(raw, e); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	if e.Version != envelopeVersion {
		return nil, fmt.Errorf("decode message: version %d, want %d", e.Version, envelopeVersion)
	}
	if err := e.check(); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return e, nil
}

func (e *envelope) check() error {
	switch {
	case e.Kind > kindImports:
		return fmt.Errorf("kind %d is not known", e.Kind)
	case e.QoS > 2:
		return fmt.Errorf("QoS %d does not exist", e.QoS)
	case e.Flags >= flagExpiry<<1:
		return fmt.Errorf("flags %#x are not known", e.Flags)
	case len(e.Origin) > maxOrigin:
		return fmt.Errorf("origin of %d bytes, at most %d", len(e.Origin), maxOrigin)
	case len(e.User) > maxUser || len(e.User)%2 != 0:
		return fmt.Errorf("%d names and values of user properties, at most %d and as many of each", len(e.User), maxUser)
	}
	if e.Kind == kindImports {
		return nil
	}
	if err := topic.CheckName(e.Topic); err != nil {
		return err
	}
	if topic.Reserved(e.Topic) {
		return fmt.Errorf("topic %.80q is the broker's own", e.Topic)
	}
	if len(e.Path) > maxPath {
		return fmt.Errorf("path of %d grids, at most %d", len(e.Path), maxPath)
	}
	for _, id := range e.Path {
		if _, err := federation.ParseGridID(id); err != nil {
			return fmt.Errorf("path: %w", err)
		}
	}
	if e.Response != "" {
		if err := topic.CheckName(e.Response); err != nil {
			return fmt.Errorf("response: %w", err)
		}
	}
	return nil
}

func (e *envelope) has(flag uint64) bool { return e.Flags&flag != 0 }

// envelopeOf packs what of a message crosses. Topic and path are the caller's.
func envelopeOf(m *session.Message, user []session.UserProperty) envelope {
	e := envelope{
		Payload: m.Payload, QoS: m.QoS, ContentType: m.ContentType, Response: m.ResponseTopic, Correlation: m.Correlation,
	}
	if m.UTF8 {
		e.Flags |= flagUTF8
	}
	if m.Expiry != nil {
		e.Flags |= flagExpiry
		e.Expiry = *m.Expiry
	}
	for _, u := range user {
		e.User = append(e.User, u.Key, u.Value)
	}
	return e
}

// message is what an envelope says, but for topic, QoS, retaining and expiry, which
// are decided where it arrives.
func (e *envelope) message() *session.Message {
	m := &session.Message{Payload: e.Payload}
	m.UTF8, m.ContentType, m.Correlation = e.has(flagUTF8), e.ContentType, e.Correlation
	for i := 0; i+1 < len(e.User); i += 2 {
		m.User = append(m.User, session.UserProperty{Key: e.User[i], Value: e.User[i+1]})
	}
	return m
}

// convOf is the conversation of a topic: its own, so that order is kept within it.
func convOf(name string) string {
	if len(name) <= lane.MaxConv {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return string(b64(sum[:]))
}

// contentHash tells retained messages apart, whatever their topic and QoS.
func (e *envelope) contentHash() []byte {
	h := sha256.New()
	part := func(b string) { fmt.Fprintf(h, "%d:%s", len(b), b) }
	fmt.Fprintf(h, "%d,", e.Flags&(flagUTF8|flagRetain))
	part(string(e.Payload))
	part(e.ContentType)
	part(e.Response)
	part(string(e.Correlation))
	for _, s := range e.User {
		part(s)
	}
	return h.Sum(nil)[:16]
}
