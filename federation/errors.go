package federation

import "errors"

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
