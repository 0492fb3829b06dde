package store

import (
	"database/sql"
	"errors"
	"reflect"
	"testing"
	"time"
)

// setNow stops the store's clock for a test.
func setNow(t *testing.T, at time.Time) {
	t.Helper()
	old := now
	t.Cleanup(func() { now = old })
	now = func() time.Time { return at }
}

// deadRows returns the rows of dead letters.
func deadRows(t *testing.T) func([]Dead, error) []int64 {
	return func(letters []Dead, err error) (rows []int64) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range letters {
			rows = append(rows, d.Row)
		}
		return rows
	}
}

// tell notes that the senders of dead letters know.
func tell(t *testing.T, s *Store, rows ...int64) {
	t.Helper()
	var letters []Dead
	for _, row := range rows {
		d, err := s.DeadLetter(t.Context(), row)
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, d)
	}
	write(t, s, func(tx *sql.Tx) error { return s.MarkTold(tx, letters) })
}

func TestBuryOut(t *testing.T) {
	s := openTemp(t)
	died := time.UnixMilli(1_795_000_000_456)
	setNow(t, died)
	items := laneItems(4, 1, 4, 10)
	l := outLane(t, s, "chat", items...)
	before := l
	other := items[3]
	other.Pos.Epoch = 3 // an item of that number, but not this one
	write(t, s, func(tx *sql.Tx) error {
		l = before
		if _, _, err := s.CutOut(tx, l.ID, Pos{4, 1}); err != nil {
			return err
		}
		return s.BuryOut(tx, &l, []LaneItem{items[0], items[1], items[1], other}, "expired", "away for a week")
	})
	if l.Items != before.Items-1 || l.Bytes != before.Bytes-items[1].Size() {
		t.Errorf("the lane has %d items and %d bytes left of %+v", l.Items, l.Bytes, before)
	}
	if left, err := s.OutItems(t.Context(), l.ID, Pos{}, 10, 1<<20); err != nil || !reflect.DeepEqual(left, items[2:]) {
		t.Errorf("left %v, %v", positions(left), err)
	}
	want := Dead{Row: 1, Peer: "peer", Lane: "chat", LaneItem: items[1], Reason: "expired", Detail: "away for a week", Died: died}
	if got, err := s.Untold(t.Context(), "peer", 0, 10); err != nil || !reflect.DeepEqual(got, []Dead{want}) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if got, err := s.DeadLetter(t.Context(), 1); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := s.DeadLetter(t.Context(), 2); !errors.Is(err, sql.ErrNoRows) {
		t.Errorf("got %v", err)
	}
}

