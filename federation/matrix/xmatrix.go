package matrix

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/semaphore"
	"maunium.net/go/mautrix"
	mautrixfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/federation/signutil"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/federation"
)

// mUnauthorized is what the standard wants for a request whose X-Matrix is missing
// or wrong (server-server API, "Request Authentication").
var mUnauthorized = mautrixfed.MUnauthorized

// signedRequest is what the signature of a request is about, as it came.
type signedRequest struct {
	method, target string
	authorization  []string // all values of the header
	body           []byte   // nil or empty: none
	destination    string   // the server name that it is for
}

// proof is what an Authorization header says.
type proof struct {
	origin, destination string // destination may be ""
	key                 id.KeyID
	signature           string
}

// verify says whether a request that came from a peer's gateway is one of a server
// of that peer for a server of this grid, and which of its servers it was. It
// checks the body, too (checkJSON). It may wait for the peer to be asked for its
// server's keys.
//
// The errors are M_UNAUTHORIZED (401) where the proof is missing or wrong,
// M_FORBIDDEN (403) where the peer may not speak for that server or this grid is
// not whom it means, those of checkJSON, and M_UNKNOWN (502, 504) where the keys
// cannot be had now.
func (in *inbound) verify(ctx context.Context, peer *federation.Peer, r signedRequest) (origin string, _ *mautrix.RespError) {
	p, e := in.identify(peer, r.authorization, r.destination)
	if e != nil {
		return "", e
	}
	return p.origin, in.prove(ctx, peer, p, r)
}

// identify is the part of verify that needs neither the body nor a key.
func (in *inbound) identify(peer *federation.Peer, authorization []string, destination string) (proof, *mautrix.RespError) {
	p, err := parseXMatrix(authorization)
	if err != nil {
		return p, respond(mUnauthorized, err.Error())
	}
	now := in.cfg.Directory.Now()
	switch {
	case !now.Own(federation.Matrix, destination):
		return p, respond(mautrix.MForbidden, fmt.Sprintf("%.260q is no server of this grid, which does not relay", destination))
	case p.destination != "" && p.destination != destination:
		return p, respond(mUnauthorized, fmt.Sprintf("the destination in X-Matrix is %.260q, the request is for %s", p.destination, destination))
	}
	if _, e := in.mayTakePart(now, peer, p.origin); e != nil {
		return p, e
	}
	return p, nil
}

// mayTakePart says whether a peer may speak for a server name now. It returns the
// peer as it is now.
func (in *inbound) mayTakePart(now *federation.Snapshot, peer *federation.Peer, origin string) (*federation.Peer, *mautrix.RespError) {
	if name, err := federation.NormalizeClaim(federation.Matrix, origin); err != nil || name != origin {
		return nil, respond(mautrix.MForbidden, fmt.Sprintf("the origin %.260q is no server name in lower case and ASCII", origin))
	}
	owner := now.Owner(federation.Matrix, origin)
	switch {
	case owner == nil || owner.ID != peer.ID:
		return nil, respond(mautrix.MForbidden, "the origin "+origin+" is not one that your grid holds here")
	case owner.State != federation.StateActive || !owner.Policy.Allow[federation.Matrix]:
		return nil, respond(mautrix.MForbidden, "this grid does not take Matrix from yours now")
	case !owner.Policy.Matrix.AllowsServer(origin):
		return nil, respond(mautrix.MForbidden, "the operator of this grid does not let "+origin+" take part")
	}
	return owner, nil
}

// orderMemory bounds what putting JSON in order takes in all, in bytes; more waits.
// It is as much as the worst body of DefaultMaxBody takes.
const orderMemory = 3*DefaultMaxBody + 240*maxMembers

// orderFree is from where on it is counted.
const orderFree = 1 << 20

func newOrderMemory() *semaphore.Weighted { return semaphore.NewWeighted(orderMemory) }

