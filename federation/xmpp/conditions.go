package xmpp

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// cause is why a stanza goes back: a stanza error of RFC 6120 §8.3.
type cause struct {
	kind      string // the error type, §8.3.2
	condition string // §8.3.3
	text      string // for people
}

// The conditions of RFC 6120 §8.3.3 and the error type that each has here. Most
// are as the RFC suggests. Its "auth" asks a client for credentials, which would
// mend nothing between two grids, so that those are "cancel".
var errorTypes = map[string]string{
	"bad-request":             "modify",
	"conflict":                "cancel",
	"feature-not-implemented": "cancel",
	"forbidden":               "cancel",
	"gone":                    "cancel",
	"internal-server-error":   "cancel",
	"item-not-found":          "cancel",
	"jid-malformed":           "modify",
	"not-acceptable":          "modify",
	"not-allowed":             "cancel",
	"not-authorized":          "cancel",
	"policy-violation":        "modify",
	"recipient-unavailable":   "wait",
	"redirect":                "modify",
	"registration-required":   "cancel",
	"remote-server-not-found": "cancel",
	"remote-server-timeout":   "wait",
	"resource-constraint":     "wait",
	"service-unavailable":     "cancel",
	"subscription-required":   "cancel",
	"undefined-condition":     "cancel",
	"unexpected-request":      "wait",
}

func newCause(condition, text string) cause {
	kind, ok := errorTypes[condition]
	if !ok { // what a peer says is not trusted to be a condition
		condition, kind = "undefined-condition", errorTypes["undefined-condition"]
	}
	return cause{kind, condition, text}
}

// maxText bounds the text of a peer that is passed on, in bytes.
const maxText = 512

func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxText {
		return s
	}
	s = s[:maxText]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// causeOutward says, to a user of this grid, why a stanza did not reach the peer
// that holds domain.
func causeOutward(domain string, p *federation.Peer, err error) cause {
	var no *lane.Refusal
	switch {
	case errors.As(err, &no):
		return newCause(no.Code, "refused by the gateway of "+domain+": "+clip(no.Text))
	case errors.Is(err, federation.ErrPeerDown):
		return newCause("remote-server-timeout", "the gateway of "+domain+" cannot be reached now")
	case errors.Is(err, federation.ErrUnknownDomain):
		return newCause("remote-server-not-found", "no grid that this one federates with holds "+domain)
	case errors.Is(err, lane.ErrFull):
		return newCause("resource-constraint", "as many messages as may wait for "+domain+" wait already")
	case errors.Is(err, lane.ErrExpired):
		return newCause("remote-server-timeout", "the gateway of "+domain+" could not be reached in time; the message is given up")
	case errors.Is(err, lane.ErrDropped):
		// "service-unavailable" with "cancel": the operator has decided, so that
		// no client should try again by itself (RFC 6120 §8.3.2 and §8.3.3.19).
		return newCause("service-unavailable", "the operator of this grid has taken the message to "+domain+" out of the queue")
	case errors.Is(err, errNotStored):
		return newCause("resource-constraint", "this gateway cannot store messages now")
	case errors.Is(err, federation.ErrPeerNotActive):
		return causeOfState(domain, p)
	case errors.Is(err, federation.ErrNotAllowed):
		return newCause("forbidden", "this grid's policy does not allow XMPP with "+domain)
	case errors.Is(err, errTooLarge), errors.Is(err, errBeyond):
		return newCause("policy-violation", err.Error())
	}
	return newCause("remote-server-timeout", "the gateway gave up on a message to "+domain)
}

func causeOfState(domain string, p *federation.Peer) cause {
	if p == nil {
		return newCause("not-authorized", domain+" is no longer a peer of this grid")
	}
	switch p.State {
	case federation.StatePaused:
		return newCause("service-unavailable", "the operator of this grid has paused the federation with "+domain)
	case federation.StatePending:
		return newCause("not-authorized", "the operator of this grid has not approved "+domain+" yet")
	case federation.StateBlocked:
		return newCause("forbidden", "the operator of this grid has blocked "+domain)
	}
	return newCause("not-authorized", domain+" is no longer a peer of this grid")
}

// causeLocal says, to a user of a peer, that the local server for domain did not
// take a stanza.
func causeLocal(domain string) cause {
	return newCause("remote-server-timeout", "the XMPP server of "+domain+" cannot be reached now")
}

// refuseStream ends a stream of the local server with a condition of RFC 6120
// §4.9.3.
func refuseStream(condition frame.Condition, text string) error {
	return &frame.Error{Condition: condition, Text: text}
}

// errNotStored is wrapped by what is wrong with the store.
var errNotStored = errors.New("the message could not be stored")

// errTooLarge is wrapped by what is said of a stanza beyond Config.Limits.
var errTooLarge = errors.New("the stanza is too large")

// errBeyond is wrapped by what is said of a stanza beyond other limits than its size.
var errBeyond = errors.New("the stanza is beyond the limits of this gateway")
