// Package journal is the rules of a durable lane, as a pure state machine: it has
// no clock, does no I/O and starts no goroutine. What drives it, with the store
// and the link, is lane.Durable; what proves it is the simulator in its tests.
//
// A lane is a log that one grid writes and one peer takes from. Each item has a
// position, an epoch and a number. The rules, each of which the simulator shows
// to be needed:
//
//  1. Every life of the sending gateway has an epoch of its own, higher than all
//     before, and appends in no other. A gateway that comes back with an older
//     copy of its database gives numbers out again, but never positions.
//  2. The receiver says where it stands when a stream begins. The sender goes on
//     from there, and each frame names the position before it; the receiver takes
//     only the one that follows what it has. A frame that is missing ends the
//     stream, and the next begins where the receiver stands.
//  3. What is taken and where the receiver stands are one transaction, and
//     acknowledged after it.
//  4. The sender deletes no more than the receiver has made safe: no failure that
//     the receiver is built to survive makes it ask for that again.
//  5. The receiver refuses a stream of an epoch lower than the highest it has
//     seen: of a sender that has been replaced and does not know it yet, whose
//     new positions would look as if they had been taken.
//  6. The receiver remembers the ids that it took, and takes none twice. A local
//     server that repeats what was not acknowledged to it, because the sender
//     died or was replaced in between, makes no double of it.
package journal

import (
	"cmp"
	"errors"
	"fmt"
)

// Pos is the position of an item in the log of a lane. The zero Pos is before
// every item.
type Pos struct {
	Epoch uint64
	Seq   uint64 // counts on through all epochs
}

// Compare orders by epoch, and within it by number.
func (p Pos) Compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Seq, q.Seq))
}

// After says whether p is behind q in the log.
func (p Pos) After(q Pos) bool { return p.Compare(q) > 0 }

func (p Pos) String() string { return fmt.Sprintf("%d.%d", p.Epoch, p.Seq) }

// Errors of both sides. All of them end the stream.
var (
	// ErrOldEpoch: a later life of the same grid's gateway has been seen.
	ErrOldEpoch = errors.New("epoch is older than one already seen")
	// ErrGap: a frame does not follow what was taken.
	ErrGap = errors.New("frame does not follow")
	// ErrAck: an acknowledgement of what was not sent.
	ErrAck = errors.New("acknowledgement of what was not sent")
)

// Out is the sending side of a lane, as it must be on disk.
type Out struct {
	Last Pos // of the newest item that was ever appended
	Safe Pos // up to here the receiver never asks again
}

// Append returns the position for one more item in the epoch of this life (rule 1).
// It is the caller's to write the item and Out in one transaction.
func (o *Out) Append(epoch uint64) (Pos, error) {
	if epoch < o.Last.Epoch {
		return Pos{}, fmt.Errorf("append in epoch %d to a lane of epoch %d: %w", epoch, o.Last.Epoch, ErrOldEpoch)
	}
	o.Last = Pos{epoch, o.Last.Seq + 1}
	return o.Last, nil
}

// Ack is what the receiver says: when a stream begins, and after each commit.
type Ack struct {
	Cursor Pos // the newest item taken
	Safe   Pos // at most Cursor; see rule 4
}

// Frame places one item on a stream.
type Frame struct {
	Pos  Pos
	Prev Pos // what the receiver stands at when it takes this (rule 2)
}

// Flight is the sending side of one stream.
type Flight struct {
	out    *Out
	sent   Pos // the last frame, or where the receiver stood
	cursor Pos
}

// Begin starts a stream in the epoch of this life, with what the receiver said
// first. lost says that the receiver stands before what it had called safe, as
// after a restore of an old backup: the items between are gone.
func (o *Out) Begin(epoch uint64, at Ack) (f *Flight, lost bool, err error) {
	if at.Cursor.Epoch > epoch {
		return nil, false, fmt.Errorf("the peer stands at %v, this gateway's epoch is %d: %w", at.Cursor, epoch, ErrOldEpoch)
	}
	if at.Safe.After(at.Cursor) {
		return nil, false, fmt.Errorf("%w: safe at %v, taken up to %v", ErrAck, at.Safe, at.Cursor)
	}
	f = &Flight{out: o, sent: at.Cursor, cursor: at.Cursor}
	lost = o.Safe.After(at.Cursor)
	if at.Safe.After(o.Safe) {
		o.Safe = at.Safe
	}
	return f, lost, nil
}

// Next places the item at pos, which must be the first one behind Sent that the
// log still holds.
func (f *Flight) Next(pos Pos) Frame {
	fr := Frame{Pos: pos, Prev: f.sent}
	f.sent = pos
	return fr
}

// Sent is the position up to which everything is on this stream or was taken
// before it.
func (f *Flight) Sent() Pos { return f.sent }

// Cursor is the newest item that the receiver is known to have taken.
func (f *Flight) Cursor() Pos { return f.cursor }

// Ack takes an acknowledgement. Everything up to Out.Safe may then be deleted,
// together with writing Out.
func (f *Flight) Ack(a Ack) error {
	if a.Cursor.After(f.sent) || a.Safe.After(a.Cursor) {
		return fmt.Errorf("%w: taken up to %v and safe at %v, sent up to %v", ErrAck, a.Cursor, a.Safe, f.sent)
	}
	if a.Cursor.After(f.cursor) {
		f.cursor = a.Cursor
	}
	if a.Safe.After(f.out.Safe) {
		f.out.Safe = a.Safe
	}
	return nil
}

// In is the receiving side of a lane, as it must be on disk.
type In struct {
	Cursor Pos    // the newest item taken
	Seen   uint64 // the highest epoch in which a stream began
}

// Begin starts a stream in the epoch that the sender names (rule 5). In must be on
// disk before the sender is told where the receiver stands.
func (in *In) Begin(epoch uint64) error {
	if epoch < in.Seen || epoch < in.Cursor.Epoch {
		return fmt.Errorf("stream of epoch %d, seen %d: %w", epoch, max(in.Seen, in.Cursor.Epoch), ErrOldEpoch)
	}
	in.Seen = epoch
	return nil
}

// Accept decides on a frame (rule 2): take is false for one that was taken before.
// It is the caller's to write the item and In in one transaction (rule 3), without
// the item where its id is known (rule 6).
func (in *In) Accept(f Frame) (take bool, err error) {
	switch {
	case f.Pos.Epoch > in.Seen:
		return false, fmt.Errorf("%w: frame %v on a stream of epoch %d", ErrGap, f.Pos, in.Seen)
	case !f.Pos.After(in.Cursor):
		return false, nil
	case f.Prev != in.Cursor:
		return false, fmt.Errorf("%w: frame %v follows %v, taken up to %v", ErrGap, f.Pos, f.Prev, in.Cursor)
	}
	in.Cursor = f.Pos
	return true, nil
}
