package store

import (
	"cmp"
	"fmt"
	"time"
)

// Pos is a position in the log of a lane: an epoch, and a number that counts on
// through all epochs. Positions are ordered by epoch first.
type Pos struct{ Epoch, Seq uint64 }

// compare is negative where p is before q.
func (p Pos) compare(q Pos) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Seq, q.Seq))
}

// LaneItem is one item of a durable lane.
type LaneItem struct {
	Pos     Pos
	ID      []byte
	Kind    int64
	Conv    string
	At      time.Time // in milliseconds; zero: none
	Expires time.Time // in milliseconds; zero: never
	Body    []byte
}

// itemOverhead is what a row takes beside what is in it, roughly.
const itemOverhead = 64

// Size is what the item counts against quotas, in bytes.
func (it *LaneItem) Size() int64 {
	return int64(len(it.ID)+len(it.Conv)+len(it.Body)) + itemOverhead
}

// Keys of outbox and inbox are a lane's id and a number within the lane.
const (
	seqBits = 40
	maxSeq  = 1<<seqBits - 1
	maxLane = 1<<(63-seqBits) - 1
)

// laneKeys returns the keys before the first and behind the last of a lane.
func laneKeys(lane int64) (before, behind int64) { return lane << seqBits, (lane + 1) << seqBits }

// itemKey returns the key of a number in a lane.
func itemKey(lane int64, seq uint64) (int64, error) {
	if lane <= 0 || lane >= maxLane || seq == 0 || seq > maxSeq {
		return 0, fmt.Errorf("item %d of lane %d is beyond what a key can hold", seq, lane)
	}
	return lane<<seqBits | int64(seq), nil
}

// millis is how the tables of lanes have times.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// blob makes of nil the empty value that it stands for; SQLite would take NULL.
func blob(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
