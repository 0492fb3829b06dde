package lane

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// lock has another program hold the database until unlock is called.
func (w *town) lock() (unlock func()) {
	w.t.Helper()
	// It waits for a commit that is under way.
	other, err := sql.Open("sqlite", fmt.Sprintf("file:%s?_txlock=immediate&_pragma=busy_timeout(%d)", w.path, patience.Milliseconds()))
	if err != nil {
		w.t.Fatal(err)
	}
	held, err := other.Begin()
	if err != nil {
		w.t.Fatal(err)
	}
	var once sync.Once
	unlock = func() {
		once.Do(func() {
			if err := errors.Join(held.Rollback(), other.Close()); err != nil {
				w.t.Error(err)
			}
		})
	}
	w.t.Cleanup(unlock)
	return unlock
}

// TestLockedStore has another program hold the database: nothing is acknowledged
// while it does, and nothing is lost when it lets go.
func TestLockedStore(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	b.wake()
	a.now().PeerUp("bob")
	a.put("bob", "0")
	unlock := a.lock()
	stored := make(chan error, 1)
	if err := a.now().Put(t.Context(), "bob", Chat, func(err error) { stored <- err }, Item{Kind: federation.XMPP, Conv: "a b", Body: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the store to say that it is locked", func() bool { return a.st.Health().Err != "" })
	select {
	case err := <-stored:
		t.Fatalf("acknowledged (%v) while the database is locked", err)
	default:
	}
	unlock()
	if err := <-stored; err != nil {
		t.Errorf("not stored after the lock was gone: %v", err)
	}
	a.put("bob", "2")
	waitFor(t, "3 items", func() bool { return len(b.hall.arrived()) == 3 })
	if got := b.hall.arrived(); !slices.Equal(got, numbered(0, 3)) {
		t.Errorf("got %v, want 0, 1 and 2", got)
	}
}

// TestBadStreams has a peer that does not keep to the rules: its stream ends, with
// a reason, and the lane stands where it stood.
func TestBadStreams(t *testing.T) {
	t.Parallel()
	_, b := towns(t)
	b.wake()
	epoch := uint64(time.Now().Unix())
	good := frame{Epoch: epoch, Seq: 1, Kind: 1, Conv: "a b", Body: []byte("x")}
	tests := map[string]struct {
		send []frame
		want string
	}{
		"no epoch":         {[]frame{{Kind: 1}}, "not with an epoch alone"},
		"an item at once":  {[]frame{good}, "not with an epoch alone"},
		"a gap":            {[]frame{{Epoch: epoch}, {Epoch: epoch, Seq: 2, PrevEpoch: epoch, PrevSeq: 1, Kind: 1}}, "does not follow"},
		"a later epoch":    {[]frame{{Epoch: epoch}, {Epoch: epoch + 1, Seq: 1, Kind: 1}}, "does not follow"},
		"too long a body":  {[]frame{{Epoch: epoch}, {Epoch: epoch, Seq: 1, Kind: 1, Body: make([]byte, MaxBody+1)}}, "at most"},
		"another's number": {[]frame{{Epoch: epoch}, {Epoch: epoch, Seq: 5, PrevSeq: 4, Kind: 1}}, "does not follow"},
	}
	for name, tt := range tests {
		mine, theirs := pipe()
		ended := make(chan error, 1)
		go func() {
			ended <- b.now().ServeStream(context.Background(), b.dir.Now().Peer("alice"), string(Chat), theirs)
		}()
		go func() { // acknowledgements, which nobody needs here
			var sink bytes.Buffer
			_, _ = sink.ReadFrom(mine)
		}()
		var buf bytes.Buffer
		for i := range tt.send {
			if err := appendMessage(&buf, &tt.send[i]); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = mine.Write(buf.Bytes()) // the other side may end in the middle of it
		if err := <-ended; err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		mine.Close()
	}
	if got := b.hall.arrived(); len(got) > 0 {
		t.Errorf("%v was taken", got)
	}
	if err := b.now().ServeStream(t.Context(), b.dir.Now().Peer("alice"), "nonsense", duplex{strings.NewReader(""), &bytes.Buffer{}, func() error { return nil }}); !errors.Is(err, ErrUnknownLane) {
		t.Errorf("a lane that does not exist: %v", err)
	}
}

// TestPutFailsWhenStopped puts after the end.
func TestPutFailsWhenStopped(t *testing.T) {
	t.Parallel()
	a, _ := towns(t)
	d := a.wake()
	a.put("bob", "0")
	a.die()
	if err := d.Put(t.Context(), "bob", Chat, func(error) {}, Item{Kind: federation.XMPP}); err == nil {
		t.Error("an item was taken after the end")
	}
	if err := d.Put(t.Context(), "bob", Eph, func(error) {}, Item{Kind: federation.XMPP}); err == nil {
		t.Error("an item was taken for a lane that is not durable")
	}
}

// TestDiskBehind has the receiver's database take nothing while its local server
// takes everything: what is handed over without being on disk is bounded, because
// all of it comes again after a crash.
func TestDiskBehind(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	b.wake()
	a.now().PeerUp("bob")
	a.put("bob", "0")
	waitFor(t, "the first item", func() bool { return a.items(Chat, DirOut) == 0 })
	unlock := b.lock()
	const n = 5 * heldItems
	a.put("bob", numbered(1, n)...)
	waitFor(t, "the store to say that it is locked", func() bool { return b.st.Health().Err != "" })
	if got := len(b.hall.arrived()); got > 3*heldItems {
		t.Errorf("%d items were handed over that are not on disk", got)
	}
	unlock()
	waitFor(t, "all items", func() bool { return len(b.hall.arrived()) == n })
	if got := b.hall.arrived(); !slices.Equal(got, numbered(0, n)) {
		t.Errorf("%d items came out of order or twice", len(got))
	}
}

// TestStreamOutlivesRun: a stream may take an item while Run ends. It adds no work to
// what Run waits for, or has waited for.
func TestStreamOutlivesRun(t *testing.T) {
	t.Parallel()
	_, b := towns(t)
	d := b.wake()
	l, _, err := d.inLane(laneKey{"alice", Chat})
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the lane to run", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.life != nil })
	b.die()
	d.work = nil // whatever is added to it now is a fault
	if err := l.rules.Begin(1); err != nil {
		t.Fatal(err)
	}
	if err := l.take(&frame{Epoch: 1, Seq: 1, Kind: 1, Conv: "a b"}, false); err != nil {
		t.Error(err)
	}
}

// children is a context that knows how many contexts hang on it.
type children struct {
	context.Context
	done chan struct{}
	n    atomic.Int64
}

func (c *children) Done() <-chan struct{} { return c.done }

func (c *children) AfterFunc(func()) (stop func() bool) {
	c.n.Add(1)
	return func() bool { c.n.Add(-1); return true }
}

// TestRefusedStreamsLeaveNothing: a peer whose gateway takes no stream, as while its disk
// is full, is tried each few seconds for as long as that lasts.
func TestRefusedStreamsLeaveNothing(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	b.wake()
	a.put("bob", "0")
	l, err := a.now().existing("bob", Chat)
	if err != nil {
		t.Fatal(err)
	}
	in, _, err := b.now().inLane(laneKey{"alice", Chat})
	if err != nil {
		t.Fatal(err)
	}
	in.mu.Lock()
	in.rules.Seen = 1 << 62 // all epochs have passed
	in.mu.Unlock()
	life := &children{Context: context.Background(), done: make(chan struct{})}
	if err := l.stream(life); err == nil {
		t.Error("the stream was taken")
	}
	if n := life.n.Load(); n != 0 {
		t.Errorf("%d contexts are left of it", n)
	}
}
