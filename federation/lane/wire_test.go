package lane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// encode returns a CBOR sequence.
func encode(t testing.TB, messages ...any) []byte {
	t.Helper()
	var buf bytes.Buffer
	for _, m := range messages {
		if err := appendMessage(&buf, m); err != nil {
			t.Fatal(err)
		}
	}
	return buf.Bytes()
}

func xmppFrame(seq uint64, body string) *frame {
	return &frame{Seq: seq, Kind: kindNumber[federation.XMPP], Body: []byte(body)}
}

// A stranger's bytes on an accepted stream: what the stream ends with, and what
// was delivered before.
func TestReceiverAgainstHostileBytes(t *testing.T) {
	for name, c := range map[string]struct {
		bytes     []byte
		want      string // in the error; empty: none
		delivered int
	}{
		"nothing":         {nil, "", 0},
		"two items":       {encode(t, xmppFrame(1, "a"), xmppFrame(2, "b")), "", 2},
		"starts at 2":     {encode(t, xmppFrame(2, "a")), "frame 2 where 1 is due", 0},
		"repeats":         {encode(t, xmppFrame(1, "a"), xmppFrame(1, "a")), "frame 1 where 2 is due", 1},
		"no number":       {encode(t, xmppFrame(0, "a")), "frame 0 where 1 is due", 0},
		"cut":             {encode(t, xmppFrame(1, "a"), xmppFrame(2, "b"))[:12], "unexpected EOF", 1},
		"long id":         {encode(t, &frame{Seq: 1, ID: make([]byte, MaxID+1)}), "id of 65 bytes", 0},
		"long body":       {encode(t, &frame{Seq: 1, Body: make([]byte, MaxBody+1)}), "body of", 0},
		"long conv":       {encode(t, &frame{Seq: 1, Conv: strings.Repeat("x", MaxConv+1)}), "conversation of", 0},
		"longer than max": {encode(t, &frame{Seq: 1, Body: make([]byte, 2*MaxBody)}), "larger than the limit", 0},
		"claims 2^60":     {append([]byte{0xa1, 9, 0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 3<<20)...), "larger than the limit", 0},
		"claims to end":   {[]byte{0xa1, 9, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "decode message", 0},
		"indefinite":      {[]byte{0xbf, 1, 1, 0xff}, "decode message", 0},
		"tag":             {[]byte{0xa1, 1, 0xc1, 1}, "decode message", 0},
		"repeated key":    {[]byte{0xa2, 2, 1, 2, 1}, "decode message", 0},
		"too many keys":   {append([]byte{0xb8, 200}, make([]byte, 400)...), "decode message", 0},
		"too deep":        {append([]byte{0xa1, 0x18, 99}, bytes.Repeat([]byte{0x81}, 1000)...), "decode message", 0},
		"not a map":       {[]byte{0x01}, "decode message", 0},
		"bad utf-8":       {[]byte{0xa1, 7, 0x61, 0xff}, "decode message", 0},
		"later version":   {[]byte{0xa4, 2, 1, 6, 1, 9, 0x41, 'a', 0x18, 99, 0x61, 'x'}, "", 1},
		"text":            {[]byte("GET / HTTP/1.1\r\n\r\n"), "decode message", 0},
	} {
		t.Run(name, func(t *testing.T) {
			bob := newSide(t, "bob", 0, "alice")
			a, b := pipe()
			go func() {
				if len(c.bytes) > 0 {
					a.Write(c.bytes) // may fail once b has had enough
				}
				a.(duplex).Writer.(io.Closer).Close()
			}()
			go io.Copy(io.Discard, a)
			err := bob.ServeStream(context.Background(), bob.dir.Now().Peer("alice"), "eph", b)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("ended with %v, want %q", err, c.want)
			}
			if n := len(bob.got()); n != c.delivered {
				t.Errorf("%d items delivered, want %d", n, c.delivered)
			}
		})
	}
}

