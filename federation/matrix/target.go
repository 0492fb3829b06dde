package matrix

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"maunium.net/go/mautrix"
)

// maxTarget is what a request-target may have, in bytes: it goes over the link as a
// header, beside others. The longest real ones ask for what was before some dozens
// of events, by id.
const maxTarget = 12 << 10

// api is one of the three that servers offer each other.
type api uint8

const (
	apiFederation api = iota
	apiKey
	apiMedia
)

// target is a request-target that may pass.
type target struct {
	raw string // byte for byte, as it was signed
	api api
	// endpoint is the name for metrics, one of a few: that of the standard, without
	// version and parameters, or "other".
	endpoint string
	// signed says that X-Matrix has to prove who asks.
	signed bool
	// room is the room id that an invite, join, knock or leave is about, decoded.
	room string
	// txn is the transaction id of /send, decoded.
	txn string
	// about is the server whose media or keys are asked for, where the path says it,
	// decoded.
	about string
}

// federationEndpoints are those whose name is worth a label. The standard's own
// number of parameters is not checked: what is too many is the homeserver's to
// refuse.
var federationEndpoints = map[string]bool{
	"backfill": true, "event": true, "event_auth": true, "exchange_third_party_invite": true, "get_missing_events": true,
	"hierarchy": true, "media": true, "openid": true, "publicRooms": true, "query": true, "state": true, "state_ids": true,
	"timestamp_to_event": true, "user": true, "version": true,
	endpointSend: true, endpointInvite: true, endpointMakeJoin: true, endpointSendJoin: true, endpointMakeKnock: true,
	endpointSendKnock: true, endpointMakeLeave: true, endpointSendLeave: true,
}

// The endpoints that are told apart elsewhere.
const (
	endpointSend      = "send"
	endpointInvite    = "invite"
	endpointMakeJoin  = "make_join"
	endpointSendJoin  = "send_join"
	endpointMakeKnock = "make_knock"
	endpointSendKnock = "send_knock"
	endpointMakeLeave = "make_leave"
	endpointSendLeave = "send_leave"
	endpointKeyQuery  = "key_query"
	endpointOther     = "other"
)

// parseTarget decides whether a request-target is one of the federation, key and
// media APIs and reads what this package needs of it. The error is
// M_UNRECOGNIZED, or M_TOO_LARGE, and says what is wrong.
//
// It is stricter than the standards on URIs, so that no router, ours, a proxy's or
// the homeserver's, can see another path in it: there are no dot segments, no
// empty ones but the last, no backslashes, nothing that would be a separator after
// being decoded twice; and the segments that choose the endpoint are literal.
func parseTarget(raw string) (target, *mautrix.RespError) {
	t := target{raw: raw}
	if len(raw) > maxTarget {
		e := mautrix.MTooLarge.WithMessage("the request-target has %d bytes, at most %d are allowed", len(raw), maxTarget)
		return t, &e
	}
	if err := checkBytes(raw); err != nil {
		return t, unrecognized(err.Error())
	}
	path, _, _ := strings.Cut(raw, "?")
	segments := strings.Split(path[1:], "/")
	if segments[len(segments)-1] == "" && len(segments) > 1 {
		segments = segments[:len(segments)-1] // some servers write a slash at the end
	}
	for i, s := range segments {
		decoded, err := decodeSegment(s)
		switch {
		case err != nil:
			return t, unrecognized(err.Error())
		case i < 4 && strings.Contains(s, "%"):
			return t, unrecognized("the first segments of the path must be literal")
		}
		segments[i] = decoded
	}
	if len(segments) < 3 || segments[0] != "_matrix" || !t.classify(segments[1], segments[2:]) {
		return t, unrecognized("only the federation, key and media APIs between servers pass")
	}
	return t, nil
}

func unrecognized(text string) *mautrix.RespError { return respond(mautrix.MUnrecognized, text) }

// checkBytes checks the request-target as a whole: origin-form (RFC 9112 §3.2.1)
// of printable ASCII.
func checkBytes(raw string) error {
	if !strings.HasPrefix(raw, "/") {
		return fmt.Errorf("the request-target is no absolute path")
	}
	for i := range len(raw) {
		if c := raw[i]; c <= ' ' || c >= 0x7f || c == '\\' || c == '#' {
			return fmt.Errorf("the request-target has the byte 0x%02x, which must be percent-encoded", c)
		}
	}
	return nil
}

