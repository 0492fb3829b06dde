package matrix

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"maunium.net/go/mautrix"
)

// What is answered when it is not the asker's fault. The standard has no code for
// these; homeservers look at the status: all of them make them try again later.
var (
	// errPeerDown: the link is down, or was lost under the request.
	errPeerDown = mautrix.MUnknown.WithStatus(http.StatusGatewayTimeout)
	// errHomeserver: the homeserver behind the peer's gateway, or behind this one,
	// cannot be reached or does not answer as one.
	errHomeserver = mautrix.MUnknown.WithStatus(http.StatusBadGateway)
)

// errTooLarge ends a body that turned out to be larger than allowed.
var errTooLarge = errors.New("the body is larger than allowed")

// respond makes an answer with a text for the operator of the homeserver.
func respond(e mautrix.RespError, text string) *mautrix.RespError {
	e = e.WithMessage("%s", text)
	return &e
}

// tooMany is M_LIMIT_EXCEEDED with when to try again, for those who read either
// form of it.
func tooMany(after time.Duration, text string) mautrix.RespError {
	e := mautrix.MLimitExceeded.WithMessage(text)
	after = max(after, time.Second)
	e.ExtraData = map[string]any{"retry_after_ms": after.Milliseconds()}
	e.ExtraHeader = map[string]string{"Retry-After": strconv.Itoa(int((after + time.Second - 1) / time.Second))}
	return e
}
