package xmpp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
)

func message(id int, from, to string) []byte {
	return fmt.Appendf(nil, "<message type='chat' id='%d' from='%s' to='%s'><body>%d</body></message>", id, from, to, id)
}

// slowDisk is an Outbox that stores when it is told to.
type slowDisk struct {
	put    []lane.Item
	stored []func(error)
	refuse error
}

func (d *slowDisk) Put(_ context.Context, _ federation.GridID, _ lane.Name, stored func(error), items ...lane.Item) error {
	if d.refuse != nil {
		return d.refuse
	}
	d.put = append(d.put, items...)
	d.stored = append(d.stored, stored)
	return nil
}

func newDurable(t *testing.T, local LocalServer) (*world, *slowDisk) {
	w := &world{dir: federation.NewDirectory(), down: map[federation.GridID]bool{}}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir, Servers: [][]string{{"a.grid", "conference.a.grid"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.adapter = a
	d := &slowDisk{}
	if local == nil {
		local = localFunc(w.toLocal)
	}
	a.Connect(w, d, local)
	return w, d
}

// run runs the adapter while a test bubble lives.
func (w *world) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.adapter.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// A batch is settled once, when the last of its stanzas is stored or answered.
func TestSettled(t *testing.T) {
	const presence, headline = "<presence from='x@a.grid/r' to='y@b.grid'/>", "<message type='headline' from='x@a.grid' to='y@b.grid'><body/></message>"
	m1, m2 := string(message(1, "x@a.grid", "y@b.grid")), string(message(2, "x@a.grid", "y@b.grid"))
	room := "<message type='groupchat' from='x@a.grid' to='y@b.grid'><body/></message>"
	for _, c := range []struct {
		name    string
		stanzas []string
		down    bool
		puts    int
		err     error // what the disk says
		bounces int
	}{
		{name: "passes", stanzas: []string{presence, headline}},
		{name: "stored", stanzas: []string{m1, m2}, puts: 1},
		{name: "both lanes and what passes", stanzas: []string{m1, presence, room, m2}, puts: 2},
		{name: "the peer is down", stanzas: []string{m1, room, headline}, down: true, puts: 2, bounces: 1},
		{name: "full", stanzas: []string{m1, m2}, puts: 1, err: lane.ErrFull, bounces: 2},
		{name: "broken", stanzas: []string{m1, room}, puts: 2, err: errors.New("disk I/O error"), bounces: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, d := newDurable(t, nil)
				w.down["bob"] = c.down
				var settled atomic.Int32
				var batch [][]byte
				for _, s := range c.stanzas {
					batch = append(batch, []byte(s))
				}
				if err := w.adapter.Stanzas(t.Context(), "a.grid", "b.grid", batch, func() { settled.Add(1) }); err != nil {
					t.Fatal(err)
				}
				if len(d.stored) != c.puts {
					t.Fatalf("%d calls of Put, want %d", len(d.stored), c.puts)
				}
				for _, stored := range d.stored {
					if settled.Load() != 0 {
						t.Error("settled before all is stored")
					}
					stored(c.err)
				}
				if c.bounces > 0 && settled.Load() != 0 {
					t.Error("settled before its senders are told")
				}
				stop := w.run(t)
				synctest.Wait()
				stop()
				if n := settled.Load(); n != 1 {
					t.Errorf("settled %d times", n)
				}
				got := w.take()
				got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "p: ") })
				if len(got) != c.bounces {
					t.Errorf("local server got %q, want %d errors", got, c.bounces)
				}
				for _, s := range got {
					if c.err != nil && (!strings.Contains(s, "<resource-constraint ") || !strings.Contains(s, "<error type='wait'>")) {
						t.Errorf("error %s", s)
					}
				}
			})
		})
	}
}

