package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"sync"

	"github.com/yggate/yggate/federation"
)

// livePrefix is where the endpoints for live requests are.
const livePrefix = "/v1/http/"

// liveHeaderMax leaves room for the fields that HTTP/2 and net/http add.
const liveHeaderMax = peerHeader - 512

// ErrHeaderTooLarge says that a header is more than the link carries, which is
// 15.5 KiB, counting for each field name, value and 32 bytes.
var ErrHeaderTooLarge = errors.New("the header is too large for the link")

// RoundTrip sends a live request to a peer and returns its answer. Of req.URL only
// the path, which must be below /v1/http/, and the query count, and the path
// reaches the handler that the peer has added by Handle: what must arrive byte for
// byte belongs into a header. The method, the header and the body pass as they are,
// except for the header fields that are a connection's own (RFC 9110 §7.6.1) and
// trailers.
//
// Bodies stream both ways and may do so at once. Cancelling ctx or closing the
// answer's body resets the stream, which the handler sees as the end of its
// context. The caller must close the answer's body. The body of req is closed in
// any case, maybe after RoundTrip has returned, and also while it is being read.
//
// Errors, also of the answer's body, wrap
//   - federation.ErrPeerDown, when the link is down, or goes down before the answer
//     is complete. Whether the peer has acted on the request is then not known;
//   - ErrBusy, when too many requests to the peer wait, or ctx has ended
//     while this one did;
//   - ErrHeaderTooLarge;
//   - the error of ctx, or that of the body of req.
func (l *Links) RoundTrip(ctx context.Context, peer federation.GridID, req *http.Request) (*http.Response, error) {
	closeBody := func() {
		if req.Body != nil {
			req.Body.Close()
		}
	}
	head, err := liveHeader(req)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		closeBody()
		return nil, err
	}
	s, err := l.session(ctx, peer)
	if err != nil {
		closeBody()
		return nil, err
	}
	c, err := s.place(ctx)
	if err != nil {
		closeBody()
		return nil, fmt.Errorf("live request: %w", err)
	}
	return c.roundTrip(ctx, req, head)
}

// liveHeader returns the header of req as it goes over the link.
func liveHeader(req *http.Request) (http.Header, error) {
	if req.URL == nil || !strings.HasPrefix(req.URL.Path, livePrefix) {
		return nil, fmt.Errorf("live request: the path of %v is not below %s", req.URL, livePrefix)
	}
	h := req.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	for _, names := range h["Connection"] {
		for name := range strings.SplitSeq(names, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	// "Connection: close" would end the whole session.
	for _, name := range []string{"Connection", "Proxy-Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"} {
		h.Del(name)
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // otherwise net/http adds its own
	}
	if size := len(req.URL.RequestURI()) + headerSize(h); size > liveHeaderMax {
		return nil, fmt.Errorf("live request: %w: %d bytes, at most %d", ErrHeaderTooLarge, size, liveHeaderMax)
	}
	return h, nil
}

// headerSize is how large HTTP/2 says that a header is (RFC 9113 §6.5.2).
func headerSize(h http.Header) int {
	size := 0
	for name, values := range h {
		for _, v := range values {
			size += len(name) + len(v) + 32
		}
	}
	return size
}

// live is a request under way.
type live struct {
	conn   *liveConn
	caller context.Context
	ctx    context.Context // ends with the request
	cancel context.CancelFunc
}

// roundTrip sends a request that has a place, which it gives back when all is over.
func (c *liveConn) roundTrip(ctx context.Context, req *http.Request, head http.Header) (*http.Response, error) {
	x := &live{conn: c, caller: ctx}
	x.ctx, x.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, x.cancel)
	at := *req.URL
	at.Scheme, at.Host, at.User, at.Opaque = "https", authority, nil, ""
	out := (&http.Request{Method: req.Method, URL: &at, Header: head, ContentLength: req.ContentLength}).WithContext(x.ctx)
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = x.upload(req.Body)
	}
	res, err := c.cc.RoundTrip(out)
	var body io.ReadCloser = http.NoBody
	if err == nil {
		body = res.Body
	}
	context.AfterFunc(x.ctx, func() {
		stop()
		body.Close() // gives the connection's window back, also when the caller forgets to
		// HTTP/2 works on a request that was given up until it can write. Nothing is
		// written here, but only after what is being written: an error says that there
		// is nothing to wait for.
		_, _ = c.tls.Write(nil)
		c.leave()
	})
	if err != nil {
		x.cancel()
		return nil, x.explain(err)
	}
	res.Body = &download{body, x}
	res.Request = req
	return res, nil
}

var errRequestBody = errors.New("read the body of the request")

// explain says why a request has failed, for its caller.
func (x *live) explain(err error) error {
	var broken net.Error
	switch {
	case x.caller.Err() != nil:
		return fmt.Errorf("live request: %w", x.caller.Err())
	case x.conn.ctx.Err() != nil:
		return fmt.Errorf("live request: %w: %w", federation.ErrPeerDown, context.Cause(x.conn.ctx))
	case x.conn.cc.Err() != nil:
		return fmt.Errorf("live request: %w: %w", federation.ErrPeerDown, err)
	case errors.Is(err, errRequestBody):
		return fmt.Errorf("live request: %w", err)
	case errors.As(err, &broken): // the connection's, and it will know in a moment
		return fmt.Errorf("live request: %w: %w", federation.ErrPeerDown, err)
	}
	return fmt.Errorf("live request: %w", err)
}

// download is the body of an answer.
type download struct {
	io.ReadCloser
	x *live
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil {
		if err != io.EOF {
			err = d.x.explain(err)
		}
		d.x.cancel()
	}
	return n, err
}

func (d *download) Close() error {
	d.x.cancel()
	return d.ReadCloser.Close()
}

var uploadBuffers = sync.Pool{New: func() any { return new([peerFrame]byte) }}

// upload returns what HTTP/2 reads in place of the body of a request. A read of
// that body may last, and its Close wait for the read, as with those of net/http's
// server: neither may delay the end of the request.
func (x *live) upload(body io.ReadCloser) io.ReadCloser {
	r, w := io.Pipe()
	closeBody := sync.OnceFunc(func() { body.Close() })
	stop := context.AfterFunc(x.ctx, closeBody)
	go func() {
		defer closeBody()
		defer stop()
		buf := uploadBuffers.Get().(*[peerFrame]byte)
		defer uploadBuffers.Put(buf)
		for {
			n, err := body.Read(buf[:])
			if n > 0 {
				if _, err := w.Write(buf[:n]); err != nil {
					return // HTTP/2 wants no more
				}
			}
			switch {
			case err == io.EOF:
				w.Close()
				return
			case err != nil:
				w.CloseWithError(fmt.Errorf("%w: %w", errRequestBody, err))
				return
			}
		}
	}()
	return r
}
