package matrix

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync"
)

const (
	// gzipFrom is from what size on JSON is compressed on the link. Below, the
	// time costs more than the bytes.
	gzipFrom = 4 << 10
	// maxUnzipped bounds an answer that came compressed. It is what Synapse takes
	// for the state of a room, which is the largest there is.
	maxUnzipped = 500 << 20
	copyBuffer  = 64 << 10
)

var (
	copyBuffers = sync.Pool{New: func() any { return new([copyBuffer]byte) }}
	gzipWriters = sync.Pool{New: func() any {
		w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // a level that exists
		return w
	}}
)

// isJSON says whether a header announces JSON.
func isJSON(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json"))
}

// newGzipBody compresses what it reads from src, piece by piece.
func newGzipBody(src io.ReadCloser) io.ReadCloser {
	g := &gzipBody{src: src, w: gzipWriters.Get().(*gzip.Writer)}
	g.w.Reset(&g.out)
	return g
}

type gzipBody struct {
	mu  sync.Mutex // Close may come while Read reads
	src io.ReadCloser
	w   *gzip.Writer // nil once it was given back
	out bytes.Buffer
	err error
}

func (g *gzipBody) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.out.Len() == 0 && g.err == nil {
		g.err = g.more()
	}
	if g.out.Len() > 0 {
		return g.out.Read(p)
	}
	return 0, g.err
}

// more compresses the next piece. io.EOF is the end of all.
func (g *gzipBody) more() error {
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	n, err := g.src.Read(buf[:])
	if _, failed := g.w.Write(buf[:n]); failed != nil {
		return failed
	}
	if err == nil {
		return nil
	}
	if err == io.EOF {
		if failed := g.w.Close(); failed != nil {
			return failed
		}
	}
	gzipWriters.Put(g.w)
	g.w = nil
	return err
}

// Close ends a Read that waits.
func (g *gzipBody) Close() error { return g.src.Close() }

// errUnzipped ends what is larger than it may be after decompression.
var errUnzipped = errors.New("larger than allowed after decompression")

// newGunzip undoes gzip and fails after limit bytes.
func newGunzip(src io.Reader, limit int64) (io.Reader, error) {
	z, err := gzip.NewReader(src)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	z.Multistream(false)
	return &gunzip{z, limit}, nil
}

type gunzip struct {
	z    *gzip.Reader
	left int64
}

func (g *gunzip) Read(p []byte) (int, error) {
	n, err := g.z.Read(p)
	if g.left -= int64(n); g.left < 0 {
		return 0, errUnzipped
	}
	return n, err
}

// readAnswer reads the body of an answer from the link, decompressed, of at most
// limit bytes.
func readAnswer(res *http.Response, limit int64) ([]byte, error) {
	body := io.Reader(res.Body)
	switch enc := res.Header.Get("Content-Encoding"); enc {
	case "":
	case "gzip":
		z, err := newGunzip(res.Body, limit)
		if err != nil {
			return nil, err
		}
		body = z
	default:
		return nil, fmt.Errorf("the Content-Encoding %.20q was not asked for", enc)
	}
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = errUnzipped
	}
	return raw, err
}