// prove checks the body and the signature.
func (in *inbound) prove(ctx context.Context, peer *federation.Peer, p proof, r signedRequest) *mautrix.RespError {
	members := 0
	if len(r.body) > 0 {
		var e *mautrix.RespError
		if members, e = checkJSON(r.body); e != nil {
			return e
		}
	}
	key, seen, e := in.keys.get(ctx, peer, p.origin, p.key)
	if e != nil {
		return e
	}
	if cost := costOfOrder(len(r.body), members); cost > orderFree {
		cost = min(cost, orderMemory)
		if err := in.order.Acquire(ctx, cost); err != nil {
			return respond(mautrix.MUnknown, "given up: "+err.Error())
		}
		defer in.order.Release(cost)
	}
	message, err := signedMessage(p.origin, r)
	if err != nil {
		return respond(mautrix.MUnknown, err.Error())
	}
	if signutil.VerifyJSONRaw(key, p.signature, message) == nil {
		return nil
	}
	// A server that was set up anew may use a key id again.
	renewed, _, e := in.keys.renew(ctx, peer, p.origin, p.key, seen)
	if e == nil && renewed != key && signutil.VerifyJSONRaw(renewed, p.signature, message) == nil {
		return nil
	}
	return respond(mUnauthorized, "the signature of "+p.origin+" is wrong")
}

// signedMessage is the JSON that is signed, in any form: r.body must be JSON.
func signedMessage(origin string, r signedRequest) ([]byte, error) {
	head, err := json.Marshal(struct {
		Destination string `json:"destination"`
		Method      string `json:"method"`
		Origin      string `json:"origin"`
		URI         string `json:"uri"`
	}{r.destination, r.method, origin, r.target})
	if err != nil {
		return nil, fmt.Errorf("what is signed: %w", err)
	}
	if len(r.body) == 0 {
		return head, nil
	}
	const content = `{"content":`
	m := make([]byte, 0, len(content)+len(r.body)+len(head))
	m = append(append(m, content...), r.body...)
	return append(append(m, ','), head[1:]...), nil
}

// maxXMatrix bounds the header, in bytes; real ones have some 250.
const maxXMatrix = 2 << 10

// parseXMatrix reads the Authorization header. It is stricter than RFC 9110 §11.4,
// so that the homeserver cannot read it in another way: there is one header, no
// parameter comes twice, and quoted values have no escapes, which none needs.
func parseXMatrix(values []string) (p proof, err error) {
	switch {
	case len(values) == 0 || len(values) == 1 && values[0] == "":
		return p, errors.New("there is no Authorization header")
	case len(values) > 1:
		return p, errors.New("there is more than one Authorization header")
	case len(values[0]) > maxXMatrix:
		return p, errors.New("the Authorization header is too long")
	}
	scheme, rest, ok := strings.Cut(values[0], " ")
	if !ok || !strings.EqualFold(scheme, "X-Matrix") {
		return p, errors.New("the Authorization header is not X-Matrix")
	}
	fields := map[string]*string{"origin": &p.origin, "destination": &p.destination, "key": (*string)(&p.key), "sig": &p.signature}
	seen := map[string]bool{}
	for rest = strings.Trim(rest, " \t"); rest != ""; {
		var name, value string
		if name, value, rest, err = nextParam(rest); err != nil {
			return p, err
		}
		if seen[name] {
			return p, fmt.Errorf("X-Matrix has the parameter %q twice", name)
		}
		seen[name] = true
		if field := fields[name]; field != nil { // others are for later versions
			*field = value
		}
	}
	if p.origin == "" || p.key == "" || p.signature == "" {
		return p, errors.New("X-Matrix needs origin, key and sig")
	}
	return p, nil
}

// nextParam reads one parameter and the comma after it.
func nextParam(s string) (name, value, rest string, err error) {
	bad := func(what string) (string, string, string, error) {
		return "", "", "", errors.New("X-Matrix is malformed: " + what)
	}
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") != "" {
		return bad("a parameter without a name and a value")
	}
	if quoted, is := strings.CutPrefix(rest, `"`); is {
		if value, rest, ok = strings.Cut(quoted, `"`); !ok {
			return bad("a quote that does not end")
		}
		rest = strings.TrimLeft(rest, " \t")
		if rest != "" && rest[0] != ',' {
			return bad("text after a quoted value")
		}
	} else {
		// Older servers write no quotes, also around what has a colon.
		end := strings.IndexByte(rest, ',')
		if end < 0 {
			end = len(rest)
		}
		value, rest = strings.Trim(rest[:end], " \t"), rest[end:]
	}
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c >= 0x7f || c == '\\' || c == '"' {
			return bad("a value with a space, a quote, a backslash or no ASCII")
		}
	}
	if rest != "" {
		if rest = strings.TrimLeft(rest[1:], " \t"); rest == "" {
			return bad("a comma at the end")
		}
	}
	return strings.ToLower(name), value, rest, nil
}
