package s2s

import (
	"container/list"
	"context"
	"errors"
	"net"
	"os"
	"sync"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// waitingRoom bounds unfinished handshakes. When it is full the oldest has to
// go: a real server is through in milliseconds, so those that have waited longest
// are the ones that mean no good, and a newcomer is never kept out by them.
type waitingRoom struct {
	max int
	mu  sync.Mutex
	all list.List // of context.CancelCauseFunc, the oldest first
}

var errCrowded = &frame.Error{Condition: conditionResource, Text: "too many unfinished handshakes"}

// enter returns a context that also ends when newer ones need the place.
func (w *waitingRoom) enter(ctx context.Context) (_ context.Context, leave func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all.Len() >= w.max {
		w.all.Remove(w.all.Front()).(context.CancelCauseFunc)(errCrowded)
	}
	place := w.all.PushBack(cancel)
	return ctx, func() {
		cancel(nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all.Remove(place) // no matter if it is out already
	}
}

// outcome names the end of a handshake in few words, for the metrics.
func outcome(err error) string {
	var told *frame.Error
	var cert *certificateError
	var tlsErr *tlsError
	var remote *RemoteError
	var dial *net.OpError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &cert):
		return "certificate"
	case errors.As(err, &tlsErr):
		return "tls"
	case errors.As(err, &remote):
		return "remote"
	case errors.As(err, &told):
		return string(told.Condition)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, errSASL), errors.Is(err, errInvalidKey):
		return "authentication"
	case errors.As(err, &dial) && dial.Op == "dial":
		return "dial"
	}
	return "closed"
}
