package pairing

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/yggate/yggate/federation"
)

// The paths that an unknown grid key may reach.
const (
	PathPair       = "/v1/pair"
	PathDescriptor = "/v1/descriptor"
)

// maxBody bounds requests and answers: a descriptor and little more.
const maxBody = federation.MaxEnvelope + 1<<10

// pairRequest is the body of POST /v1/pair.
type pairRequest struct {
	Invite     []byte          `json:"invite"`
	MAC        []byte          `json:"mac"`
	Descriptor json.RawMessage `json:"descriptor"`
}

// pairAnswer is its answer.
type pairAnswer struct {
	MAC        []byte           `json:"mac"`
	State      federation.State `json:"state"` // of the accepting grid at the inviting one
	Descriptor json.RawMessage  `json:"descriptor"`
}

// descriptorRequest is the body of POST /v1/descriptor: the caller's own
// descriptor, where it is a peer, or an invite, where it is about to be one.
type descriptorRequest struct {
	Invite     []byte          `json:"invite,omitempty"`
	MAC        []byte          `json:"mac,omitempty"`
	Descriptor json.RawMessage `json:"descriptor,omitempty"`
}

// descriptorAnswer is its answer.
type descriptorAnswer struct {
	Descriptor json.RawMessage `json:"descriptor"`
}

// Error is a refusal by the far end. It crosses the wire.
type Error struct {
	Status  int    `json:"-"` // HTTP status
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}

// role says who proves its knowledge of the secret, and for what; one proof is
// never good for another.
type role string

const (
	roleLook   role = "look"   // accepting side, to see the descriptor
	roleAccept role = "accept" // accepting side, to become a peer
	roleInvite role = "invite" // inviting side, in answer
)

// exporterLabel is that of RFC 8446 §7.5 for this use.
const exporterLabel = "EXPORTER-yggate-pair"

// sessionMAC proves knowledge of the invite's key within one TLS session: a relay
// in between has two sessions and can pass neither proof on.
func sessionMAC(key []byte, r role, state *tls.ConnectionState) ([]byte, error) {
	if state == nil || state.Version < tls.VersionTLS13 {
		return nil, errors.New("bind to session: not TLS 1.3")
	}
	bound, err := state.ExportKeyingMaterial(exporterLabel, nil, 32)
	if err != nil {
		return nil, fmt.Errorf("bind to session: %w", err)
	}
	h := hmac.New(sha256.New, key)
	h.Write([]byte("yggate/pair/1\x00" + string(r) + "\x00"))
	h.Write(bound)
	return h.Sum(nil), nil
}

// readBody reads a bounded JSON body.
func readBody(body io.Reader, v any) error {
	raw, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err != nil {
		return fmt.Errorf("read body: %w", err)
	}
	if len(raw) > maxBody {
		return fmt.Errorf("body of more than %d bytes", maxBody)
	}
	return federation.DecodeJSON(raw, v)
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(raw)
	return err
}