// What is not dealt with to its end is not settled: the local server tells its
// users itself.
func TestNotSettled(t *testing.T) {
	w, d := newDurable(t, nil)
	never := func() { t.Error("settled") }
	batch := [][]byte{message(1, "x@a.grid", "y@b.grid"), message(2, "x@c.grid", "y@b.grid")}
	if err := w.adapter.Stanzas(t.Context(), "a.grid", "b.grid", batch, never); err == nil || conditionOf(err) != "invalid-from" {
		t.Errorf("error %v", err)
	}
	if len(d.put) != 1 {
		t.Errorf("%d items", len(d.put))
	}
	d.stored[0](nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.refuse = ctx.Err()
	if err := w.adapter.Stanzas(ctx, "a.grid", "b.grid", batch[:1], never); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// Items say what the lanes have to know.
func TestDurableItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newDurable(t, nil)
		w.publish(func(peers map[string]*federation.Peer, _ map[string]string) {
			peers["bob"].State = federation.StatePaused
		})
		batch := [][]byte{message(1, "x@A.grid", "y@b.grid"), []byte("<message type='groupchat' from='x@a.grid' to='y@B.grid'><body/></message>")}
		if err := w.adapter.Stanzas(t.Context(), "a.grid", "b.grid", batch, func() {}); err != nil || len(d.put) != 2 {
			t.Fatalf("%d items, error %v", len(d.put), err)
		}
		for i, expires := range []time.Time{{}, time.Now().Add(24 * time.Hour)} {
			it := d.put[i]
			if it.Conv != "a.grid b.grid" || it.Kind != federation.XMPP || len(it.ID) > 0 || !it.Expires.Equal(expires) || string(it.Body) != string(batch[i]) {
				t.Errorf("item %d: %+v", i, it)
			}
		}
		// A paused peer that policy would not let have it does not keep it waiting.
		w.publish(func(peers map[string]*federation.Peer, _ map[string]string) {
			peers["bob"].State, peers["bob"].Policy.Allow = federation.StatePaused, nil
		})
		if err := w.adapter.Stanzas(t.Context(), "a.grid", "b.grid", batch[:1], func() {}); err != nil || len(d.put) != 2 {
			t.Errorf("%d items, error %v", len(d.put), err)
		}
		if r := w.adapter.peer("bob").toLocal.take(); len(r) != 1 || !strings.Contains(string(r[0].stanza), "<forbidden ") {
			t.Errorf("%d bounces", len(r))
		}
	})
}

// However many messages the disk refuses while the local server takes no errors,
// all are answered, and the memory for that is bounded by what was put before.
func TestRefusalsOfTheDiskPushBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, d := newDurable(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var settled atomic.Int32
		sent, done := 0, make(chan error)
		go func() {
			for {
				if err := w.adapter.Stanzas(ctx, "a.grid", "b.grid", [][]byte{message(sent, "x@a.grid", "y@b.grid")}, func() { settled.Add(1) }); err != nil {
					done <- err
					return
				}
				sent++
				stored := d.stored
				d.stored = nil
				for _, f := range stored {
					f(lane.ErrFull)
				}
			}
		}()
		synctest.Wait() // it blocks
		q := w.adapter.peer("bob").toLocal
		if q.bytes < queueBytes || q.bytes > queueBytes+1000 {
			t.Errorf("%d bytes wait", q.bytes)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		n := sent
		stop := w.run(t)
		synctest.Wait()
		stop()
		if got := w.take(); len(got) != n || settled.Load() != int32(n) {
			t.Errorf("%d sent, %d answered, %d settled", n, len(got), settled.Load())
		}
	})
}

// poisoned is a local server that closes the stream over some stanzas.
type poisoned struct {
	localFunc
	got []string
	err error // for what has POISON in it
}

func (l *poisoned) Hand(_ context.Context, _, _ string, stanzas ...[]byte) (int, error) {
	for _, s := range stanzas {
		if strings.Contains(string(s), "POISON") {
			return 0, l.err // it acknowledges at the end, or not at all
		}
	}
	for _, s := range stanzas {
		l.got = append(l.got, string(s))
	}
	return len(stanzas), nil
}

// storing is an Outbox that stores at once.
type storing struct{ put []lane.Item }

