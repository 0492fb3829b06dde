package lane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

// hall is a Recipient: it writes down what the local server would get.
type hall struct {
	hand func(ctx context.Context, items []Item) (int, error) // nil: take all
	// later, if not nil, is given each call and calls done when it likes.
	later func(items []Item, done func(int, error))
	// deaf says that the sender of an item cannot be told now; nil: all can.
	deaf func(Item) bool

	mu    sync.Mutex
	got   []string
	items []Item
	back  []string
	whys  []error
}

func (h *hall) Hand(ctx context.Context, _ *federation.Peer, items []Item, done func(int, error)) {
	if h.later != nil {
		h.later(items, done)
		return
	}
	done(h.take(ctx, items))
}

func (h *hall) take(ctx context.Context, items []Item) (n int, err error) {
	n = len(items)
	if h.hand != nil {
		n, err = h.hand(ctx, items)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, it := range items[:n] {
		h.got = append(h.got, string(it.Body))
		h.items = append(h.items, it)
	}
	return n, err
}

func (h *hall) GiveBack(_ context.Context, _ *federation.Peer, it Item, why error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.deaf != nil && h.deaf(it) {
		return errors.New("the local server refuses the stream")
	}
	h.back = append(h.back, string(it.Body))
	h.whys = append(h.whys, why)
	return nil
}

func (h *hall) arrived() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

func (h *hall) returned() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.back)
}

// town is one grid with its database, whose gateway lives, dies and lives again.
type town struct {
	t     testing.TB
	self  federation.GridID
	path  string
	dir   *federation.Directory
	hall  *hall
	peers []*federation.Peer

	mu   sync.Mutex
	live *Durable
	st   *store.Store
	stop func()
	road map[federation.GridID]*town // where its streams go
}

func newTown(t testing.TB, self string, peers ...string) *town {
	w := &town{
		t: t, self: federation.GridID(self), path: filepath.Join(t.TempDir(), "state", "db"),
		dir: federation.NewDirectory(), hall: &hall{}, road: map[federation.GridID]*town{},
	}
	for _, p := range peers {
		w.peers = append(w.peers, peerNamed(p))
	}
	w.publish()
	t.Cleanup(func() { w.die() })
	return w
}

func (w *town) publish() { w.dir.Publish(federation.NewSnapshot(w.peers, nil, nil)) }

