package store

import (
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"
)

func inLane(t *testing.T, s *Store, name string) (l InLane) {
	t.Helper()
	write(t, s, func(tx *sql.Tx) (err error) { l, err = s.AddInLane(tx, "peer", name); return err })
	return l
}

// arriveAll puts items into the inbox and returns them with their rows.
func arriveAll(t *testing.T, s *Store, lane int64, items ...LaneItem) []InItem {
	t.Helper()
	out := make([]InItem, len(items))
	for i := range items {
		out[i].LaneItem = items[i]
	}
	write(t, s, func(tx *sql.Tx) error { return s.AddInItems(tx, lane, out) })
	return out
}

func TestInLane(t *testing.T) {
	s := openTemp(t)
	a, b := inLane(t, s, "chat"), inLane(t, s, "room")
	a.Cursor, a.Seen = Pos{7, 8}, 9
	write(t, s, func(tx *sql.Tx) error { return s.SaveInLane(tx, &a) })
	if again := inLane(t, s, "chat"); again != a {
		t.Errorf("got %+v, want %+v", again, a)
	}
	if got, err := s.InLanes(t.Context()); err != nil || !reflect.DeepEqual(got, []InLane{a, b}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, fn := range map[string]func(tx *sql.Tx) error{
		"save":      func(tx *sql.Tx) error { return s.SaveInLane(tx, &InLane{ID: 99}) },
		"add items": func(tx *sql.Tx) error { return s.AddInItems(tx, 99, make([]InItem, 1)) },
	} {
		if err := s.Write(t.Context(), fn); err == nil {
			t.Errorf("%s: a lane that is not there was found", name)
		}
	}
}

func TestInItems(t *testing.T) {
	s := openTemp(t)
	chat, room := inLane(t, s, "chat"), inLane(t, s, "room")
	// A sender that goes on from an older copy of its database gives numbers out again.
	first := arriveAll(t, s, chat.ID, laneItems(1, 5, 2*rowsAtOnce+1, 10)...)
	arriveAll(t, s, room.ID, laneItems(1, 1, 2, 10)...)
	second := arriveAll(t, s, chat.ID, LaneItem{Pos: Pos{2, 5}, ID: []byte{1}, Body: []byte("b"), Expires: time.UnixMilli(5)})
	if got, err := s.InItems(t.Context(), chat.ID); err != nil || !reflect.DeepEqual(got, slices.Concat(first, second)) {
		t.Errorf("got %+v, %v", got, err)
	}
	write(t, s, func(tx *sql.Tx) error { return s.CutIn(tx, []int64{first[1].Row, second[0].Row}) })
	left := append(first[:1:1], first[2:]...)
	if got, err := s.InItems(t.Context(), chat.ID); err != nil || !reflect.DeepEqual(got, left) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestInRowsAreNeverUsedAgain: whoever cuts twice, because the first answer was
// lost, must not cut what came in between.
func TestInRowsAreNeverUsedAgain(t *testing.T) {
	s := openTemp(t)
	l := inLane(t, s, "chat")
	first := arriveAll(t, s, l.ID, laneItems(1, 1, 2, 10)...)
	gone := []int64{first[0].Row, first[1].Row}
	cut := func() { write(t, s, func(tx *sql.Tx) error { return s.CutIn(tx, gone) }) }
	cut()
	write(t, s, func(tx *sql.Tx) error { return s.SaveInLane(tx, &l) })
	arriveAll(t, s, l.ID, laneItems(1, 3, 2, 10)...)
	cut()
	if got, err := s.InItems(t.Context(), l.ID); err != nil || len(got) != 2 {
		t.Errorf("%d items are left of 2, %v", len(got), err)
	}
}

func TestTaken(t *testing.T) {
	s := openTemp(t)
	begin := time.UnixMilli(1_795_000_000_000)
	var ids [][]byte
	for i := range 3*takenChunk + 1 {
		ids = append(ids, fmt.Appendf(nil, "id %d", i))
		write(t, s, func(tx *sql.Tx) error {
			return s.AddTaken(tx, 1, ids[i:], begin.Add(time.Duration(i)*time.Second))
		})
	}
	ids = append(ids, []byte("unknown"), nil)
	known := func(lane int64) (n int) {
		got, err := s.KnownTaken(t.Context(), lane, ids)
		if err != nil || len(got) != len(ids) {
			t.Fatalf("%d answers for %d ids, %v", len(got), len(ids), err)
		}
		for i, k := range got {
			if k {
				n++
				if i >= len(ids)-2 {
					t.Errorf("%q is known", ids[i])
				}
			}
		}
		return n
	}
	purge := func(before time.Time, limit int) (n int64) {
		write(t, s, func(tx *sql.Tx) (err error) { n, err = s.PurgeTaken(tx, before, limit); return err })
		return n
	}
	all := len(ids) - 2
	if a, b := known(1), known(2); a != all || b != 0 {
		t.Fatalf("%d of %d are known, and %d on another lane", a, all, b)
	}
	// Known once more: the time of the first stands.
	write(t, s, func(tx *sql.Tx) error { return s.AddTaken(tx, 1, ids[:1], begin.Add(time.Hour)) })
	if n := purge(begin, 100); n != 0 {
		t.Errorf("purged %d that are not old", n)
	}
	if n := purge(begin.Add(10*time.Second), 4); n != 4 {
		t.Errorf("purged %d, want the limit of 4", n)
	}
	if n := purge(begin.Add(10*time.Second), 100); n != 6 {
		t.Errorf("purged %d, want the other 6", n)
	}
	if got := known(1); got != all-10 {
		t.Errorf("%d are known, want %d", got, all-10)
	}
	if got, err := s.KnownTaken(t.Context(), 1, nil); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
