package frame

import (
	"io"
	"slices"
)

const (
	// readSize is how much room a busy stream has for one read.
	readSize = 32 << 10
	// idleSize is the buffer of a stream that says little.
	idleSize = 4 << 10
)

// Reader yields the top-level elements of one direction of an XMPP stream. It
// is not for concurrent use. After an error it gives the same error for ever, unless
// that is a Skipped.
type Reader struct {
	r    io.Reader
	scan scanner
	head []byte // the stream's start tag: it binds namespaces
	name string // of the stream element, as its end tag must have it

	buf   []byte // buf[from:] is read and not yielded
	from  int
	used  int      // bytes consumed under the limits at hand
	ended error    // what the reader below gave, for when the buffer is used up
	err   error    // what was given, or is to be given next
	skip  *skipper // of the element at hand if that is beyond the limits
	spans []span   // of Batch
}

// NewReader reads a stream from r, from its very beginning (call Header first)
// or from just behind an ordinary start tag.
func NewReader(r io.Reader, lim Limits) *Reader {
	rd := &Reader{r: r, head: []byte(plainHead), name: plainName}
	rd.scan.ambient = plainPrefixes
	rd.SetLimits(lim)
	return rd
}

// SetLimits puts other limits in force, with a new Total, from the next element
// on. Call it between elements, when the handshake is over.
func (r *Reader) SetLimits(lim Limits) {
	r.scan.lim = lim.orDefault()
	r.used = 0
}

// SetSource has the stream read from src, which goes on where the reader below has
// left off.
func (r *Reader) SetSource(src io.Reader) { r.r = src }

// Buffered is the number of bytes read and not yielded. It must be zero where a
// handshake changes to TLS: what stands here then was never protected.
func (r *Reader) Buffered() int { return len(r.buf) - r.from }

// Next waits for the next element and returns it. It is part of the buffer and
// true until the next call. Errors are *Error, *Skipped, ErrStreamClosed, those of
// the reader below, io.EOF between elements and io.ErrUnexpectedEOF within one.
func (r *Reader) Next() ([]byte, error) {
	el, err := r.wait()
	return el.of(r.buf), err
}

// NextBuffered returns the next element if the buffer has all of it, without
// waiting; otherwise it is Next.
func (r *Reader) NextBuffered() (element []byte, ok bool, err error) {
	el, err := r.next()
	r.resume()
	return el.of(r.buf), el.to > 0, err
}

// Batch waits for at least one element and returns all that have arrived,
// appended to dst. They share one new buffer, which is the caller's. An error
// behind them comes with the next call.
func (r *Reader) Batch(dst [][]byte) ([][]byte, error) {
	el, err := r.wait()
	if err != nil {
		return dst, err
	}
	r.spans = r.spans[:0]
	for el.to > 0 {
		r.spans = append(r.spans, el)
		el, _ = r.next() // an error is kept and comes with the next call
	}
	// The elements stand side by side, with at most white space between them.
	base := r.spans[0].from
	own := slices.Clone(r.buf[base:r.spans[len(r.spans)-1].to])
	for _, el := range r.spans {
		from, to := el.from-base, el.to-base
		dst = append(dst, own[from:to:to])
	}
	return dst, nil
}

func (r *Reader) wait() (span, error) {
	for {
		el, err := r.next()
		if el.to > 0 || err != nil {
			r.resume()
			return el, err
		}
		r.fill()
	}
}

// next consumes one element of the buffer. The span is empty when there is none.
func (r *Reader) next() (span, error) {
	if r.err != nil {
		return span{}, r.err
	}
	if r.skip != nil {
		return span{}, r.readOver()
	}
	if err := r.skipSpace(); err != nil {
		return span{}, err
	}
	b := r.buf[r.from:]
	if len(b) < 2 {
		return span{}, r.starved()
	}
	if b[1] == '/' {
		return span{}, r.streamEnd(b)
	}
	n, err := r.scan.scan(b)
	switch {
	case err != nil:
		return span{}, r.refuse(err)
	case n == 0:
		return span{}, r.starved()
	}
	r.scan.reset()
	el := span{int32(r.from), int32(r.from + n)}
	r.from += n
	return el, r.spend(n)
}

// skipSpace consumes white-space keepalives (RFC 6120 §4.6.1).
func (r *Reader) skipSpace() error {
	i := r.from
	for i < len(r.buf) && class[r.buf[i]]&space != 0 {
		i++
	}
	n := i - r.from
	r.from = i
	if i < len(r.buf) && r.buf[i] != '<' {
		return r.fail(refuse(BadFormat, "text between stanzas"))
	}
	return r.spend(n)
}

// streamEnd reads the end tag of the stream.
func (r *Reader) streamEnd(b []byte) error {
	b = b[len("</"):]
	n := min(len(b), len(r.name))
	if string(b[:n]) != r.name[:n] {
		return r.fail(refuse(NotWellFormed, "end tag without a start tag"))
	}
	for i, c := range b[n:] {
		switch {
		case c == '>':
			r.from += len("</") + n + i + 1
			return r.fail(ErrStreamClosed)
		case class[c]&space == 0 || i > idleSize:
			return r.fail(refuse(NotWellFormed, "end tag with more than a name"))
		}
	}
	return r.starved()
}

// starved is the error of an empty buffer: none while more may come.
func (r *Reader) starved() error {
	switch {
	case r.ended == io.EOF && r.from < len(r.buf):
		return r.fail(io.ErrUnexpectedEOF)
	case r.ended != nil:
		return r.fail(r.ended)
	}
	return nil
}

func (r *Reader) spend(n int) error {
	r.used += n
	if total := r.scan.lim.Total; total > 0 && r.used > total {
		return r.fail(refuse(PolicyViolation, "more than %d bytes before the handshake was over", total))
	}
	return nil
}

func (r *Reader) fail(err error) error {
	r.err = err
	return err
}

// fill reads once. The buffer holds the element at hand and room for a read. It
// grows with the element, and up to readSize with what comes at a time; it is
// given up after an element that needed more.
func (r *Reader) fill() {
	have := r.Buffered()
	want := cap(r.buf)
	switch {
	case want == 0:
		want = idleSize
	case have == 0 && want > 2*readSize:
		want = readSize
	case have > want/2, len(r.buf) == want && want < readSize:
		want *= 2
	}
	switch {
	case want != cap(r.buf):
		r.buf = append(make([]byte, 0, want), r.buf[r.from:]...)
	case r.from > 0: // not again for each small piece of a large element
		r.buf = r.buf[:copy(r.buf, r.buf[r.from:])]
	}
	r.from = 0
	for range 100 {
		n, err := r.r.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		if r.ended = err; n > 0 || err != nil {
			return
		}
	}
	r.ended = io.ErrNoProgress
}
