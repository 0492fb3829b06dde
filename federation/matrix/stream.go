package matrix

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// bodyPatience is how long a homeserver may let a body rest that it sends, or an
// answer that it is sent.
const bodyPatience = time.Minute

// body is the request's body, within its bound in bytes and in time.
func (x *exchange) body() io.ReadCloser {
	x.sent = &requestBody{Reader: x.r.Body, left: x.o.cfg.MaxBody, ctl: http.NewResponseController(x.w)}
	return x.sent
}

// requestBody reads at most left bytes, and waits for each at most bodyPatience.
type requestBody struct {
	io.Reader
	left int64
	ctl  *http.ResponseController

	mu   sync.Mutex
	over bool // the request is answered; the connection may be another's
	read bool // to its end
}

// end has later reads fail. The link may still read when the answer is out.
func (b *requestBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
}

// Close is the link's, which needs no more of it. The rest is for linger to read.
func (b *requestBody) Close() error {
	b.end()
	return nil
}

// whole says whether all of the body was read.
func (b *requestBody) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read
}

// wait sets until when a read may last; zero: for ever.
func (b *requestBody) wait(until time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return http.ErrBodyReadAfterClose
	}
	return b.ctl.SetReadDeadline(until)
}

func (b *requestBody) Read(p []byte) (int, error) {
	if err := b.wait(time.Now().Add(bodyPatience)); err != nil {
		return 0, fmt.Errorf("read the body: %w", err)
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.Reader.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, errTooLarge
	}
	if err == io.EOF {
		b.mu.Lock()
		b.read = true
		b.mu.Unlock()
		// The server itself goes on reading, to learn that the connection has ended.
		if failed := b.wait(time.Time{}); failed != nil {
			return n, fmt.Errorf("read the body: %w", failed)
		}
	}
	return n, err
}

// How much is read of a body after its answer, and for how long.
const (
	lingerBytes = 64 << 20
	lingerFor   = 2 * time.Second
)

// linger reads what is left of the body once the request is answered (RFC 9112 §9.6): the
// homeserver may still be writing it, and if the connection were closed under it, it
// would be told of a reset and not the answer. HTTP/2 closes no connection for that.
func (x *exchange) linger() {
	if x.r.ProtoMajor != 1 || x.r.Body == http.NoBody || x.sent != nil && x.sent.whole() {
		return
	}
	ctl := http.NewResponseController(x.w)
	if ctl.Flush() != nil || ctl.SetReadDeadline(time.Now().Add(x.o.linger)) != nil {
		return // it is gone
	}
	// Whether it ends is the homeserver's affair: it has its answer.
	_, _ = io.CopyN(io.Discard, x.r.Body, lingerBytes)
	_ = ctl.SetReadDeadline(time.Time{})
}

// copy streams an answer's body to the homeserver; flush sends each piece at once.
func (x *exchange) copy(body io.Reader, flush bool) error {
	ctl := http.NewResponseController(x.w)
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := body.Read(buf[:])
		if n > 0 {
			if err := ctl.SetWriteDeadline(time.Now().Add(bodyPatience)); err != nil {
				return err
			}
			if _, err := x.w.Write(buf[:n]); err != nil {
				return err
			}
			if flush {
				if err := ctl.Flush(); err != nil {
					return err
				}
			}
		}
		switch {
		case err == io.EOF:
			return ctl.SetWriteDeadline(time.Time{})
		case err != nil:
			return err
		}
	}
}