// decodeSegment returns a path segment without its percent-encoding.
func decodeSegment(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("the path has an empty segment")
	}
	d := s
	if strings.Contains(s, "%") {
		var err error
		if d, err = url.PathUnescape(s); err != nil {
			return "", fmt.Errorf("the path has a wrong percent-encoding")
		}
	}
	if d == "." || d == ".." {
		return "", fmt.Errorf("the path has a dot segment")
	}
	if len(d) == len(s) {
		return d, nil // checkBytes has seen it all
	}
	for i := range len(d) {
		switch c := d[i]; {
		case c < ' ' || c == 0x7f || c == '\\':
			return "", fmt.Errorf("the path has an encoded control byte or backslash")
		case c == '/' && !isHashID(d):
			return "", fmt.Errorf("the path has an encoded slash outside of an event id")
		case c == '%' && encodesSeparator(d[i:]):
			return "", fmt.Errorf("the path has a separator that is encoded twice")
		}
	}
	return d, nil
}

// isHashID says whether s is an event id of room version 3: "$" and
// unpadded base64 in the alphabet that has a slash. They are the only ids
// with slashes, and have no dots.
func isHashID(s string) bool {
	rest, ok := strings.CutPrefix(s, "$")
	return ok && strings.Trim(rest, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") == ""
}

// encodesSeparator says whether s begins with the encoding of a byte that parts
// paths or makes dot segments, or with that of such an encoding.
func encodesSeparator(s string) bool {
	if len(s) < 3 {
		return false
	}
	switch strings.ToLower(s[1:3]) {
	case "2f", "5c", "2e", "25":
		return true
	}
	return false
}

// classify reads the decoded path after /_matrix/.
func (t *target) classify(api string, rest []string) bool {
	switch api {
	case "federation":
		return t.classifyFederation(rest)
	case "key":
		return t.classifyKey(rest)
	case "media":
		return t.classifyMedia(rest)
	}
	return false
}

func (t *target) classifyFederation(rest []string) bool {
	t.api, t.endpoint, t.signed = apiFederation, endpointOther, true
	if len(rest) < 2 {
		return false // the prefix alone, or a version
	}
	if version := rest[0]; version != "v1" && version != "v2" {
		return true // unstable ones, which the homeserver may know
	}
	if name := rest[1]; federationEndpoints[name] {
		t.endpoint = name
	}
	switch t.endpoint {
	case "version": // server-server API, "Server implementation"
		t.signed = len(rest) != 2
	case "openid": // "OpenID": the token is the proof
		t.signed = len(rest) != 3 || rest[2] != "userinfo"
	case endpointSend:
		if len(rest) == 3 {
			t.txn = rest[2]
		}
	case endpointInvite, endpointMakeJoin, endpointSendJoin, endpointMakeKnock, endpointSendKnock, endpointMakeLeave, endpointSendLeave:
		if len(rest) > 2 {
			t.room = rest[2]
		}
	}
	return true
}

// classifyKey takes what servers ask of each other's keys ("Retrieving server
// keys"); answers are signed, requests are not.
func (t *target) classifyKey(rest []string) bool {
	t.api, t.endpoint = apiKey, "key_server"
	if len(rest) < 2 || rest[0] != "v2" {
		return false
	}
	switch {
	case rest[1] == "server" && len(rest) <= 3: // the key id is deprecated
		return true
	case rest[1] == "query" && len(rest) <= 4:
		t.endpoint = endpointKeyQuery
		if len(rest) > 2 {
			t.about = rest[2]
		}
		return true
	}
	return false
}

// classifyMedia takes the downloads from before media was authenticated
// (client-server API, "Content repository"). The same prefix has uploads and
// previews of URLs, which are for the homeserver's own clients.
func (t *target) classifyMedia(rest []string) bool {
	t.api, t.endpoint = apiMedia, "media"
	if len(rest) < 4 || (rest[1] != "download" && rest[1] != "thumbnail") {
		return false
	}
	switch rest[0] {
	case "v1", "r0", "v3":
		t.about = rest[2]
		return true
	}
	return false
}

// allows says whether a method can be meant: the APIs between servers use no other
// ones. What of them an endpoint has is the homeserver's to say.
func (t *target) allows(method string) bool {
	switch method {
	case http.MethodGet:
		return true
	case http.MethodPut:
		return t.api == apiFederation
	case http.MethodPost:
		return t.api == apiFederation || t.endpoint == endpointKeyQuery
	}
	return false
}
