package link

import (
	"fmt"
	"io"
	"net/http"
	"sync"
)

// liveAnswer is what a handler of live requests writes its answer to. A header that
// is larger than HTTP/2 lets pass would end the whole connection at the other end.
type liveAnswer struct {
	http.ResponseWriter
	rc      *http.ResponseController
	decided bool // the header is
	err     error
}

// Unwrap is for http.ResponseController.
func (w *liveAnswer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *liveAnswer) WriteHeader(code int) {
	if w.decided {
		return
	}
	size := headerSize(w.Header())
	switch informational := code < 200; {
	case size <= liveHeaderMax && informational:
		w.ResponseWriter.WriteHeader(code)
		return
	case informational:
		return // whoever sends it can do without
	case size > liveHeaderMax:
		w.err = fmt.Errorf("live answer: %w: %d bytes, at most %d", ErrHeaderTooLarge, size, liveHeaderMax)
		clear(w.Header())
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		code = http.StatusBadGateway
	}
	w.decided = true
	w.ResponseWriter.WriteHeader(code)
	if w.err != nil {
		_, _ = io.WriteString(w.ResponseWriter, w.err.Error()) // the handler learns of it by w.err
	}
}

func (w *liveAnswer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.err != nil {
		return 0, w.err
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom is for io.Copy. Each write of a handler is a round between three
// goroutines of net/http, so large ones are quicker.
func (w *liveAnswer) ReadFrom(src io.Reader) (int64, error) {
	buf := answerBuffers.Get().(*[answerChunk]byte)
	defer answerBuffers.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{w}, src, buf[:])
}

const answerChunk = 4 * peerFrame

var answerBuffers = sync.Pool{New: func() any { return new([answerChunk]byte) }}

// FlushError is for http.ResponseController.
func (w *liveAnswer) FlushError() error {
	w.WriteHeader(http.StatusOK)
	return w.rc.Flush()
}

func (w *liveAnswer) Flush() { _ = w.FlushError() } // the next Write tells

// serveLive serves a live request of a peer.
func (l *Links) serveLive(w http.ResponseWriter, r *http.Request) {
	a := &liveAnswer{ResponseWriter: w, rc: http.NewResponseController(w)}
	l.mux.ServeHTTP(a, r)
	a.WriteHeader(http.StatusOK)
	clear(w.Header()) // what is added later would become a trailer, unchecked
}
