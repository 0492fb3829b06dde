package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// maxRequest bounds the body of a request.
const maxRequest = 1 << 20

type failure struct {
	Error string `json:"error"`
}

// ErrNotFound makes Handle answer 404.
var ErrNotFound = errors.New("not found")

// Handle registers a request whose body is In and whose answer is Out. The body
// is read strictly, an error becomes the answer's text.
func Handle[In, Out any](mux *http.ServeMux, pattern string, do func(r *http.Request, in In) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		var in In
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
			answer(w, http.StatusBadRequest, failure{"read request: " + err.Error()})
			return
		}
		out, err := do(r, in)
		switch {
		case errors.Is(err, ErrNotFound):
			answer(w, http.StatusNotFound, failure{err.Error()})
		case errors.Is(err, context.DeadlineExceeded):
			answer(w, http.StatusGatewayTimeout, failure{err.Error()})
		case err != nil:
			answer(w, http.StatusUnprocessableEntity, failure{err.Error()})
		default:
			answer(w, http.StatusOK, out)
		}
	})
}

func answer(w http.ResponseWriter, code int, body any) {
	b, err := json.MarshalIndent(body, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	// A client that went away has no one left to tell.
	_, _ = w.Write(append(b, '\n'))
}