// What the lane itself refuses comes back as a refusal of that item alone.
func TestReceiverRefuses(t *testing.T) {
	bob := newSide(t, "bob", 0, "alice")
	a, b := pipe()
	ended := make(chan error, 1)
	go func() { ended <- bob.ServeStream(context.Background(), bob.dir.Now().Peer("alice"), "eph", b) }()
	acks := newReader(a, maxAck)
	var next ack
	exchange := func(f *frame) ack {
		t.Helper()
		if _, err := a.Write(encode(t, f)); err != nil {
			t.Fatal(err)
		}
		next = ack{}
		if err := acks.next(&next); err != nil {
			t.Fatal(err)
		}
		if next.Seq != f.Seq {
			t.Fatalf("ack of %d, want %d", next.Seq, f.Seq)
		}
		return next
	}
	code := func(a ack) string {
		if len(a.Refused) == 0 {
			return ""
		}
		return a.Refused[0].Code
	}
	if c := code(exchange(xmppFrame(1, "a"))); c != "" {
		t.Errorf("allowed: refused with %q", c)
	}
	if c := code(exchange(&frame{Seq: 2})); c != codeUnknownKind {
		t.Errorf("no kind: %q", c)
	}
	if c := code(exchange(&frame{Seq: 3, Kind: 1 << 60})); c != codeUnknownKind {
		t.Errorf("unknown kind: %q", c)
	}
	if c := code(exchange(&frame{Seq: 4, Kind: kindNumber[federation.MQTT]})); c != codeUnknownKind {
		t.Errorf("kind without a handler: %q", c)
	}
	// The policy is read anew for each batch.
	p := *peerNamed("alice")
	p.Policy.Allow = nil
	bob.dir.Publish(federation.NewSnapshot([]*federation.Peer{&p}, nil, nil))
	if c := code(exchange(xmppFrame(5, "b"))); c != codeNotAllowed {
		t.Errorf("not allowed: %q", c)
	}
	bob.deliver = func(context.Context, Item) error { return errors.New("disk on fire at /secret") }
	bob.dir.Publish(federation.NewSnapshot([]*federation.Peer{peerNamed("alice")}, nil, nil))
	got := exchange(xmppFrame(6, "c"))
	if code(got) != codeInternal || strings.Contains(got.Refused[0].Text, "secret") {
		t.Errorf("fault: %+v", got.Refused)
	}
	// A peer that is no longer active is not read any further.
	paused := *peerNamed("alice")
	paused.State = federation.StatePaused
	bob.dir.Publish(federation.NewSnapshot([]*federation.Peer{&paused}, nil, nil))
	if _, err := a.Write(encode(t, xmppFrame(7, "d"))); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, federation.ErrPeerNotActive) {
		t.Errorf("ended with %v", err)
	}
	if got := bob.got(); !slices.Equal(got, []string{"a"}) {
		t.Errorf("delivered %q", got)
	}
}

