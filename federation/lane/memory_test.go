package lane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// patience is how long a test waits for what must come; it decides nothing.
const patience = 20 * time.Second

// waitFor polls for a condition that has no channel of its own.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// recorder is a Handler that writes down what happens to it.
type recorder struct {
	deliver func(ctx context.Context, it Item) error // nil: take it

	mu        sync.Mutex
	delivered []string
	returned  []string
	whys      []error
}

func (r *recorder) Deliver(ctx context.Context, _ *federation.Peer, it Item) error {
	if r.deliver != nil {
		if err := r.deliver(ctx, it); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delivered = append(r.delivered, string(it.Body))
	return nil
}

func (r *recorder) Returned(_ *federation.Peer, it Item, why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.returned = append(r.returned, string(it.Body))
	r.whys = append(r.whys, why)
}

func (r *recorder) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.delivered)
}

func (r *recorder) back() ([]string, []error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.returned), slices.Clone(r.whys)
}

// duplex is one end of a stream in memory.
type duplex struct {
	io.Reader
	io.Writer
	close func() error
}

func (d duplex) Close() error { return d.close() }

func pipe() (a, b io.ReadWriteCloser) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return duplex{ar, aw, func() error { ar.Close(); return aw.Close() }},
		duplex{br, bw, func() error { br.Close(); return bw.Close() }}
}

// side is one gateway.
type side struct {
	*Memory
	*recorder
	dir  *federation.Directory
	self federation.GridID
	open func(ctx context.Context, peer federation.GridID, name string) (io.ReadWriteCloser, error)
}

func (s *side) OpenLane(ctx context.Context, peer federation.GridID, name string) (io.ReadWriteCloser, error) {
	return s.open(ctx, peer, name)
}

func peerNamed(name string) *federation.Peer {
	return &federation.Peer{
		ID: federation.GridID(name), Name: name, State: federation.StateActive,
		Policy: federation.Policy{Allow: map[federation.Protocol]bool{federation.XMPP: true}},
	}
}

func newSide(t testing.TB, self string, window int64, peers ...string) *side {
	s := &side{recorder: &recorder{}, dir: federation.NewDirectory(), self: federation.GridID(self)}
	var known []*federation.Peer
	for _, p := range peers {
		known = append(known, peerNamed(p))
	}
	s.dir.Publish(federation.NewSnapshot(known, nil, nil))
	s.Memory = NewMemory(MemoryConfig{
		Streams: s, Directory: s.dir, Window: window,
		Handlers: map[federation.Protocol]Handler{federation.XMPP: s.recorder},
	})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// connect makes streams that from opens arrive at to.
func connect(from, to *side) {
	from.open = func(ctx context.Context, _ federation.GridID, name string) (io.ReadWriteCloser, error) {
		a, b := pipe()
		go to.ServeStream(ctx, to.dir.Now().Peer(from.self), name, b)
		return a, nil
	}
}

func pair(t testing.TB, window int64) (alice, bob *side) {
	alice, bob = newSide(t, "alice", window, "bob"), newSide(t, "bob", window, "alice")
	connect(alice, bob)
	connect(bob, alice)
	return alice, bob
}

func item(body string) Item { return Item{Kind: federation.XMPP, Conv: "c", Body: []byte(body)} }

func mustSend(t testing.TB, s *side, to string, items ...Item) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Send(ctx, federation.GridID(to), Eph, items...); err != nil {
		t.Fatalf("send: %v", err)
	}
}

func (s *side) unacked(peer string) int {
	s.Memory.mu.RLock()
	defer s.Memory.mu.RUnlock()
	ss := s.sessions[federation.GridID(peer)]
	if ss == nil {
		return 0
	}
	w := ss.window.Load()
	if w == nil {
		return 0
	}
	return w.len()
}

