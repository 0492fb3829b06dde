package s2s

import (
	"errors"
	"io"
	"slices"
	"time"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// flight is what has gone out on one stream and somebody waits for. The mu of the
// outbound guards it.
type flight struct {
	managed bool    // the server acknowledges stanzas (XEP-0198 §4)
	sent    uint32  // stanzas, modulo 2^32
	acked   uint32  // by the server, of these
	hands   []*hand // begun and not ended, in the order of the stream
}

// load notes stanzas that are about to be written: the server may acknowledge them
// before the write returns. ask says that it has to be asked for that.
func (f *flight) load(chunk []item) (ask bool) {
	for _, it := range chunk {
		if h := it.hand; h != nil && !h.ended() {
			if h.written == 0 {
				h.first = f.sent
				f.hands = append(f.hands, h)
			}
			h.written++
			ask = ask || f.managed && h.written == h.size
		}
		f.sent++
	}
	return ask
}

// written notes that they are. What was asked for has so long to be acknowledged.
func (f *flight) written(within time.Duration) {
	for _, h := range f.hands {
		switch {
		case !f.managed:
			h.gain(h.written)
		case h.written == h.size && h.due.IsZero():
			h.due = time.Now().Add(within)
		}
	}
	f.tidy()
}

// ack takes the server's word that it has handled h of the stanzas.
func (f *flight) ack(h uint32) error {
	news := h - f.acked
	if news > f.sent-f.acked {
		return &countError{h, f.sent}
	}
	for _, hd := range f.hands {
		before := hd.first + uint32(hd.had) - f.acked // of the news, what is not hd's
		if news <= before {
			break
		}
		if !hd.ended() { // by its caller
			hd.gain(int(news - before))
		}
	}
	f.acked = h
	f.tidy()
	return nil
}

func (f *flight) tidy() {
	f.hands = slices.DeleteFunc(f.hands, (*hand).ended)
}

// due is when the oldest acknowledgement that was asked for must be there; zero if
// there is none.
func (f *flight) due() time.Time {
	f.tidy()
	if len(f.hands) == 0 {
		return time.Time{}
	}
	return f.hands[0].due
}

// read takes what the server says on a stream that is ours to write, until it ends,
// and says why it did. Stanzas are dropped: the server has streams of its own for
// them.
func (o *outbound) read(st *stream, f *flight) error {
	limits := frame.HandshakeLimits()
	limits.Total = 0 // acknowledgements go on for as long as the stream
	st.rd.SetLimits(limits)
	for {
		b, err := st.rd.Next()
		switch {
		case errors.Is(err, frame.ErrStreamClosed), errors.Is(err, io.EOF):
			return errClosed
		case err != nil:
			return err
		case isStanza(b):
			continue
		}
		el, err := st.rd.Decode(b)
		if err == nil {
			err = o.heard(st, f, el)
		}
		if err != nil {
			return err
		}
	}
}

// heard answers what is no stanza. What is not known here is dropped, too.
func (o *outbound) heard(st *stream, f *flight, el *frame.Element) error {
	switch {
	case el.Is(frame.NSStream, "error"):
		return streamError(el)
	case !f.managed:
	case el.Is(nsSM, "r"):
		return st.write(smAck(0)) // nothing that it sends here is handled
	case el.Is(nsSM, "a"):
		h, err := handledCount(el)
		if err != nil {
			return err
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		return f.ack(h)
	}
	return nil
}