// A peer's acks that make no sense end the stream; each item comes back once.
func TestSenderAgainstHostileAcks(t *testing.T) {
	for name, c := range map[string]struct {
		acks []any
		back int // of three items
	}{
		"ack of nothing":       {[]any{&ack{Seq: 0}}, 3},
		"ack ahead":            {[]any{&ack{Seq: 4}}, 3},
		"ack twice":            {[]any{&ack{Seq: 1}, &ack{Seq: 1}}, 2},
		"ack going back":       {[]any{&ack{Seq: 2}, &ack{Seq: 1}}, 1},
		"refusal ahead":        {[]any{&ack{Seq: 1, Refused: []refused{{2, "x", ""}}}}, 3},
		"refusal of the past":  {[]any{&ack{Seq: 1}, &ack{Seq: 2, Refused: []refused{{1, "x", ""}}}}, 2},
		"refusal twice":        {[]any{&ack{Seq: 3, Refused: []refused{{1, "x", ""}, {1, "x", ""}}}}, 1},
		"refusals out of turn": {[]any{&ack{Seq: 3, Refused: []refused{{2, "x", ""}, {1, "x", ""}}}}, 1},
		"too many refusals":    {[]any{&ack{Seq: 3, Refused: make([]refused, maxRefused+1)}}, 3},
		"long code":            {[]any{&ack{Seq: 3, Refused: []refused{{1, strings.Repeat("x", maxCode+1), ""}}}}, 3},
		"not an ack":           {[]any{"hello"}, 3},
		"huge":                 {[]any{make([]byte, 1<<20)}, 3},
		"end":                  {nil, 3},
	} {
		t.Run(name, func(t *testing.T) {
			alice := newSide(t, "alice", 0, "bob")
			var once sync.Once
			var opened atomic.Int32
			alice.open = func(context.Context, federation.GridID, string) (io.ReadWriteCloser, error) {
				opened.Add(1)
				var a, b io.ReadWriteCloser
				once.Do(func() {
					a, b = pipe()
					go func() {
						r := newReader(b, maxFrame)
						for range 3 {
							if err := r.next(new(frame)); err != nil {
								t.Errorf("read what alice sent: %v", err)
							}
						}
						go io.Copy(io.Discard, b)
						b.Write(encode(t, c.acks...)) // ends early when alice has had enough
						if c.acks == nil {
							b.Close()
						} // else it is alice who must end the stream
					}()
				})
				if a == nil {
					return nil, federation.ErrPeerDown
				}
				return a, nil
			}
			alice.PeerUp("bob")
			mustSend(t, alice, "bob", item("0"), item("1"), item("2"))
			waitFor(t, "the items", func() bool { b, _ := alice.back(); return len(b) >= c.back })
			waitFor(t, "the stream to end", func() bool { return opened.Load() > 1 })
			alice.PeerDown("bob")
			back, _ := alice.back()
			if len(back) != c.back {
				t.Fatalf("returned %q, want %d", back, c.back)
			}
			slices.Sort(back)
			if len(slices.Compact(back)) != c.back {
				t.Fatalf("returned %q: one came twice", back)
			}
		})
	}
}

// cutter ends a stream after so many bytes in either direction.
type cutter struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	left int
}

func (c *cutter) spend(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, c.left)
	c.left -= n
	return n
}

func (c *cutter) Write(p []byte) (int, error) {
	n := c.spend(len(p))
	if m, err := c.ReadWriteCloser.Write(p[:n]); err != nil {
		return m, err
	}
	if n < len(p) {
		c.Close()
		return n, errors.New("cut")
	}
	return n, nil
}

func (c *cutter) Read(p []byte) (int, error) {
	n, err := c.ReadWriteCloser.Read(p)
	if m := c.spend(n); m < n {
		c.Close()
		return m, errors.New("cut")
	}
	return n, err
}

// Streams are cut at random while items flow: every item that Send took is
// delivered or returned, the order holds, and no stream delivers one twice.
func TestEveryItemIsDeliveredOrReturned(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			alice, bob := newSide(t, "alice", 64<<10, "bob"), newSide(t, "bob", 0, "alice")
			var mu sync.Mutex
			streams := 0
			alice.open = func(context.Context, federation.GridID, string) (io.ReadWriteCloser, error) {
				mu.Lock()
				defer mu.Unlock()
				streams++
				a, b := pipe()
				go bob.ServeStream(context.Background(), bob.dir.Now().Peer("alice"), "eph", b)
				return &cutter{ReadWriteCloser: a, left: 1 + rnd.IntN(30_000)}, nil
			}
			var taken []string
			for i := 0; len(taken) < 1000; i++ {
				alice.PeerUp("bob")
				body := fmt.Sprintf("%06d", i)
				err := alice.Send(context.Background(), "bob", Eph, item(body))
				switch {
				case err == nil:
					taken = append(taken, body)
				case errors.Is(err, federation.ErrPeerDown):
					alice.PeerDown("bob") // and up again, rather than wait for the stream
				default:
					t.Fatal(err)
				}
			}
			waitFor(t, "the last items", func() bool { return alice.unacked("bob") == 0 })
			alice.PeerDown("bob")
			delivered := bob.got()
			back, _ := alice.back()
			if !slices.IsSorted(delivered) || len(slices.Compact(slices.Clone(delivered))) != len(delivered) {
				t.Error("delivered out of order or twice")
			}
			if !slices.IsSorted(back) || len(slices.Compact(slices.Clone(back))) != len(back) {
				t.Error("returned out of order or twice")
			}
			seen := map[string]bool{}
			for _, b := range append(delivered, back...) {
				seen[b] = true
			}
			for _, b := range taken {
				if !seen[b] {
					t.Errorf("item %s was neither delivered nor returned", b)
				}
			}
			if len(seen) != len(taken) {
				t.Errorf("%d items seen, %d sent", len(seen), len(taken))
			}
			t.Logf("%d streams, %d delivered, %d returned", streams, len(delivered), len(back))
		})
	}
}

