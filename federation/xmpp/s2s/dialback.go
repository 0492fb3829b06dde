package s2s

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
)

// dialbackSecret makes and recognises dialback keys without remembering any
// (XEP-0185). It lives as long as the process: so do the streams it proves.
type dialbackSecret [2 * sha256.Size]byte // the secret's hash, in hex

func newDialbackSecret() (s dialbackSecret) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	sum := sha256.Sum256(secret[:])
	hex.Encode(s[:], sum[:])
	return s
}

// key is the one for a stream from originating to receiving that receiving gave
// the id.
func (s *dialbackSecret) key(receiving, originating, id string) string {
	mac := hmac.New(sha256.New, s[:])
	mac.Write([]byte(receiving + " " + originating + " " + id))
	return hex.EncodeToString(mac.Sum(nil))
}

func (s *dialbackSecret) valid(receiving, originating, id, key string) bool {
	return hmac.Equal([]byte(key), []byte(s.key(receiving, originating, id)))
}

// streamID is unguessable, as XEP-0220 §4 needs it to be.
func streamID() string { return rand.Text() }
