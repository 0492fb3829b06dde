package matrix

import (
	"bytes"
	"maps"
	"net/http"
	"strconv"

	"maunium.net/go/mautrix"
)

// recorder knows what was answered, for metrics.
type recorder struct {
	http.ResponseWriter
	status int
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// refuse answers with an error, with its length, so that it is whole for a homeserver
// that is still writing; see exchange.linger.
func (w *recorder) refuse(e *mautrix.RespError) {
	var whole answerBuffer
	e.Write(&whole)
	maps.Copy(w.Header(), whole.header)
	w.Header().Set("Content-Length", strconv.Itoa(whole.Len()))
	w.WriteHeader(whole.status)
	// It is gone if this fails.
	_, _ = w.Write(whole.Bytes())
}

// answerBuffer is an answer that is written later.
type answerBuffer struct {
	bytes.Buffer
	header http.Header
	status int
}

func (b *answerBuffer) Header() http.Header {
	if b.header == nil {
		b.header = http.Header{}
	}
	return b.header
}

func (b *answerBuffer) WriteHeader(status int) { b.status = status }