func TestRateLimitPushesBack(t *testing.T) {
	alice, bob := pair(t, 0)
	p := peerNamed("alice")
	p.Policy.Limits = federation.Limits{MessagesPerSecond: 200, Burst: 1}
	bob.dir.Publish(federation.NewSnapshot([]*federation.Peer{p}, nil, nil))
	alice.PeerUp("bob")
	start := time.Now()
	for range 41 {
		mustSend(t, alice, "bob", item("x"))
	}
	waitFor(t, "every item", func() bool { return len(bob.got()) == 41 })
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("41 items at 200/s took only %v", took)
	}
	// A new stream does not begin with a new burst.
	b := bob.budget(p)
	if b != bob.budget(p) || b.items.Burst() != 1 {
		t.Error("the peer's budget is not kept")
	}
}

func TestBurstIsThereFromTheStart(t *testing.T) {
	bob := newSide(t, "bob", 0, "alice")
	p := peerNamed("alice")
	p.Policy.Limits = federation.Limits{MessagesPerSecond: 1e-9, Burst: 100}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for i := range 100 {
		if err := bob.budget(p).wait(ctx, &p.Policy.Limits, 1); err != nil {
			t.Fatalf("item %d of a burst of 100: %v", i, err)
		}
	}
	if bob.budget(p).wait(ctx, &p.Policy.Limits, 1) == nil {
		t.Fatal("the burst has no end")
	}
}

func TestNewStreamReplacesTheOld(t *testing.T) {
	bob := newSide(t, "bob", 0, "alice")
	blocked := make(chan struct{})
	bob.deliver = func(ctx context.Context, it Item) error {
		if string(it.Body) == "stuck" {
			close(blocked)
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	}
	serve := func() (io.ReadWriteCloser, chan error) {
		a, b := pipe()
		ended := make(chan error, 1)
		go func() { ended <- bob.ServeStream(context.Background(), bob.dir.Now().Peer("alice"), "eph", b) }()
		return a, ended
	}
	first, ended := serve()
	if _, err := first.Write(encode(t, xmppFrame(1, "stuck"))); err != nil {
		t.Fatal(err)
	}
	<-blocked
	second, _ := serve()
	defer second.Close()
	if _, err := second.Write(encode(t, xmppFrame(1, "goes"))); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, errReplaced) {
		t.Errorf("the old stream ended with %v", err)
	}
	waitFor(t, "the item on the new stream", func() bool { return slices.Equal(bob.got(), []string{"goes"}) })
}

func TestUnknownLaneIsRefused(t *testing.T) {
	bob := newSide(t, "bob", 0, "alice")
	a, b := pipe()
	if err := bob.ServeStream(context.Background(), bob.dir.Now().Peer("alice"), "chat", b); !errors.Is(err, ErrUnknownLane) {
		t.Fatal(err)
	}
	if _, err := a.Read(make([]byte, 1)); err == nil {
		t.Fatal("the stream is still open")
	}
}

// A Send that was already under way when the stream ended must not be lost.
func TestWindowTakesNothingOnceDrained(t *testing.T) {
	w := newWindow(DefaultWindow)
	if err := w.put(context.Background(), []Item{item("x")}); err != nil {
		t.Fatal(err)
	}
	if left := w.drain(); len(left) != 1 {
		t.Fatalf("%d items left, want 1", len(left))
	}
	if err := w.put(context.Background(), []Item{item("y")}); !errors.Is(err, federation.ErrPeerDown) {
		t.Fatalf("put after drain: %v", err)
	}
	if _, err := w.ack(&ack{Seq: 1}); err == nil {
		t.Fatal("an ack after drain was taken")
	}
}
