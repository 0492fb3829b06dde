package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// write commits fn or fails the test.
func write(t testing.TB, s *Store, fn func(tx *sql.Tx) error) {
	t.Helper()
	if err := s.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// outLane makes a lane with items, and counts them in.
func outLane(t testing.TB, s *Store, name string, items ...LaneItem) (l OutLane) {
	t.Helper()
	write(t, s, func(tx *sql.Tx) (err error) {
		if l, err = s.AddOutLane(tx, "peer", name); err != nil {
			return err
		}
		for _, it := range items {
			l.Last, l.Items, l.Bytes = it.Pos, l.Items+1, l.Bytes+it.Size()
		}
		return errors.Join(s.AddOutItems(tx, l.ID, items), s.SaveOutLane(tx, &l))
	})
	return l
}

// laneItems returns n items of an epoch, with numbers from first on and bodies of
// that many bytes.
func laneItems(epoch, first uint64, n, body int) []LaneItem {
	out := make([]LaneItem, n)
	for i := range out {
		seq := first + uint64(i)
		out[i] = LaneItem{
			Pos: Pos{epoch, seq}, ID: fmt.Appendf(nil, "%020d", seq), Kind: 1, Conv: "alice@a.grid bob@b.grid",
			At: time.UnixMilli(1_795_000_000_000 + int64(seq)), Body: bytes.Repeat([]byte("x"), body),
		}
	}
	return out
}

// positions returns where items stand.
func positions(items []LaneItem) (out []Pos) {
	for _, it := range items {
		out = append(out, it.Pos)
	}
	return out
}

func TestOutLane(t *testing.T) {
	s := openTemp(t)
	a, b := outLane(t, s, "chat"), outLane(t, s, "room")
	a.Last, a.Safe, a.Items, a.Bytes = Pos{7, 8}, Pos{5, 6}, 2, 300
	write(t, s, func(tx *sql.Tx) error { return s.SaveOutLane(tx, &a) })
	if again := outLane(t, s, "chat"); again != a {
		t.Errorf("got %+v, want %+v", again, a)
	}
	if got, err := s.OutLanes(t.Context()); err != nil || !reflect.DeepEqual(got, []OutLane{a, b}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := s.Write(t.Context(), func(tx *sql.Tx) error { return s.SaveOutLane(tx, &OutLane{ID: 99}) }); err == nil {
		t.Error("a lane that is not there was saved")
	}
}

func TestOutItemsComeBackWhole(t *testing.T) {
	s := openTemp(t)
	full := LaneItem{
		Pos: Pos{3, 1}, ID: []byte{0, 1}, Kind: 4, Conv: "c\x00d", Body: []byte{0},
		At: time.UnixMilli(1_795_000_000_123), Expires: time.UnixMilli(1_795_000_000_124),
	}
	bare := LaneItem{Pos: Pos{3, 2}}
	l := outLane(t, s, "chat", full, bare)
	got, err := s.OutItems(t.Context(), l.ID, Pos{}, 10, 1<<20)
	if err != nil || !reflect.DeepEqual(got, []LaneItem{full, bare}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := s.OutItem(t.Context(), l.ID, 1); err != nil || !reflect.DeepEqual(got, full) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, seq := range []uint64{0, 3, math.MaxUint64} {
		if _, err := s.OutItem(t.Context(), l.ID, seq); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("item %d: %v", seq, err)
		}
	}
}

func TestManyOutItemsComeBackInOrder(t *testing.T) {
	s := openTemp(t)
	for _, n := range []int{1, rowsAtOnce - 1, rowsAtOnce, rowsAtOnce + 1, 3*rowsAtOnce + 2} {
		items := laneItems(1, 1, n, 10)
		l := outLane(t, s, fmt.Sprint(n), items...)
		if got, err := s.OutItems(t.Context(), l.ID, Pos{}, 100, 1<<20); err != nil || !reflect.DeepEqual(got, items) {
			t.Errorf("%d items: got %v, %v", n, positions(got), err)
		}
	}
}

func TestOutItemsKeepsItsLimits(t *testing.T) {
	s := openTemp(t)
	items := laneItems(1, 1, 5, 100)
	l := outLane(t, s, "chat", items...)
	outLane(t, s, "room", laneItems(1, 1, 3, 1)...)
	size := items[0].Size()
	for name, c := range map[string]struct {
		after    Pos
		maxItems int
		maxBytes int64
		want     []LaneItem
	}{
		"all":                       {Pos{}, 10, 10 * size, items},
		"items":                     {Pos{}, 2, 10 * size, items[:2]},
		"bytes":                     {Pos{}, 10, 3 * size, items[:3]},
		"a byte less":               {Pos{}, 10, 3*size - 1, items[:2]},
		"one, however large":        {Pos{1, 2}, 10, 1, items[2:3]},
		"none behind the last":      {Pos{1, 5}, 10, 10 * size, nil},
		"none behind a later epoch": {Pos{2, 1}, 10, 10 * size, nil},
		"an absurd number":          {Pos{1, math.MaxUint64}, 10, 10 * size, nil},
		"an absurd position":        {Pos{math.MaxUint64, math.MaxUint64}, 10, 10 * size, nil},
	} {
		got, err := s.OutItems(t.Context(), l.ID, c.after, c.maxItems, c.maxBytes)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v", name, positions(got), err, positions(c.want))
		}
	}
	if got, err := s.ListOut(t.Context(), l.ID, 4); err != nil || len(got) != 4 {
		t.Errorf("list: %v, %v", positions(got), err)
	}
}

// TestOutItemsOrder compares reading behind and cutting up to every position with
// what the order of positions says, on lanes with gaps and several epochs. The peer
// may stand anywhere: a lane that goes on from an older copy of the database gives
// numbers out again, in a later epoch.
func TestOutItemsOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for round := range 5 {
		s := openTemp(t)
		var all []LaneItem
		pos := Pos{uint64(1 + rnd.IntN(3)), 0}
		for range 4 + rnd.IntN(6) {
			if rnd.IntN(3) == 0 {
				pos.Epoch += uint64(1 + rnd.IntN(2))
			}
			pos.Seq += uint64(1 + rnd.IntN(3)*rnd.IntN(2))
			all = append(all, LaneItem{Pos: pos, ID: []byte{}, Body: []byte{}})
		}
		outLane(t, s, "before", laneItems(9, 1, 3, 1)...)
		l := outLane(t, s, "chat", all...)
		outLane(t, s, "behind", laneItems(0, 1, 3, 1)...)
		for epoch := range pos.Epoch + 2 {
			for seq := range pos.Seq + 2 {
				checkOrder(t, s, l.ID, all, Pos{epoch, seq})
			}
		}
		if t.Failed() {
			t.Fatalf("round %d: lane %v", round, positions(all))
		}
	}
}