func (d *storing) Put(_ context.Context, _ federation.GridID, on lane.Name, stored func(error), items ...lane.Item) error {
	if on != lane.Chat {
		stored(errors.New("not for answers: " + string(on)))
		return nil
	}
	d.put = append(d.put, items...)
	stored(nil)
	return nil
}

// What the local server will never take goes back, and those behind it arrive.
func TestPoison(t *testing.T) {
	broken := func(condition string) error {
		return fmt.Errorf("the stream broke: %w", &s2s.RemoteError{Condition: condition})
	}
	for _, c := range []struct {
		name      string
		err       error
		at        int // which of the messages it is
		condition string
		after     time.Duration // at least; not ten times as much
	}{
		{"verdict", broken("policy-violation"), 4, "policy-violation", time.Second},
		{"other verdict", broken("not-well-formed"), 4, "not-acceptable", time.Second},
		{"no reason given", errors.New("EOF"), 4, "remote-server-timeout", brokenFor},
		{"host-unknown", fmt.Errorf("%w: %w", s2s.ErrDown, broken("host-unknown")), 0, "remote-server-timeout", brokenFor},
		{"down", s2s.ErrDown, 0, "remote-server-timeout", time.Hour},
		{"going down", broken("system-shutdown"), 0, "remote-server-timeout", time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHanding(t, c.err)
				took := h.handAll(10, func(n int) bool { return n == c.at })
				if took < c.after || took > 10*c.after {
					t.Errorf("took %v", took)
				}
				if len(h.local.got) != 9 {
					t.Errorf("%d arrived", len(h.local.got))
				}
				if len(h.disk.put) != 1 || string(h.disk.put[0].ID) != fmt.Sprint("re:bob-", c.at) || h.disk.put[0].Conv != "a.grid b.grid" ||
					!strings.Contains(string(h.disk.put[0].Body), "<"+c.condition+" ") {
					t.Errorf("%d answers, the last: %s", len(h.disk.put), h.disk.put[len(h.disk.put)-1].Body)
				}
			})
		})
	}
}

// A domain that the local server does not know does not cost a minute a message.
func TestAllRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHanding(t, fmt.Errorf("%w: %w", s2s.ErrDown, &s2s.RemoteError{Condition: "host-unknown"}))
		if took := h.handAll(100, func(int) bool { return true }); took > 2*brokenFor || len(h.disk.put) != 100 {
			t.Errorf("%d answers in %v", len(h.disk.put), took)
		}
	})
}

// handing is an adapter between a peer's messages and a poisoned local server.
type handing struct {
	t     *testing.T
	w     *world
	local *poisoned
	disk  *storing
}

func newHanding(t *testing.T, err error) *handing {
	h := &handing{t: t, local: &poisoned{err: err}, disk: &storing{}}
	h.w, _ = newDurable(t, h.local)
	h.w.adapter.Connect(h.w, h.disk, h.local)
	return h
}

// handAll hands n messages as a lane does, until all are settled.
func (h *handing) handAll(n int, poison func(int) bool) time.Duration {
	begin := time.Now()
	var items []lane.Item
	for i := range n {
		body := string(message(i, "y@b.grid", "x@a.grid"))
		if poison(i) {
			body = strings.ReplaceAll(body, "</body>", "POISON</body>")
		}
		items = append(items, lane.Item{At: begin, Expires: begin.Add(time.Hour), Source: fmt.Sprint("bob-", i), Body: []byte(body)})
	}
	for len(items) > 0 {
		settled, err := h.w.adapter.hand(h.t.Context(), h.w.dir.Now().Peer("bob"), items)
		if items = items[settled:]; err == nil && len(items) > 0 {
			h.t.Fatal("no error although some are left")
		}
		if time.Since(begin) > 2*time.Hour {
			h.t.Fatal("held up for ever")
		}
	}
	return time.Since(begin)
}

