package lane

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"

	"github.com/yggate/yggate/store"
)

// dead makes dead letters of bodies, whose senders do not know yet.
func (w *town) dead(to string, bodies ...string) {
	w.t.Helper()
	err := w.st.Write(context.Background(), func(tx *sql.Tx) error {
		l, err := w.st.AddOutLane(tx, to, string(Chat))
		if err != nil {
			return err
		}
		var items []store.LaneItem
		for i, body := range bodies {
			items = append(items, store.LaneItem{Pos: store.Pos{Epoch: 1, Seq: uint64(i + 1)}, Kind: 1, Body: []byte(body)})
		}
		return errors.Join(w.st.AddOutItems(tx, l.ID, items), w.st.BuryOut(tx, &l, items, ReasonExpired, ""))
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestToldOnce has the disk fail after senders were told: they are not told again while
// it does, nor when it works again.
func TestToldOnce(t *testing.T) {
	t.Parallel()
	a, _ := towns(t)
	d := a.open()
	want := numbered(0, buryItems+1)
	a.dead("bob", want...)
	if err := a.st.Close(); err != nil {
		t.Fatal(err)
	}
	healthy, err := store.Open(t.Context(), store.Options{Path: a.path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := healthy.Close(); err != nil {
			t.Error(err)
		}
	})
	letters, err := healthy.Untold(t.Context(), "bob", 0, buryItems)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.tell(t.Context(), newTelling(), letters); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%v, want that it is not noted", err)
		}
	}
	if got := a.hall.returned(); !slices.Equal(got, want[:buryItems]) {
		t.Errorf("told %d times of %d letters", len(got), buryItems)
	}
	d.cfg.Store = healthy
	round := map[string]*telling{}
	for more := true; more; {
		if more, err = d.giveBackOnce(t.Context(), round); err != nil {
			t.Fatal(err)
		}
	}
	if got := a.hall.returned(); !slices.Equal(got, want) {
		t.Errorf("told %d times of %d letters", len(got), len(want))
	}
	if left, err := healthy.Untold(t.Context(), "bob", 0, 10); err != nil || len(left) > 0 {
		t.Errorf("%d are to be told again, %v", len(left), err)
	}
	if len(d.told) > 0 {
		t.Errorf("%d are remembered in vain", len(d.told))
	}
}

// TestToldIsNotAnother: while a sender is told, the operator puts the letter into the queue
// again, and its row becomes another letter's. That one's sender does not know yet.
func TestToldIsNotAnother(t *testing.T) {
	t.Parallel()
	a, _ := towns(t)
	d := a.open()
	t.Cleanup(func() {
		if err := a.st.Close(); err != nil {
			t.Error(err)
		}
	})
	a.dead("bob", "first")
	letters, err := a.st.Untold(t.Context(), "bob", 0, buryItems)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.st.Write(t.Context(), func(tx *sql.Tx) error { return a.st.DropDead(tx, []int64{letters[0].Row}) }); err != nil {
		t.Fatal(err)
	}
	a.dead("carol", "second")
	if err := d.tell(t.Context(), newTelling(), letters); err != nil {
		t.Fatal(err)
	}
	if _, err := d.giveBackOnce(t.Context(), map[string]*telling{}); err != nil {
		t.Fatal(err)
	}
	if got := a.hall.returned(); !slices.Equal(got, []string{"first", "second"}) {
		t.Errorf("told of %q", got)
	}
}