var errUndo = errors.New("not to be committed")

func checkOrder(t *testing.T, s *Store, lane int64, all []LaneItem, at Pos) {
	t.Helper()
	n := 0
	for n < len(all) && all[n].Pos.compare(at) <= 0 {
		n++
	}
	got, err := s.OutItems(t.Context(), lane, at, 100, 1<<20)
	if err != nil || fmt.Sprint(positions(got)) != fmt.Sprint(positions(all[n:])) {
		t.Errorf("behind %v: got %v, %v", at, positions(got), err)
	}
	err = s.Write(t.Context(), func(tx *sql.Tx) error {
		items, bytes, err := s.CutOut(tx, lane, at)
		if err != nil || items != int64(n) || bytes != int64(n*itemOverhead) {
			t.Errorf("cut %d items and %d bytes up to %v, %v; want %d", items, bytes, at, err, n)
		}
		var left int
		if err := tx.QueryRow(`SELECT count(*) FROM outbox`).Scan(&left); err != nil || left != 6+len(all)-n {
			t.Errorf("%d items are left up to %v, %v", left, at, err)
		}
		return errUndo
	})
	if !errors.Is(err, errUndo) {
		t.Error(err)
	}
}

func TestExpiredOut(t *testing.T) {
	s := openTemp(t)
	at := time.UnixMilli(1_795_000_000_000)
	items := laneItems(1, 1, 6, 10)
	for i, expires := range []time.Time{at.Add(-time.Hour), at, at.Add(time.Millisecond), at, {}, at} {
		items[i].Expires = expires
	}
	l := outLane(t, s, "chat", items...)
	for name, c := range map[string]struct {
		after Pos
		limit int
		want  []LaneItem
	}{
		"up to the first that has not":  {Pos{}, 10, items[:2]},
		"limit":                         {Pos{}, 1, items[:1]},
		"none where the first has not":  {Pos{1, 2}, 10, nil},
		"up to one that never does":     {Pos{1, 3}, 10, items[3:4]},
		"up to the end":                 {Pos{1, 5}, 10, items[5:]},
		"none behind the end of a lane": {Pos{1, 6}, 10, nil},
	} {
		got, err := s.ExpiredOut(t.Context(), l.ID, c.after, at, c.limit)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, %v", name, positions(got), err)
		}
	}
}

func TestAddOutItemsRefuses(t *testing.T) {
	s := openTemp(t)
	l := outLane(t, s, "chat", laneItems(1, 1, 1, 1)...)
	for name, c := range map[string]struct {
		lane int64
		seq  uint64
	}{
		"number 0":             {l.ID, 0},
		"too great a number":   {l.ID, maxSeq + 1},
		"a number there is":    {l.ID, 1},
		"lane 0":               {0, 2},
		"too great a lane":     {maxLane, 2},
		"less than the lowest": {-1, 2},
	} {
		err := s.Write(t.Context(), func(tx *sql.Tx) error { return s.AddOutItems(tx, c.lane, laneItems(1, c.seq, 1, 1)) })
		if err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	outLane(t, s, "room", laneItems(1, maxSeq, 1, 1)...)
	if got, err := s.OutItems(t.Context(), l.ID, Pos{}, 10, 1<<20); err != nil || len(got) != 1 {
		t.Errorf("the lane has %v, %v", positions(got), err)
	}
}