// The two ways of a stanza, for the order between them.
func TestFarewell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Outward: what leaves says what it leaves behind.
		var eph []lane.Item
		w, _ := newDurable(t, nil)
		w.adapter.Connect(senderFunc(func(_ federation.GridID, items []lane.Item) error { eph = append(eph, items...); return nil }), &storing{}, localFunc(w.toLocal))
		bye := []byte("<message from='bob@b.grid/y' to='room@conference.a.grid'><body>bye</body></message>")
		gone := []byte("<presence type='unavailable' from='bob@b.grid/y' to='room@conference.a.grid/bob'/>")
		out := func(stanzas ...string) {
			eph = nil
			var batch [][]byte
			for _, s := range stanzas {
				batch = append(batch, []byte(s))
			}
			if err := w.adapter.Stanzas(t.Context(), "a.grid", "b.grid", batch, func() {}); err != nil {
				t.Fatal(err)
			}
		}
		const leave, back = "<presence type='unavailable' from='x@a.grid/r' to='y@b.grid'/>", "<presence from='x@a.grid/r' to='y@b.grid'/>"
		if out(leave); eph[0].Conv != "" {
			t.Errorf("behind nothing: %q", eph[0].Conv)
		}
		out(string(message(1, "x@a.grid/r", "y@b.grid")), back, leave)
		if eph[0].Conv != "" || len(marksAfter(eph[1].Conv)) != 1 || marksAfter(eph[1].Conv)[0] != markOf(message(1, "x@a.grid/r", "y@b.grid")) {
			t.Errorf("behind a message: %q, %q", eph[0].Conv, eph[1].Conv)
		}
		time.Sleep(farewellSpan) // on the bubble's clock
		if out(leave); eph[0].Conv != "" {
			t.Errorf("long after: %q", eph[0].Conv)
		}

		// Inward: it is held until what it left behind is there.
		var b said
		b.note(pair{}, lane.Room, bye, time.Now())
		farewell := lane.Item{Kind: federation.XMPP, Conv: b.after(pair{}, time.Now()), Body: gone}
		bob := w.dir.Now().Peer("bob")
		deliver := func(it lane.Item) time.Duration {
			begin := time.Now()
			if err := w.adapter.Deliver(t.Context(), bob, it); err != nil {
				t.Error(err)
			}
			return time.Since(begin)
		}
		w.take()
		go func() {
			time.Sleep(farewellWait / 2)
			if n, err := w.adapter.hand(t.Context(), bob, []lane.Item{{Kind: federation.XMPP, Body: bye}}); n != 1 || err != nil {
				t.Errorf("Hand: %d, %v", n, err)
			}
		}()
		deliver(farewell)
		if got := w.take(); len(got) != 2 || got[0] != "s: "+string(bye) || got[1] != "s: "+string(gone) {
			t.Errorf("got %q", got)
		}
		if d := deliver(farewell); d != 0 {
			t.Errorf("held for %v behind what is there", d)
		}
		// In vain it is held once, until something arrives again.
		b.note(pair{}, lane.Room, message(2, "bob@b.grid/y", "room@conference.a.grid"), time.Now())
		farewell.Conv = b.after(pair{}, time.Now())
		if first, second := deliver(farewell), deliver(farewell); first != farewellWait || second != 0 {
			t.Errorf("held for %v, then for %v", first, second)
		}
		for _, junk := range []string{"after", "after x", "after zz " + strings.Repeat("00", 9), "a.grid b.grid", strings.Repeat("after ", 500)} {
			if d := deliver(lane.Item{Kind: federation.XMPP, Conv: junk, Body: gone}); d != 0 {
				t.Errorf("%.20q: held for %v", junk, d)
			}
		}
	})
}

