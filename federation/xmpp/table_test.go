package xmpp

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

func parsePresence(t testing.TB, stanza []byte) presence {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		t.Fatalf("%s: %v", stanza, err)
	}
	return readPresence(&top, stanza)
}

// audit checks that a table's books are right.
func (tb *table) audit(t testing.TB) {
	t.Helper()
	bytes, owing := 0, 0
	for at, g := range tb.groups {
		if at != g.pair || len(g.entries) == 0 {
			t.Fatalf("group %v stands at %v with %d entries", g.pair, at, len(g.entries))
		}
		sum := 0
		for _, e := range g.entries {
			sum += e.cost
			if e.due {
				owing++
				bytes += len(e.owed)
			} else if e.gone || e.owed != nil {
				t.Fatalf("group %v: an entry that is not due is gone or owed", g.pair)
			}
		}
		if g.bytes < sum || g.bytes > sum+groupBytes+len(g.from)+2048 {
			t.Fatalf("group %v: %d bytes, its entries %d", g.pair, g.bytes, sum)
		}
		bytes += g.bytes
	}
	if tb.bytes != bytes || tb.owing != owing {
		t.Fatalf("%d bytes and %d owing, in truth %d and %d", tb.bytes, tb.owing, bytes, owing)
	}
}

// TestOwing plays random presence over a lane that fails at random, and checks
// that after all debts are paid the far side has the newest state of everyone.
func TestOwing(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tb := newTable(1 << 20)
		far, truth := map[pair]string{}, map[pair]string{}
		receive := func(stanza []byte) {
			p := parsePresence(t, stanza)
			state := string(stanza)
			if p.kind == unavailable {
				delete(far, pair{p.from, p.to})
				return
			}
			far[pair{p.from, p.to}] = state
		}
		var back [][]byte
		for i := range 200 {
			from := fmt.Sprintf("u%d@a.grid/r%d", rng.IntN(3), rng.IntN(2))
			to := fmt.Sprintf("c%d@b.grid", rng.IntN(3))
			stanza := fmt.Appendf(nil, "<presence from='%s' to='%s' id='%d'/>", from, to, i)
			if rng.IntN(3) == 0 {
				stanza = fmt.Appendf(nil, "<presence from='%s' to='%s' type='unavailable'/>", from, to)
				delete(truth, pair{from, to})
			} else {
				truth[pair{from, to}] = string(stanza)
			}
			p := parsePresence(t, stanza)
			if !tb.note(&p, stanza) {
				t.Fatal("no room")
			}
			switch rng.IntN(3) {
			case 0:
				receive(stanza)
			case 1: // arrives, and is given back all the same
				receive(stanza)
				back = append(back, stanza)
			case 2:
				back = append(back, stanza)
			}
			if rng.IntN(10) == 0 { // the link ends and comes back
				for _, s := range back {
					p := parsePresence(t, s)
					if !tb.owe(&p, s) {
						t.Fatal("no room to owe")
					}
				}
				back = nil
				tb.audit(t)
				for _, d := range tb.owed() {
					receive(d.stanza)
					tb.paid(d)
				}
				tb.audit(t)
				if tb.owing != 0 || !maps.Equal(far, truth) {
					t.Fatalf("seed %d, step %d: %d owing\nfar:   %v\ntruth: %v", seed, i, tb.owing, far, truth)
				}
			}
		}
	}
}

// The tables' books stay right whatever rooms and contacts do.
func TestTableBooks(t *testing.T) {
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 2))
		k := newUpkeep(20_000)
		for range 400 {
			stanza := randomPresence(rng)
			p := parsePresence(t, stanza)
			switch rng.IntN(12) {
			case 0:
				k.out.owe(&p, stanza)
			case 1:
				k.endPeer()
			case 2:
				for _, d := range k.out.owed() {
					if rng.IntN(2) == 0 {
						k.out.paid(d)
					}
				}
			case 3:
				k.out.leave(p.from, bareOf(p.to))
			default:
				k.out.note(&p, stanza)
				k.in.note(&p, stanza)
			}
			k.out.audit(t)
			k.in.audit(t)
			if k.in.bytes > k.in.limit+2048 || k.out.bytes > k.out.limit+2048 {
				t.Fatalf("seed %d: in %d, out %d bytes of %d", seed, k.in.bytes, k.out.bytes, k.in.limit)
			}
		}
	}
}

func randomPresence(rng *rand.Rand) []byte {
	jid := fmt.Sprintf("%d@x.grid", rng.IntN(4))
	if rng.IntN(4) > 0 {
		jid += "/" + strings.Repeat("r", rng.IntN(3)+1)
	}
	to := fmt.Sprintf("%d@y.grid", rng.IntN(4))
	if rng.IntN(2) == 0 {
		to += "/" + strings.Repeat("n", rng.IntN(200)+1)
	}
	kind := []string{"", "", " type='unavailable'"}[rng.IntN(3)]
	x := []string{
		"", "<x xmlns='http://jabber.org/protocol/muc'/>", "<x xmlns='http://jabber.org/protocol/muc#user'/>",
		"<x xmlns='http://jabber.org/protocol/muc#user'><status code='110'/></x>",
		"<x xmlns='http://jabber.org/protocol/muc#user'><status code='303'/><status code='110'/></x>",
	}[rng.IntN(5)]
	return fmt.Appendf(nil, "<presence from='%s' to='%s'%s>%s</presence>", jid, to, kind, x)
}

