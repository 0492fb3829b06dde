package federation

import (
	"crypto/ed25519"
	"errors"
	"fmt"
)

// What adapters and links tell apart. Wrap them with what was being done.
var (
	// ErrUnknownDomain: no approved grid holds the domain.
	ErrUnknownDomain = errors.New("no approved grid holds this domain")
	// ErrPeerNotActive: the grid is known, but pending, paused, blocked or removed.
	ErrPeerNotActive = errors.New("the peer is not active")
	// ErrNotAllowed: the peer's policy does not allow the protocol.
	ErrNotAllowed = errors.New("the peer's policy does not allow this protocol")
	// ErrPeerDown: there is no live link to the peer now.
	ErrPeerDown = errors.New("the peer is not reachable now")
	// ErrUnknownGrid: the key is not that of an approved grid.
	ErrUnknownGrid = errors.New("unknown grid key")
)

// WrongKeyError says that a gateway has proven another grid key than the one that was
// asked for.
type WrongKeyError struct{ Got, Want ed25519.PublicKey }

func (e *WrongKeyError) Error() string {
	return fmt.Sprintf("key %s, want key %s", NewGridID(e.Got), NewGridID(e.Want))
}