// A message that has waited says since when, and stays one stanza.
func FuzzStamped(f *testing.F) {
	f.Add("<message from='a@b.grid' to='x@a.grid'/>", int64(10_000))
	f.Add("<message from='a@b.grid' to='x@a.grid'><body>&lt;</body><delay xmlns='urn:xmpp:delay' from='b.grid'/></message>", int64(1e12))
	f.Add("<message><delay xmlns='urn:xmpp:delay' from='other.grid'/><![CDATA[</message>]]></message >", int64(0))
	a, err := New(Config{Directory: federation.NewDirectory(), Limits: frame.Limits{Stanza: 2000}})
	if err != nil {
		f.Fatal(err)
	}
	at := time.Date(2026, 11, 24, 1, 2, 3, 0, time.FixedZone("", 3600))
	f.Fuzz(func(t *testing.T, stanza string, ms int64) {
		top, err := frame.ParseTop([]byte(stanza))
		if err != nil || frame.Check([]byte(stanza), a.cfg.Limits) != nil {
			return
		}
		it := lane.Item{At: at, Body: []byte(stanza)}
		now := at.Add(time.Duration(ms%1e9) * time.Millisecond)
		got := a.stamped(&it, &top, "b.grid", now)
		if string(it.Body) != stanza {
			t.Fatal("the item was changed")
		}
		if err := frame.Check(got, a.cfg.Limits); err != nil {
			t.Fatalf("%q became %q: %v", stanza, got, err)
		}
		if again := a.stamped(&lane.Item{At: at, Body: got}, &top, "b.grid", now); string(again) != string(got) && string(got) != stanza {
			t.Fatalf("%q was stamped twice: %q", stanza, again)
		}
		const stamp = "<delay xmlns='urn:xmpp:delay' from='b.grid' stamp='2026-11-24T00:02:03.000Z'/>"
		if string(got) != stanza && (now.Sub(at) < delayAfter || !strings.Contains(string(got), stamp) || top.Kind != frame.Message) {
			t.Fatalf("%q became %q after %v", stanza, got, now.Sub(at))
		}
	})
}

func TestStamped(t *testing.T) {
	a, err := New(Config{Directory: federation.NewDirectory(), Limits: frame.Limits{Stanza: 200}})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 11, 24, 0, 0, 0, 5e8, time.UTC)
	const delay, other = "<delay xmlns='urn:xmpp:delay' from='b.grid' stamp='2026-11-24T00:00:00.500Z'/>", "<delay xmlns='urn:xmpp:delay' from='c.grid'/>"
	large := "<message><body>" + strings.Repeat("x", 150) + "</body></message>"
	for _, c := range []struct {
		stanza string
		age    time.Duration
		want   string
	}{
		{"<message/>", time.Hour, "<message>" + delay + "</message>"},
		{"<message><body/></message>", delayAfter, "<message><body/>" + delay + "</message>"},
		{"<message><body/></message>", delayAfter - 1, "<message><body/></message>"},
		{"<message><body/></message>", -time.Hour, "<message><body/></message>"},
		{"<message>" + other + "</message>", time.Hour, "<message>" + other + delay + "</message>"},
		{"<message>" + delay + "</message>", time.Hour, "<message>" + delay + "</message>"},
		{"<presence/>", time.Hour, "<presence/>"},
		{large, time.Hour, large},
	} {
		top, err := frame.ParseTop([]byte(c.stanza))
		if err != nil {
			t.Fatal(err)
		}
		if got := a.stamped(&lane.Item{At: at, Body: []byte(c.stanza)}, &top, "b.grid", at.Add(c.age)); string(got) != c.want {
			t.Errorf("%s after %v: %s", c.stanza, c.age, got)
		}
	}
	top := frame.Top{Kind: frame.Message}
	if got := a.stamped(&lane.Item{Body: []byte("<message/>")}, &top, "b.grid", at); string(got) != "<message/>" {
		t.Errorf("without a time: %s", got)
	}
}

func TestAnswerID(t *testing.T) {
	long := strings.Repeat("x", 100)
	for source, want := range map[string]string{"": "", "1.2": "re:1.2", long[:lane.MaxID-3]: "re:" + long[:lane.MaxID-3]} {
		if got := string(answerID(source)); got != want {
			t.Errorf("%s: %s", source, got)
		}
	}
	if a, b := answerID(long), answerID(long+"y"); len(a) > lane.MaxID || string(a) == string(b) || string(a) != string(answerID(long)) {
		t.Errorf("%s, %s", a, b)
	}
}
