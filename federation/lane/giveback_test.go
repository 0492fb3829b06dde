package lane

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
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

func TestGivenBack(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	a.put("bob", "0", "1", "2", "3")
	stored := make(chan error, 1)
	short := Item{Kind: federation.XMPP, Conv: "a b", Body: []byte("short"), Expires: time.Now().Add(time.Millisecond)}
	if err := a.now().Put(t.Context(), "bob", Room, func(err error) { stored <- err }, short); err != nil {
		t.Fatal(err)
	}
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "what expired", func() bool { return slices.Equal(a.hall.returned(), []string{"short"}) })
	queued, err := a.now().Queued(t.Context(), "bob", 10)
	if err != nil || len(queued) != 4 {
		t.Fatalf("%d items are listed (%v), want 4", len(queued), err)
	}
	if err := a.now().Drop(t.Context(), "bob", Chat, queued[1].Seq); err != nil {
		t.Fatal(err)
	}
	if err := a.now().Drop(t.Context(), "bob", Chat, queued[1].Seq); !errors.Is(err, ErrNoItem) {
		t.Errorf("dropped twice: %v", err)
	}
	waitFor(t, "what was dropped", func() bool { return slices.Equal(a.hall.returned(), []string{"short", "1"}) })
	a.die()
	a.wake()
	b.wake()
	a.now().PeerUp("bob")
	waitFor(t, "the others", func() bool { return len(b.hall.arrived()) == 3 })
	if got := b.hall.arrived(); !slices.Equal(got, []string{"0", "2", "3"}) {
		t.Errorf("got %v, want 0, 2 and 3", got)
	}
	waitFor(t, "the acknowledgement", func() bool { return a.items(Chat, DirOut) == 0 })
	b.die()
	a.now().PeerDown("bob")
	a.put("bob", "4")
	a.peers[0] = peerNamed("bob")
	a.peers[0].State = federation.StateRemoved
	a.publish()
	waitFor(t, "what waited for the removed peer", func() bool { return len(a.hall.returned()) == 3 })
	if err := a.now().Put(t.Context(), "bob", Chat, func(error) {}, short); !errors.Is(err, federation.ErrPeerNotActive) {
		t.Errorf("put for a removed peer: %v", err)
	}
	for i, want := range []error{ErrExpired, ErrDropped, federation.ErrPeerNotActive} {
		if !errors.Is(a.hall.whys[i], want) {
			t.Errorf("%s came back with %v, want %v", a.hall.back[i], a.hall.whys[i], want)
		}
	}
	a.die()
	a.wake()
	if dead, err := a.st.Untold(t.Context(), "bob", 0, 10); err != nil || len(dead) > 0 {
		t.Errorf("%v are to be told again (%v)", dead, err)
	}
}

func TestGivenBackAroundTheDeaf(t *testing.T) {
	t.Parallel()
	a := newTown(t, "alice", "bob")
	deaf := true // guarded by hall.mu
	a.hall.deaf = func(it Item) bool { return deaf && it.Conv == "gone b" }
	a.wake()
	behind := numbered(0, buryItems+10)
	a.putIn("gone b", "bob", behind...)
	a.put("bob", "heard")
	a.peers[0] = peerNamed("bob")
	a.peers[0].State = federation.StateRemoved
	a.publish()
	waitFor(t, "the sender that can be told", func() bool { return slices.Equal(a.hall.returned(), []string{"heard"}) })
	waitFor(t, "the note of that", func() bool {
		dead, err := a.st.Untold(t.Context(), "bob", 0, 2*buryItems)
		return err == nil && len(dead) == len(behind)
	})
	a.hall.mu.Lock()
	deaf = false
	a.hall.mu.Unlock()
	signal(a.now().untold) // instead of the next round's time
	want := append([]string{"heard"}, behind...)
	waitFor(t, "the others", func() bool { return len(a.hall.returned()) >= len(want) })
	if got := a.hall.returned(); !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
	waitFor(t, "the notes of that", func() bool {
		dead, err := a.st.Untold(t.Context(), "bob", 0, 1)
		return err == nil && len(dead) == 0
	})
}
