package matrix

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"maunium.net/go/mautrix"
)

const (
	// A body has senderPatience to come, and more for each slowest bytes a second
	// that have come: over I2P, 16 MiB take their time.
	senderPatience = 30 * time.Second
	slowest        = 4 << 10
	// bodyStep is what is read between two looks at the clock.
	bodyStep = 32 << 10
	// bodyStart is what there is room for at first; most bodies fit.
	bodyStart = 8 << 10
)

var errNoRoom = errors.New("too many bodies")

// inBody is the body of a request from a peer while it is being read. It has to be
// read whole: it is signed.
type inBody struct {
	q     *quota
	most  int64 // bytes that may come
	held  int64 // of q.bodies
	bytes []byte
}

// release gives back what was held. The bytes must not be used any more.
func (b *inBody) release() {
	if b.held > 0 {
		b.q.bodies.Release(b.held)
		b.held = 0
	}
}

// readBody reads the body of a request within all limits. The caller releases it.
func (in *inbound) readBody(w http.ResponseWriter, r *http.Request, q *quota) (*inBody, *mautrix.RespError) {
	b := &inBody{q: q, most: in.cfg.MaxBody}
	encoding := r.Header.Get("Content-Encoding")
	switch {
	case r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0:
		return b, nil
	case r.Method == http.MethodGet:
		return b, respond(mautrix.MBadJSON, "a GET request has no body")
	case encoding != "" && encoding != "gzip":
		return b, respond(mautrix.MUnknown.WithStatus(http.StatusUnsupportedMediaType), fmt.Sprintf("the Content-Encoding %.20q is not known", encoding))
	case r.ContentLength > b.most:
		return b, in.bodyError(r.Context(), errTooLarge)
	}
	if encoding == "" && r.ContentLength > 0 {
		if b.most = r.ContentLength; b.most > bodyFree {
			if e := q.acquire(r.Context(), q.bodies, b.most, "too many large bodies of your grid are under way"); e != nil {
				return b, e
			}
			b.held = b.most
		}
	}
	err := b.fill(http.NewResponseController(w), r.Body, encoding == "gzip", in.patience)
	q.charge(len(b.bytes))
	if err != nil {
		b.bytes = nil
		return b, in.bodyError(r.Context(), err)
	}
	return b, nil
}

// fill reads all of the body, with time limits on the connection.
func (b *inBody) fill(rc *http.ResponseController, src io.Reader, zipped bool, patience time.Duration) (err error) {
	src = &pacedReader{src: src, rc: rc, patience: patience, begun: time.Now()}
	if zipped {
		z, err := gzip.NewReader(src)
		if err != nil {
			return err
		}
		z.Multistream(false)
		src = z
	}
	for err == nil {
		if err = b.grow(); err == nil {
			var n int
			n, err = src.Read(b.bytes[len(b.bytes):min(cap(b.bytes), len(b.bytes)+bodyStep)])
			b.bytes = b.bytes[:len(b.bytes)+n]
		}
	}
	switch {
	case err != io.EOF:
		return err
	case int64(len(b.bytes)) > b.most: // and its end came with the last of it
		return errTooLarge
	}
	// The server itself goes on reading the connection.
	return rc.SetReadDeadline(time.Time{})
}

// grow makes room for more. What is held of the quota follows what is used.
func (b *inBody) grow() error {
	if len(b.bytes) < cap(b.bytes) {
		return nil
	}
	if int64(len(b.bytes)) > b.most {
		return errTooLarge
	}
	// One byte more than may come, to see that it does not. In few steps: what was
	// outgrown is still in memory.
	size := min(max(4*int64(len(b.bytes)), bodyStart), b.most+1)
	if more := size - 1 - b.held; size > bodyFree && more > 0 {
		if !b.q.bodies.TryAcquire(more) {
			return errNoRoom
		}
		b.held += more
	}
	b.bytes = append(make([]byte, 0, size), b.bytes...)
	return nil
}

// bodyError is what a peer is told when its body is not taken.
func (in *inbound) bodyError(ctx context.Context, err error) *mautrix.RespError {
	switch {
	case ctx.Err() != nil:
		return respond(mautrix.MUnknown, "given up: "+ctx.Err().Error())
	case errors.Is(err, errTooLarge):
		return respond(mautrix.MTooLarge, fmt.Sprintf("the body has more than %d bytes, which is matrix.max_body of this grid", in.cfg.MaxBody))
	case errors.Is(err, errNoRoom):
		e := tooMany(placePatience, "too many large bodies of your grid are under way")
		return &e
	case errors.Is(err, os.ErrDeadlineExceeded):
		return respond(mautrix.MUnknown.WithStatus(http.StatusRequestTimeout), "the body came too slowly")
	case errors.Is(err, http.ErrNotSupported):
		return respond(mautrix.MUnknown, "this connection cannot be given deadlines")
	}
	return respond(mautrix.MNotJSON, "the body cannot be read: "+err.Error())
}

// pacedReader has each Read fail that comes later than the pace allows.
type pacedReader struct {
	src      io.Reader
	rc       *http.ResponseController
	patience time.Duration
	begun    time.Time
	n        int64
}

func (p *pacedReader) Read(b []byte) (int, error) {
	if len(b) > bodyStep {
		b = b[:bodyStep]
	}
	until := p.begun.Add(p.patience + time.Duration(p.n)*time.Second/slowest)
	if err := p.rc.SetReadDeadline(until); err != nil {
		return 0, err
	}
	n, err := p.src.Read(b)
	p.n += int64(n)
	return n, err
}