// A peer that invents occupants without end costs no more than its share, and is
// still served.
func TestPresenceFlood(t *testing.T) {
	w := &world{dir: federation.NewDirectory()}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	a.Connect(w, w, localFunc(func(context.Context, string, string, ...[]byte) error { sent++; return nil }))
	bob := w.dir.Now().Peer("bob")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const n = 200_000
	for i := range n {
		stanza := fmt.Appendf(nil, "<presence from='u%d@b.grid/%d' to='v%d@a.grid'/>", i, i, i%7)
		if i%3 == 0 {
			stanza = fmt.Appendf(nil, "<presence from='r@b.grid/%d' to='alice@a.grid/x'><x xmlns='http://jabber.org/protocol/muc#user'/></presence>", i)
		}
		if err := a.Deliver(context.Background(), bob, lane.Item{Body: stanza}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	p := a.peer("bob")
	p.keep.in.audit(t)
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > 2*DefaultPresenceBytes {
		t.Errorf("the heap grew by %d bytes, the table has %d of at most %d", grown, p.keep.in.bytes, DefaultPresenceBytes)
	}
	if sent != n {
		t.Errorf("%d of %d stanzas went on", sent, n)
	}
	runtime.KeepAlive(a)
}

// What is owed does not keep the buffer alive in which it came, with all the rest of
// a batch: only the stanza is charged for.
func TestOwedIsACopy(t *testing.T) {
	tb := newTable(1 << 20)
	batch := []byte("<presence from='u@a.grid/r' to='c@b.grid'/>" + strings.Repeat("<message/>", 1000))
	stanza := batch[:bytes.IndexByte(batch, '>')+1]
	p := parsePresence(t, stanza)
	if !tb.note(&p, stanza) || !tb.owe(&p, stanza) {
		t.Fatal("no room")
	}
	clear(batch)
	if d := tb.owed(); len(d) != 1 || string(d[0].stanza) != "<presence from='u@a.grid/r' to='c@b.grid'/>" {
		t.Errorf("owed: %q", d[0].stanza)
	}
}

// Pairs to ask about give way to new ones; they never take more than their share.
func TestInterestIsBounded(t *testing.T) {
	i := newInterest(10_000)
	last := pair{}
	for n := range 1000 {
		last = pair{fmt.Sprintf("u%d@a.grid", n), "bob@b.grid"}
		i.add(last)
		i.add(last)
	}
	sum := 0
	for p := range i.pairs {
		sum += pairBytes + len(p.from) + len(p.to)
	}
	if _, ok := i.pairs[last]; !ok || i.bytes != sum || sum > i.limit || sum < i.limit/2 {
		t.Errorf("%d bytes, in truth %d of %d; the newest pair is there: %v", i.bytes, sum, i.limit, ok)
	}
	i.add(pair{strings.Repeat("x", 20_000), "bob@b.grid"})
	if i.bytes != sum {
		t.Error("a pair beyond the limit drove out others")
	}
}

// An occupant learns of its own end last.
func TestEndingsOrder(t *testing.T) {
	tb := newTable(1 << 20)
	for i := range 20 {
		status := ""
		if i == 7 {
			status = "<status code='110'/>"
		}
		stanza := fmt.Appendf(nil, "<presence from='r@conference.b.grid/%d' to='alice@a.grid/x'><x xmlns='http://jabber.org/protocol/muc#user'>%s</x></presence>", i, status)
		p := parsePresence(t, stanza)
		tb.note(&p, stanza)
	}
	var g *group
	for _, g = range tb.groups {
	}
	ends := g.endings()
	if len(ends) != 20 || !strings.Contains(string(ends[19]), "/7'") {
		t.Errorf("%d endings, the last %s", len(ends), ends[len(ends)-1])
	}
	tb.oweEnds(g)
	debts := tb.owed()
	if len(debts) != 20 || debts[19].resource != "7" {
		t.Errorf("%d debts, the last for %q", len(debts), debts[len(debts)-1].resource)
	}
}

func TestReadPresence(t *testing.T) {
	const to = " from='room@b.grid/nick' to='alice@a.grid/x'"
	for _, c := range []struct {
		stanza string
		want   presence
	}{
		{"<presence" + to + "/>", presence{kind: available}},
		{"<presence type='unavailable'" + to + "/>", presence{kind: unavailable}},
		{"<presence type='probe'" + to + "/>", presence{kind: probe}},
		{"<presence type='error'" + to + "><x xmlns='http://jabber.org/protocol/muc'/></presence>", presence{kind: presenceError}},
		{"<presence type='subscribed'" + to + "/>", presence{}},
		{"<presence type='unsubscribed'" + to + "/>", presence{kind: unsubscribed}},
		{"<presence type='unsubscribe'" + to + "/>", presence{kind: unsubscribe}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc'/></presence>", presence{kind: available, join: true}},
		{"<presence" + to + "><x xmlns=\"http://jabber.org/protocol/muc\"><history/></x></presence>", presence{kind: available, join: true}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc#user'/></presence>", presence{kind: available, occupant: true}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc#admin'/></presence>", presence{kind: available}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc", presence{kind: available}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc#user'><status code=\"303\"/><status code='110'/></x></presence>",
			presence{kind: available, occupant: true, self: true, renamed: true}},
		{"<presence" + to + "><x xmlns='http://jabber.org/protocol/muc#user'><status code='1100'/><status code='11'/><status code='x110'/></x></presence>",
			presence{kind: available, occupant: true}},
		{"<presence" + to + "><status code='110'/></presence>", presence{kind: available}},
	} {
		c.want.from, c.want.to = "room@b.grid/nick", "alice@a.grid/x"
		if got := parsePresence(t, []byte(c.stanza)); got != c.want {
			t.Errorf("%s\n got %+v\nwant %+v", c.stanza, got, c.want)
		}
	}
}
