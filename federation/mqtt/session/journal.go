package session

import "context"

// Journal keeps what of a session must outlive the process.
type Journal interface {
	// Load returns what Write has written for the session.
	Load(ctx context.Context, session string) (*State, error)
	// Write applies changes in their order in one transaction, and returns nil
	// once they are on disk. The caller tries again after an error.
	Write(ctx context.Context, session string, changes []Change) error
}

// Key is what the session remembers of the key of a message: a hash.
type Key [16]byte

// State is what a Journal has of a session. All of it is bounded by the number of
// packet ids, but for Filters.
type State struct {
	// Life is what Reset last set; empty for a new session.
	Life []byte
	// In has, by packet id of the broker's, what became of it.
	In map[uint16]InState
	// Out has, by packet id, the message that last had it.
	Out map[uint16]OutState
	// Filters are the topic filters that the broker may have a subscription of.
	Filters []string
}

// InState is of a packet id of the broker's.
type InState struct {
	Released uint32 // how often
	// Turn grows with each message; it is of the last release, or 0 where the id
	// was used again since.
	Turn uint64
}

// OutState is of a packet id of ours.
type OutState struct {
	Key   Key
	Stage Stage
	Turn  uint64 // grows with each message
}

// Stage is how far the broker is known to have a message at QoS 2.
type Stage uint8

// The stages.
const (
	Free      Stage = iota // the id belongs to no message
	Begun                  // PUBLISH may have been sent
	Received               // PUBREC came: PUBREL may have been sent, PUBLISH must not be again
	Completed              // PUBCOMP came: kept so that the key is known
)

// Change is one of what a Journal writes; which, Op says.
type Change struct {
	Op     Op
	ID     uint16
	In     InState
	Out    OutState
	Filter string
	Life   []byte
}

// Op is what a Change does.
type Op uint8

// The changes.
const (
	PutIn     Op = iota // the row of ID in In
	PutOut              // the row of ID in Out
	CutOut              // no row of ID in Out
	AddFilter           // Filter
	CutFilter           // Filter
	Reset               // Life, and no row in In: the broker has lost the session
)