// open makes a gateway of what is on disk, without running it.
func (w *town) open() *Durable {
	w.t.Helper()
	st, err := store.Open(context.Background(), store.Options{Path: w.path})
	if err != nil {
		w.t.Fatal(err)
	}
	epoch, err := st.NextEpoch(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := NewDurable(context.Background(), DurableConfig{
		Store: st, Streams: w, Directory: w.dir, Epoch: epoch,
		Recipients: map[federation.Protocol]Recipient{federation.XMPP: w.hall},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.st = st
	return d
}

// live starts a life of the gateway; a link is down until up is called.
func (w *town) wake() *Durable {
	w.t.Helper()
	d := w.open()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live = d
	w.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		if err := w.st.Close(); err != nil {
			w.t.Error(err)
		}
	}
	waitFor(w.t, "Run", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.running != nil })
	return d
}

func (w *town) die() {
	w.mu.Lock()
	stop := w.stop
	w.live, w.stop = nil, nil
	w.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (w *town) now() *Durable {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.live
}

func (w *town) OpenLane(ctx context.Context, peer federation.GridID, name string) (io.ReadWriteCloser, error) {
	to := w.road[peer]
	if to == nil {
		return nil, federation.ErrPeerDown
	}
	d := to.now()
	if d == nil {
		return nil, federation.ErrPeerDown
	}
	a, b := pipe()
	go d.ServeStream(context.Background(), to.dir.Now().Peer(w.self), name, b)
	return a, nil
}

// put puts bodies one by one and waits until they are on disk.
func (w *town) put(to string, bodies ...string) {
	w.t.Helper()
	w.putIn("a b", to, bodies...)
}

// putIn does so in a conversation.
func (w *town) putIn(conv, to string, bodies ...string) {
	w.t.Helper()
	stored := make(chan error, len(bodies))
	for _, b := range bodies {
		it := Item{Kind: federation.XMPP, Conv: conv, Body: []byte(b)}
		if err := w.now().Put(context.Background(), federation.GridID(to), Chat, func(err error) { stored <- err }, it); err != nil {
			w.t.Fatal(err)
		}
	}
	for range bodies {
		if err := <-stored; err != nil {
			w.t.Fatal(err)
		}
	}
}

func numbered(from, to int) (out []string) {
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func towns(t testing.TB) (a, b *town) {
	a, b = newTown(t, "alice", "bob"), newTown(t, "bob", "alice")
	a.road["bob"], b.road["alice"] = b, a
	return a, b
}

func (w *town) items(lane Name, dir Dir) (n int64) {
	for _, st := range w.now().Status(context.Background()) {
		if st.Lane == lane && st.Dir == dir {
			n += st.Items
		}
	}
	return n
}

// TestDurableCrosses sends while the peer is up, away, and after both have
// restarted: everything arrives once, in order, and leaves nothing behind.
func TestDurableCrosses(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	a.put("bob", numbered(0, 300)...) // bob is away
	if n := a.items(Chat, DirOut); n != 300 {
		t.Fatalf("%d items wait, want 300", n)
	}
	a.die()
	a.wake()
	if n, other := a.now().Waiting("bob", Chat), a.now().Waiting("bob", Bulk); n != 300 || other != 0 {
		t.Errorf("%d items wait on this lane and %d on another, want 300 and none", n, other)
	}
	a.put("bob", numbered(300, 400)...)
	b.wake()
	a.now().PeerUp("bob")
	a.put("bob", numbered(400, 900)...)
	waitFor(t, "900 items", func() bool { return len(b.hall.arrived()) == 900 })
	b.die()
	a.put("bob", numbered(900, 1000)...)
	b.wake()
	waitFor(t, "1000 items", func() bool { return len(b.hall.arrived()) >= 1000 })
	if got := b.hall.arrived(); !slices.Equal(got, numbered(0, 1000)) {
		t.Errorf("got %d items, not 0 to 999 in order: %v", len(got), got)
	}
	waitFor(t, "an empty outbox", func() bool { return a.items(Chat, DirOut) == 0 && a.now().Waiting("bob", Chat) == 0 })
	waitFor(t, "an empty inbox", func() bool { return b.items(Chat, DirIn) == 0 })
	it := b.hall.items[0]
	if it.Source == "" || it.At.IsZero() || time.Until(it.Expires) < 6*24*time.Hour {
		t.Errorf("item %+v lacks where it came from, or its times", it)
	}
}

// TestInboxSurvives kills the receiver while its local server takes nothing: what
// it has acknowledged is handed over in its next life.
func TestInboxSurvives(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	b.hall.hand = func(ctx context.Context, items []Item) (int, error) { return 0, errors.New("away") }
	a.wake()
	b.wake()
	a.now().PeerUp("bob")
	a.put("bob", numbered(0, 50)...)
	waitFor(t, "the acknowledgement", func() bool { return a.items(Chat, DirOut) == 0 })
	a.die() // nobody is left to send again
	b.die()
	b.hall.hand = nil
	b.wake()
	waitFor(t, "the inbox to be handed over", func() bool { return b.items(Chat, DirIn) == 0 })
	if got := b.hall.arrived(); !slices.Equal(got, numbered(0, 50)) {
		t.Errorf("got %v, want 0 to 49", got)
	}
	b.die()
	b.wake()
	if n := b.items(Chat, DirIn); n != 0 {
		t.Errorf("%d items are in the inbox again", n)
	}
}

// TestIDsAreTakenOnce repeats items of the same id, at once and after a restart of
// the receiver.
func TestIDsAreTakenOnce(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.wake()
	b.wake()
	a.now().PeerUp("bob")
	send := func(id string) {
		stored := make(chan error, 1)
		it := Item{ID: []byte(id), Kind: federation.XMPP, Body: []byte(id)}
		if err := a.now().Put(t.Context(), "bob", Chat, func(err error) { stored <- err }, it, it); err != nil {
			t.Fatal(err)
		}
		if err := <-stored; err != nil {
			t.Fatal(err)
		}
	}
	send("x")
	waitFor(t, "an empty outbox", func() bool { return a.items(Chat, DirOut) == 0 })
	b.die()
	b.wake()
	send("x")
	send("y")
	waitFor(t, "an empty outbox", func() bool { return a.items(Chat, DirOut) == 0 })
	waitFor(t, "an empty inbox", func() bool { return b.items(Chat, DirIn) == 0 })
	if got := b.hall.arrived(); !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("got %v, want x and y", got)
	}
}

// TestQuota fills a queue: the item that does not fit is refused, and its place
// in the order stays empty.
func TestQuota(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	a.peers[0].Policy.Limits.QueueItems = 10
	a.publish()
	a.wake()
	a.put("bob", numbered(0, 10)...)
	stored := make(chan error, 1)
	if err := a.now().Put(t.Context(), "bob", Chat, func(err error) { stored <- err }, Item{Kind: federation.XMPP, Body: []byte("no")}); err != nil {
		t.Fatal(err)
	}
	if err := <-stored; !errors.Is(err, ErrFull) {
		t.Errorf("stored(%v), want ErrFull", err)
	}
	b.wake()
	a.now().PeerUp("bob")
	waitFor(t, "an empty outbox", func() bool { return a.items(Chat, DirOut) == 0 })
	a.put("bob", "10")
	waitFor(t, "11 items", func() bool { return len(b.hall.arrived()) == 11 })
	if got := b.hall.arrived(); !slices.Equal(got, numbered(0, 11)) {
		t.Errorf("got %v, want 0 to 10", got)
	}
}

// TestGivenBack has items expire, dropped and their peer removed: each comes back
// once with its reason, in a later life if need be, and what lives on still
// arrives.
// TestGivenBackAroundTheDeaf has the senders of one conversation beyond reach, with
// more dead letters than are looked at in one go: those of another one, which came
// later, are told all the same, and the first as soon as they can be, in order.
// TestOldLifeIsRefused opens a stream in an epoch that has passed.
func TestOldLifeIsRefused(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	old := a.wake()
	old.cfg.Epoch -= 100
	b.wake()
	b.now().PeerUp("alice")
	newer, _, err := b.now().inLane(laneKey{"alice", Chat})
	if err != nil {
		t.Fatal(err)
	}
	newer.mu.Lock()
	newer.rules.Seen = old.cfg.Epoch + 1
	newer.mu.Unlock()
	old.PeerUp("bob")
	a.put("bob", "from the past")
	l, err := old.existing("bob", Chat)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.stream(t.Context()); err == nil {
		t.Error("the stream was taken")
	}
	if got := b.hall.arrived(); len(got) > 0 {
		t.Errorf("%v was taken", got)
	}
}

// TestBackPressure has a local server that takes nothing: what is held for it in
// memory is bounded, the rest stays with the peer, and another conversation of
// another peer goes on.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	a, b := towns(t)
	c := newTown(t, "carol", "bob")
	b.peers = append(b.peers, peerNamed("carol"))
	b.publish()
	c.road["bob"] = b
	release := make(chan struct{})
	b.hall.hand = func(ctx context.Context, items []Item) (int, error) {
		if items[0].Conv != "a b" {
			return len(items), nil
		}
		select {
		case <-release:
			return len(items), nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	for _, w := range []*town{a, b, c} {
		w.wake()
	}
	a.now().PeerUp("bob")
	c.now().PeerUp("bob")
	const n = heldItems + 3000
	a.put("bob", numbered(0, n)...)
	waitFor(t, "a full window", func() bool { return b.items(Chat, DirIn) >= heldItems })
	stored := make(chan error, 1)
	if err := c.now().Put(t.Context(), "bob", Chat, func(err error) { stored <- err }, Item{Kind: federation.XMPP, Conv: "c b", Body: []byte("carol's")}); err != nil {
		t.Fatal(err)
	}
	if err := <-stored; err != nil {
		t.Fatal(err)
	}
	waitFor(t, "carol's item", func() bool { return slices.Contains(b.hall.arrived(), "carol's") })
	if held := b.items(Chat, DirIn); held > heldItems {
		t.Errorf("%d items are held, at most %d may be", held, heldItems)
	}
	if waiting := a.items(Chat, DirOut); waiting < n-heldItems {
		t.Errorf("%d items wait with the peer, want %d at least", waiting, n-heldItems)
	}
	close(release)
	waitFor(t, "all items", func() bool { return len(b.hall.arrived()) == n+1 })
}