// bury fills the dead letters: of peer a rows 1 to 3, of b row 4, of c row 5.
func bury(t *testing.T, s *Store) {
	t.Helper()
	write(t, s, func(tx *sql.Tx) error {
		seq := uint64(1)
		for _, d := range []struct {
			peer string
			n    int
		}{{"a", 3}, {"b", 1}, {"c", 1}} {
			l, err := s.AddOutLane(tx, d.peer, "chat")
			if err != nil {
				return err
			}
			items := laneItems(1, seq, d.n, 10)
			if err := errors.Join(s.AddOutItems(tx, l.ID, items), s.BuryOut(tx, &l, items, "expired", "")); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestUntold(t *testing.T) {
	s := openTemp(t)
	rows := deadRows(t)
	bury(t, s)
	tell(t, s, 2, 4)
	if got := rows(s.Untold(t.Context(), "a", 0, 10)); !reflect.DeepEqual(got, []int64{1, 3}) {
		t.Errorf("untold of a: %v", got)
	}
	if got := rows(s.Untold(t.Context(), "a", 1, 10)); !reflect.DeepEqual(got, []int64{3}) {
		t.Errorf("untold of a behind row 1: %v", got)
	}
	if got := rows(s.Untold(t.Context(), "a", 0, 1)); !reflect.DeepEqual(got, []int64{1}) {
		t.Errorf("one untold of a: %v", got)
	}
	if got, err := s.UntoldPeers(t.Context()); err != nil || !reflect.DeepEqual(got, []string{"a", "c"}) {
		t.Errorf("peers %q, %v", got, err)
	}
	if d, err := s.DeadLetter(t.Context(), 2); err != nil || !d.Told {
		t.Errorf("got %+v, %v", d, err)
	}
	tell(t, s, 1, 3, 5)
	if got, err := s.UntoldPeers(t.Context()); err != nil || got != nil {
		t.Errorf("peers %q, %v", got, err)
	}
}

// TestUntoldOfLargeOnes: what one call reads is bounded, however large letters are.
func TestUntoldOfLargeOnes(t *testing.T) {
	s := openTemp(t)
	const n, size = 5, maxRunBytes / 4 // four do not fit, with what a row takes beside its body
	write(t, s, func(tx *sql.Tx) error {
		l, err := s.AddOutLane(tx, "a", "chat")
		items := append(laneItems(1, 1, n-1, size), laneItems(1, n, 1, maxRunBytes)...)
		return errors.Join(err, s.AddOutItems(tx, l.ID, items), s.BuryOut(tx, &l, items, "expired", ""))
	})
	rows := deadRows(t)
	for after, want := range map[int64][]int64{0: {1, 2, 3}, 3: {4}, 4: {5}, 5: nil} {
		if got := rows(s.Untold(t.Context(), "a", after, 10)); !reflect.DeepEqual(got, want) {
			t.Errorf("behind row %d: %v, want %v", after, got, want)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	s := openTemp(t)
	rows := deadRows(t)
	bury(t, s)
	tell(t, s, 2)
	if got := rows(s.DeadLetters(t.Context(), "", 4)); !reflect.DeepEqual(got, []int64{5, 4, 3, 2}) {
		t.Errorf("newest of all: %v", got)
	}
	if got := rows(s.DeadLetters(t.Context(), "a", 2)); !reflect.DeepEqual(got, []int64{3, 2}) {
		t.Errorf("newest of a: %v", got)
	}
	write(t, s, func(tx *sql.Tx) error { return s.DropDead(tx, []int64{1, 2, 99}) })
	if got := rows(s.DeadLetters(t.Context(), "", 10)); !reflect.DeepEqual(got, []int64{5, 4, 3}) {
		t.Errorf("after two were dropped: %v", got)
	}
}

func TestPurgeDead(t *testing.T) {
	begin := time.UnixMilli(1_795_000_000_000)
	old := begin.Add(time.Minute) // after rows 1 to 5 died, before 6 to 10
	for name, c := range map[string]struct {
		keep   int
		before time.Time
		limit  int
		want   []int64 // left; 1 and 8 are untold
	}{
		"nothing":            {10, begin, 10, []int64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		"old ones":           {10, old, 10, []int64{10, 9, 8, 7, 6, 1}},
		"too many":           {3, begin, 10, []int64{10, 9, 8, 7, 1}},
		"too many, all old":  {3, old.Add(time.Hour), 10, []int64{8, 1}},
		"old, fewer than":    {6, old, 10, []int64{10, 9, 8, 7, 6, 1}},
		"the oldest at once": {0, old, 2, []int64{10, 9, 8, 7, 6, 5, 4, 1}},
		"all":                {0, begin, 100, []int64{8, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTemp(t)
			setNow(t, begin)
			bury(t, s)
			setNow(t, begin.Add(2*time.Minute))
			bury(t, s)
			tell(t, s, 2, 3, 4, 5, 6, 7, 9, 10)
			var n int64
			write(t, s, func(tx *sql.Tx) (err error) { n, err = s.PurgeDead(tx, c.keep, c.before, c.limit); return err })
			got := deadRows(t)(s.DeadLetters(t.Context(), "", 100))
			if !reflect.DeepEqual(got, c.want) || n != int64(10-len(c.want)) {
				t.Errorf("purged %d, left %v; want %v", n, got, c.want)
			}
		})
	}
}
