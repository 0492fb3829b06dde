package lane

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"

	"github.com/yggate/yggate/federation"
)

// Bounds of one item. They hold on both sides: Send refuses what exceeds them
// and a receiver ends the stream of a peer that does not keep them.
const (
	MaxBody = 1 << 20 // bytes of Item.Body
	MaxID   = 64      // bytes of Item.ID
	MaxConv = 3072    // bytes of Item.Conv, the longest JID there is (RFC 7622 §3.1)

	maxCode    = 64   // bytes of Refusal.Code
	maxText    = 1024 // bytes of Refusal.Text
	maxRefused = 16   // refusals in one ack

	// What a reader buffers at most for one message: the bounds above and the
	// few bytes of CBOR heads around them.
	maxFrame = MaxBody + MaxID + MaxConv + 256
	maxAck   = maxRefused*(maxCode+maxText+64) + 256

	// maxPieces is how often a message may be looked at before it is complete.
	// Each look begins anew, so that bytes sent one by one would cost most. What
	// gateways send comes in pieces of 4 KiB and more.
	maxPieces = 1024
)

// frame is one item on the wire. The keys are small integers and absent ones are
// zero, so that later versions can add to it. Epoch, PrevEpoch, PrevSeq and At
// belong to the durable lanes, whose streams begin with a frame that has only an
// Epoch.
type frame struct {
	Epoch     uint64 `cbor:"1,keyasint,omitempty"`
	Seq       uint64 `cbor:"2,keyasint,omitempty"`
	PrevEpoch uint64 `cbor:"3,keyasint,omitempty"`
	PrevSeq   uint64 `cbor:"4,keyasint,omitempty"`
	ID        []byte `cbor:"5,keyasint,omitempty"`
	Kind      uint64 `cbor:"6,keyasint,omitempty"`
	Conv      string `cbor:"7,keyasint,omitempty"`
	Expires   int64  `cbor:"8,keyasint,omitempty"` // Unix milliseconds
	Body      []byte `cbor:"9,keyasint,omitempty"`
	At        int64  `cbor:"10,keyasint,omitempty"` // Unix milliseconds
}

// ack says that every frame up to Seq was delivered, except the ones in Refused;
// on a durable lane, that every one up to Epoch and Seq was taken.
type ack struct {
	Epoch     uint64    `cbor:"1,keyasint,omitempty"`
	Seq       uint64    `cbor:"2,keyasint,omitempty"`
	SafeEpoch uint64    `cbor:"3,keyasint,omitempty"`
	SafeSeq   uint64    `cbor:"4,keyasint,omitempty"`
	Window    uint64    `cbor:"5,keyasint,omitempty"`
	Refused   []refused `cbor:"6,keyasint,omitempty"`
}

// refused is a Refusal of one frame.
type refused struct {
	Seq  uint64 `cbor:"1,keyasint"`
	Code string `cbor:"2,keyasint"`
	Text string `cbor:"3,keyasint,omitempty"`
}

// Kinds on the wire. A number costs the receiver no allocation.
var (
	kindNumber = map[federation.Protocol]uint64{federation.XMPP: 1, federation.Matrix: 2, federation.MQTT: 3}
	kindName   = []federation.Protocol{1: federation.XMPP, 2: federation.Matrix, 3: federation.MQTT}
)

var (
	encMode = must(cbor.EncOptions{}.UserBufferEncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:   cbor.DupMapKeyEnforcedAPF,
		IndefLength: cbor.IndefLengthForbidden,
		TagsMd:      cbor.TagsForbidden,
		// As little as the library can be held to: a look at a message costs no
		// more than what these let it hold.
		MaxNestedLevels:  4,
		MaxArrayElements: maxRefused,
		MaxMapPairs:      16,
	}.DecMode())
)

// must is for options that are constant and known to be valid.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func appendMessage(buf *bytes.Buffer, v any) error {
	return encMode.MarshalToBuffer(v, buf)
}

// errTooLarge is a message that does not fit the reader's bound.
var errTooLarge = errors.New("message larger than the limit")

// reader cuts a CBOR sequence (RFC 8742) into messages. It buffers no more than
// one message of the largest allowed size, whatever lengths the bytes claim.
type reader struct {
	src        io.Reader
	buf        []byte
	start, end int
	max        int
	// reads counts reads of src; it changes between batches.
	reads uint64
	looks int // at the message that is not complete yet
}

const readerBuffer = 16 << 10

func newReader(src io.Reader, limit int) *reader {
	return &reader{src: src, buf: make([]byte, readerBuffer), max: limit}
}

// next decodes the next message into v, a pointer to a zero value. It returns
// io.EOF when the stream ends between two messages.
func (r *reader) next(v any) error {
	for {
		if ok, err := r.buffered(v); ok || err != nil {
			return err
		}
		if err := r.fill(); err != nil {
			if errors.Is(err, io.EOF) && r.start < r.end {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// buffered is next for a message that has been read whole; false: it has not.
func (r *reader) buffered(v any) (bool, error) {
	pending := r.buf[r.start:r.end]
	if len(pending) == 0 {
		return false, nil
	}
	rest, err := decMode.UnmarshalFirst(pending, v)
	if err == nil {
		r.start = r.end - len(rest)
		r.looks = 0
		return true, nil
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("decode message: %w", err)
	}
	if len(pending) >= r.max {
		return false, fmt.Errorf("decode message: %w of %d bytes", errTooLarge, r.max)
	}
	if r.looks++; r.looks > maxPieces {
		return false, fmt.Errorf("decode message: came in more than %d pieces", maxPieces)
	}
	return false, nil
}

// fill reads once, making room first.
func (r *reader) fill() error {
	switch {
	case r.start == r.end:
		r.start, r.end = 0, 0
		if len(r.buf) > readerBuffer { // a large message went through; do not keep its room
			r.buf = make([]byte, readerBuffer)
		}
	case r.end == len(r.buf) && r.start > 0:
		r.end = copy(r.buf, r.buf[r.start:r.end])
		r.start = 0
	case r.end == len(r.buf):
		bigger := make([]byte, min(2*len(r.buf), r.max))
		copy(bigger, r.buf[:r.end])
		r.buf = bigger
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.reads++
	r.end += n
	if n > 0 {
		return nil // what came with an error is looked at first; the error comes again
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// check enforces the bounds that the decoder cannot know.
func (f *frame) check() error {
	switch {
	case len(f.Body) > MaxBody:
		return fmt.Errorf("frame %d: body of %d bytes, at most %d", f.Seq, len(f.Body), MaxBody)
	case len(f.ID) > MaxID:
		return fmt.Errorf("frame %d: id of %d bytes, at most %d", f.Seq, len(f.ID), MaxID)
	case len(f.Conv) > MaxConv:
		return fmt.Errorf("frame %d: conversation of %d bytes, at most %d", f.Seq, len(f.Conv), MaxConv)
	}
	return nil
}

func (a *ack) check() error {
	for _, r := range a.Refused {
		if len(r.Code) > maxCode || len(r.Text) > maxText {
			return fmt.Errorf("ack %d: refusal of %d: code or text too long", a.Seq, r.Seq)
		}
	}
	return nil
}