func TestDeliversInOrderAndSettles(t *testing.T) {
	alice, bob := pair(t, 0)
	alice.PeerUp("bob")
	var want []string
	for i := range 5000 {
		want = append(want, fmt.Sprint("item ", i))
		mustSend(t, alice, "bob", item(want[i]))
	}
	waitFor(t, "every acknowledgement", func() bool { return alice.unacked("bob") == 0 })
	if got := bob.got(); !slices.Equal(got, want) {
		t.Fatalf("bob got %d items, not the %d sent in order", len(got), len(want))
	}
	if back, _ := alice.back(); len(back) != 0 {
		t.Fatalf("%d delivered items were returned too", len(back))
	}
}

func TestKeepsEveryFieldOfAnItem(t *testing.T) {
	alice, bob := pair(t, 0)
	var got Item
	bob.deliver = func(_ context.Context, it Item) error { got = it; return nil }
	alice.PeerUp("bob")
	want := Item{ID: []byte("id-1"), Kind: federation.XMPP, Conv: "a@a/b@b", Expires: time.UnixMilli(1790000000123), Body: make([]byte, MaxBody)}
	mustSend(t, alice, "bob", want)
	waitFor(t, "the item", func() bool { return len(bob.got()) == 1 })
	if string(got.ID) != "id-1" || got.Kind != want.Kind || got.Conv != want.Conv || !got.Expires.Equal(want.Expires) || len(got.Body) != MaxBody {
		t.Fatalf("got id %q kind %q conv %q expires %v and %d bytes", got.ID, got.Kind, got.Conv, got.Expires, len(got.Body))
	}
}

func TestSendWithoutALink(t *testing.T) {
	alice, _ := pair(t, 0)
	err := alice.Send(context.Background(), "bob", Eph, item("x"))
	if !errors.Is(err, federation.ErrPeerDown) {
		t.Fatalf("send to a peer that is down: %v", err)
	}
}

func TestSendRefusesWhatNoLaneCarries(t *testing.T) {
	alice, _ := pair(t, 0)
	alice.PeerUp("bob")
	for name, it := range map[string]Item{
		"body": {Kind: federation.XMPP, Body: make([]byte, MaxBody+1)},
		"id":   {Kind: federation.XMPP, ID: make([]byte, MaxID+1)},
		"conv": {Kind: federation.XMPP, Conv: string(make([]byte, MaxConv+1))},
		"kind": {Kind: federation.MQTT},
	} {
		if err := alice.Send(context.Background(), "bob", Eph, it); !errors.Is(err, ErrItem) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := alice.Send(context.Background(), "bob", "chat", item("x")); !errors.Is(err, ErrUnknownLane) {
		t.Errorf("lane: %v", err)
	}
}

func TestFullWindowPushesBack(t *testing.T) {
	alice, bob := pair(t, 4*(itemOverhead+2))
	release := make(chan struct{})
	bob.deliver = func(ctx context.Context, _ Item) error { <-release; return nil }
	alice.PeerUp("bob")
	for range 4 {
		mustSend(t, alice, "bob", item("x"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := alice.Send(ctx, "bob", Eph, item("y")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("send into a full window: %v", err)
	}
	blocked := make(chan error)
	go func() { blocked <- alice.Send(context.Background(), "bob", Eph, item("z")) }()
	close(release)
	if err := <-blocked; err != nil {
		t.Fatalf("send after room came: %v", err)
	}
	waitFor(t, "all five", func() bool { return slices.Equal(bob.got(), []string{"x", "x", "x", "x", "z"}) })
}

func TestPeerDownGivesEverythingBackOnce(t *testing.T) {
	for name, end := range map[string]func(*side){
		"peer down": func(s *side) { s.PeerDown("bob") },
		"shutdown":  func(s *side) { s.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			alice, bob := pair(t, 4*(itemOverhead+2))
			bob.deliver = func(ctx context.Context, _ Item) error { <-ctx.Done(); return ctx.Err() }
			alice.PeerUp("bob")
			for i := range 4 {
				mustSend(t, alice, "bob", item(fmt.Sprint(i)))
			}
			blocked := make(chan error)
			go func() { blocked <- alice.Send(context.Background(), "bob", Eph, item("blocked")) }()
			end(alice)
			if b, _ := alice.back(); name == "peer down" && len(b) != 4 {
				t.Errorf("PeerDown returned with %d of 4 items given back", len(b))
			}
			if err := <-blocked; !errors.Is(err, federation.ErrPeerDown) {
				t.Errorf("blocked send ended with %v", err)
			}
			waitFor(t, "the items", func() bool { b, _ := alice.back(); return len(b) == 4 })
			back, whys := alice.back()
			if !slices.Equal(back, []string{"0", "1", "2", "3"}) {
				t.Errorf("returned %q", back)
			}
			for _, why := range whys {
				if !errors.Is(why, federation.ErrPeerDown) {
					t.Errorf("returned because %v", why)
				}
			}
			if err := alice.Send(context.Background(), "bob", Eph, item("late")); !errors.Is(err, federation.ErrPeerDown) {
				t.Errorf("send afterwards: %v", err)
			}
		})
	}
}

func TestRefusalsComeBack(t *testing.T) {
	alice, bob := pair(t, 0)
	bob.deliver = func(_ context.Context, it Item) error {
		if string(it.Body) == "bad" {
			return fmt.Errorf("wrapped: %w", &Refusal{Code: "forbidden", Text: "no\xff"})
		}
		return nil
	}
	alice.PeerUp("bob")
	for i := range 3 * maxRefused {
		mustSend(t, alice, "bob", item("bad"), item(fmt.Sprint(i)))
	}
	waitFor(t, "every acknowledgement", func() bool { return alice.unacked("bob") == 0 })
	back, whys := alice.back()
	if len(back) != 3*maxRefused || len(bob.got()) != 3*maxRefused {
		t.Fatalf("%d returned and %d delivered", len(back), len(bob.got()))
	}
	var no *Refusal
	if !errors.As(whys[0], &no) || no.Code != "forbidden" || no.Text != "no\uFFFD" {
		t.Fatalf("returned because %v", whys[0])
	}
}

func TestSlowPeerDelaysNoOther(t *testing.T) {
	hub := newSide(t, "hub", 0, "slow", "quick")
	slow, quick := newSide(t, "slow", 0, "hub"), newSide(t, "quick", 0, "hub")
	connect(slow, hub)
	connect(quick, hub)
	hub.deliver = func(ctx context.Context, it Item) error {
		if string(it.Body) == "slow" {
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	slow.PeerUp("hub")
	quick.PeerUp("hub")
	for range 100 {
		mustSend(t, slow, "hub", item("slow"))
	}
	for range 1000 {
		mustSend(t, quick, "hub", item("quick"))
	}
	waitFor(t, "the quick peer's items", func() bool { return len(hub.got()) == 1000 })
}

func benchmarkPath(b *testing.B, batch int) {
	alice, bob := pair(b, 0)
	_ = bob
	limits := federation.Limits{MessagesPerSecond: 1e9, Burst: 1 << 30, BytesPerSecond: 1 << 40}
	p := peerNamed("alice")
	p.Policy.Limits = limits
	bob.dir.Publish(federation.NewSnapshot([]*federation.Peer{p}, nil, nil))
	bob.cfg.Handlers[federation.XMPP] = discard{}
	alice.PeerUp("bob")
	body := make([]byte, 300)
	items := make([]Item, batch)
	b.ReportAllocs()
	for b.Loop() {
		for i := range items {
			items[i] = Item{Kind: federation.XMPP, Conv: "alice@a.grid/bob@b.grid", Body: body}
		}
		if err := alice.Send(context.Background(), "bob", Eph, items...); err != nil {
			b.Fatal(err)
		}
	}
	waitFor(b, "every acknowledgement", func() bool { return alice.unacked("bob") == 0 })
}

type discard struct{}

func (discard) Deliver(context.Context, *federation.Peer, Item) error { return nil }
func (discard) Returned(*federation.Peer, Item, error)                {}

func BenchmarkPath1(b *testing.B)  { benchmarkPath(b, 1) }
func BenchmarkPath16(b *testing.B) { benchmarkPath(b, 16) }
