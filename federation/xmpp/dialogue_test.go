package xmpp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
)

// The dialogues in testdata/dialogue are played against an Adapter between a
// recorded lane and a recorded local server, on a clock of their own. A dialogue
// begins with "== name"; then each line is one of
//
//	S: STANZA          the local server sends it
//	S from to: STANZA  the same on the stream of another pair of domains
//	O: STANZA          the local server sends it, and it is nested too deep
//	P: STANZA          the peer bob sends it; "P carol:" another peer
//	R: STANZA          the lane gives back what went to bob
//	R code text: ...   the same as a refusal
//	H: STANZA          bob's durable lane has it; "H 10s:" since then
//	G WHY: STANZA      bob's durable lane gives it back: expired, dropped, removed
//	F: STANZA          the local server could not be given it
//	! WORDS            something happens, see (*world).event
//	s: STANZA          the local server gets this now
//	p: STANZA          the peer gets this now
//	w: STANZA          this waits for the peer, on disk
//	x: CONDITION       what was sent is refused with it
//
// What happens after an upper-case line is compared, as a set, with the
// lower-case lines that follow it: nothing else may have happened.
func TestDialogues(t *testing.T) {
	files, err := filepath.Glob("testdata/dialogue/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dialogues: %v", err)
	}
	for _, file := range files {
		for _, d := range readDialogues(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+d.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { d.play(t, newWorld(t)) })
			})
		}
	}
}

type dialogue struct {
	name  string
	file  string
	lines []line
}

type line struct {
	number          int
	verb, arg, text string
}

func readDialogues(t *testing.T, file string) []dialogue {
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []dialogue
	scan := bufio.NewScanner(f)
	for n := 1; scan.Scan(); n++ {
		s := strings.TrimSpace(scan.Text())
		switch {
		case s == "" || s[0] == '#':
		case strings.HasPrefix(s, "== "):
			out = append(out, dialogue{name: s[3:], file: file})
		case len(out) == 0:
			t.Fatalf("%s:%d: no dialogue has begun", file, n)
		default:
			l := line{number: n, verb: s[:1], text: strings.TrimSpace(s[1:])}
			if l.verb != "!" {
				head, text, ok := strings.Cut(s[1:], ":")
				if !ok {
					t.Fatalf("%s:%d: no colon", file, n)
				}
				l.arg, l.text = strings.TrimSpace(head), strings.TrimSpace(text)
			}
			d := &out[len(out)-1]
			d.lines = append(d.lines, l)
		}
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func (d *dialogue) play(t *testing.T, w *world) {
	for i := 0; i < len(d.lines); {
		act := d.lines[i]
		at := fmt.Sprintf("%s:%d", d.file, act.number)
		w.do(t, at, act)
		synctest.Wait()
		var want []string
		for i++; i < len(d.lines) && strings.Contains("spxw", d.lines[i].verb); i++ {
			want = append(want, d.lines[i].verb+": "+d.lines[i].text)
		}
		got := w.take()
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: %s%s: %s\n got:\n  %s\nwant:\n  %s", at, act.verb, act.arg, act.text,
				strings.Join(got, "\n  "), strings.Join(want, "\n  "))
		}
	}
}

// world is a grid (a.grid, conference.a.grid) with the peers bob (b.grid,
// conference.b.grid), carol (c.grid), dave (paused, d.grid) and erin (without
// policy for XMPP, e.grid).
type world struct {
	dir     *federation.Directory
	adapter *Adapter

	mu      sync.Mutex
	got     []string
	down    map[federation.GridID]bool
	broken  bool            // the local server takes nothing
	store   error           // what Put says
	waiting []lane.Item     // on disk
	life    context.Context // ends with the dialogue
}

var own = map[federation.Protocol][]string{federation.XMPP: {"a.grid", "conference.a.grid"}}

func newWorld(t testing.TB) *world {
	w := &world{dir: federation.NewDirectory(), down: map[federation.GridID]bool{}}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir, Servers: [][]string{{"other.grid"}, {"a.grid", "conference.a.grid"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.adapter = a
	a.Connect(w, w, localFunc(w.toLocal))
	ctx, cancel := context.WithCancel(context.Background())
	w.life = ctx
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

func (w *world) publish(change func(peers map[string]*federation.Peer, claims map[string]string)) {
	peers := map[string]*federation.Peer{}
	for _, name := range []string{"bob", "carol", "dave", "erin"} {
		peers[name] = &federation.Peer{
			ID: federation.GridID(name), Name: name, State: federation.StateActive,
			Policy: federation.Policy{Allow: map[federation.Protocol]bool{federation.XMPP: true}},
		}
	}
	peers["dave"].State = federation.StatePaused
	peers["erin"].Policy.Allow = nil
	claims := map[string]string{
		"b.grid": "bob", "conference.b.grid": "bob", "c.grid": "carol", "d.grid": "dave", "e.grid": "erin",
		"xn--bcher-kva.grid": "bob",
	}
	if change != nil {
		change(peers, claims)
	}
	var list []*federation.Peer
	for _, p := range peers {
		list = append(list, p)
	}
	cs := []federation.Claim{{Protocol: federation.XMPP, Domain: "conflict.grid", Grid: "bob", Status: federation.ClaimConflict}}
	for d, name := range claims {
		cs = append(cs, federation.Claim{Protocol: federation.XMPP, Domain: d, Grid: federation.GridID(name), Status: federation.ClaimActive})
	}
	w.dir.Publish(federation.NewSnapshot(list, cs, own))
}

type localFunc func(ctx context.Context, from, to string, stanzas ...[]byte) error

func (f localFunc) Send(ctx context.Context, from, to string, stanzas ...[]byte) error {
	return f(ctx, from, to, stanzas...)
}

// Hand has all of it or nothing.
func (f localFunc) Hand(ctx context.Context, from, to string, stanzas ...[]byte) (int, error) {
	if err := f(ctx, from, to, stanzas...); err != nil {
		return 0, err
	}
	return len(stanzas), nil
}

func (w *world) toLocal(_ context.Context, from, to string, stanzas ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken {
		return s2s.ErrDown
	}
	for _, s := range stanzas {
		w.check(s, from, to)
		w.got = append(w.got, "s: "+string(s))
	}
	return nil
}

// Put is the durable lanes to the peers. What waits there is sent when the lane is
// up again.
func (w *world) Put(ctx context.Context, peer federation.GridID, _ lane.Name, stored func(error), items ...lane.Item) error {
	w.mu.Lock()
	err := w.store
	waits := err == nil && (w.down[peer] || w.dir.Now().Peer(peer).State != federation.StateActive)
	if waits {
		for _, it := range items {
			w.got = append(w.got, "w: "+string(it.Body))
		}
		w.waiting = append(w.waiting, items...)
	}
	w.mu.Unlock()
	if err == nil && !waits {
		err = w.Send(ctx, peer, lane.Chat, items...)
	}
	stored(err)
	return nil
}

// Send is the lane to the peers.
func (w *world) Send(_ context.Context, peer federation.GridID, _ lane.Name, items ...lane.Item) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down[peer] {
		return federation.ErrPeerDown
	}
	for _, it := range items {
		w.check(it.Body, "", "")
		// An answer goes back whence the question came, even if the peer may not
		// speak for that domain: it has it from there.
		if o := w.dir.Now().Owner(federation.XMPP, w.domains(it.Body).to); len(it.ID) == 0 && (o == nil || o.ID != peer) {
			w.got = append(w.got, "sent to the wrong peer "+string(peer))
		}
		w.got = append(w.got, "p: "+string(it.Body))
	}
	return nil
}

// check notes what neither side may ever get.
func (w *world) check(stanza []byte, from, to string) {
	if err := frame.Check(stanza, frame.Limits{}); err != nil {
		w.got = append(w.got, fmt.Sprintf("not well-formed: %s: %v", stanza, err))
	}
	p := w.domains(stanza)
	if from != "" && p != (pair{from, to}) {
		w.got = append(w.got, fmt.Sprintf("on the wrong stream %s -> %s", from, to))
	}
}

func (w *world) domains(stanza []byte) pair {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		w.got = append(w.got, err.Error())
	}
	from, _ := normalDomain(top.From)
	to, _ := normalDomain(top.To)
	return pair{from, to}
}

func (w *world) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	got := w.got
	w.got = nil
	return got
}

func (w *world) do(t *testing.T, at string, l line) {
	ctx := context.Background()
	var err error
	stanza := []byte(strings.ReplaceAll(l.text, "LARGE", strings.Repeat("x", 300<<10)))
	switch l.verb {
	case "S":
		d := w.domains(stanza)
		if l.arg != "" {
			d.from, d.to, _ = strings.Cut(l.arg, " ")
		}
		err = w.adapter.Stanzas(ctx, d.from, d.to, [][]byte{stanza}, func() {})
	case "O":
		var skipped *frame.Skipped
		lim := frame.DefaultLimits()
		lim.Depth, lim.Skip = 2, 1<<20
		if _, err := frame.NewReader(bytes.NewReader(stanza), lim).Next(); !errors.As(err, &skipped) {
			t.Fatalf("%s: not nested too deep: %v", at, err)
		}
		d := w.domains(skipped.Tag)
		if l.arg != "" {
			d.from, d.to, _ = strings.Cut(l.arg, " ")
		}
		err = w.adapter.Skipped(ctx, d.from, d.to, skipped, func() {})
	case "P":
		name := l.arg
		if name == "" {
			name = "bob"
		}
		err = w.adapter.Deliver(ctx, w.dir.Now().Peer(federation.GridID(name)), lane.Item{Kind: federation.XMPP, Body: stanza})
	case "R":
		why := fmt.Errorf("stream lost: %w", federation.ErrPeerDown)
		if code, text, ok := strings.Cut(l.arg, " "); ok {
			why = &lane.Refusal{Code: code, Text: text}
		}
		w.adapter.Returned(w.dir.Now().Peer("bob"), lane.Item{Kind: federation.XMPP, Body: stanza}, why)
	case "H":
		age, _ := time.ParseDuration(l.arg) // none: 0
		items := []lane.Item{{Kind: federation.XMPP, At: time.Now().Add(-age), Source: "1.7", Body: stanza}}
		go func() { // it waits for the local server
			n, err := w.adapter.hand(w.life, w.dir.Now().Peer("bob"), items)
			if w.life.Err() == nil && (n != 1 || err != nil) {
				w.note("x: " + conditionOf(err))
			}
		}()
	case "G":
		why := map[string]error{"expired": lane.ErrExpired, "dropped": lane.ErrDropped, "removed": federation.ErrPeerNotActive}[l.arg]
		peer := w.dir.Now().Peer("bob")
		if l.arg == "removed" {
			peer = nil
		}
		err = w.adapter.GiveBack(ctx, peer, lane.Item{Kind: federation.XMPP, Body: stanza}, why)
	case "F":
		d := w.domains(stanza)
		w.adapter.Failed(d.from, d.to, [][]byte{stanza}, errors.New("connection reset"))
	case "!":
		w.event(t, at, strings.Fields(l.text))
	default:
		t.Fatalf("%s: what is %q?", at, l.verb)
	}
	if err != nil {
		w.note("x: " + conditionOf(err))
	}
}

func (w *world) note(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got = append(w.got, line)
}

func conditionOf(err error) string {
	var refusal *lane.Refusal
	var stream *frame.Error
	switch {
	case errors.As(err, &refusal):
		return refusal.Code
	case errors.As(err, &stream):
		return string(stream.Condition)
	}
	return err.Error()
}

func (w *world) event(t *testing.T, at string, words []string) {
	switch words[0] {
	case "up": // up EPOCH: the link to bob and its lane
		epoch, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		w.lane(false)
		w.adapter.PeerUp("bob", epoch)
	case "down":
		w.lane(true)
		w.adapter.PeerDown("bob")
	case "lane": // lane up, lane down: without a word of the link
		w.lane(words[1] == "down")
	case "wait":
		d, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		time.Sleep(d) // of the dialogue's own clock
	case "local": // local down, local up, local lost, local back
		switch words[1] {
		case "lost":
			w.adapter.LocalLost("conference.a.grid")
		case "back":
			w.adapter.LocalBack("conference.a.grid")
		default:
			w.mu.Lock()
			w.broken = words[1] == "down"
			w.mu.Unlock()
		}
	case "store": // store full, store broken, store ok
		w.mu.Lock()
		w.store = map[string]error{"full": lane.ErrFull, "broken": errors.New("disk I/O error")}[words[1]]
		w.mu.Unlock()
	case "pause":
		w.publish(func(peers map[string]*federation.Peer, _ map[string]string) {
			peers["bob"].State = federation.StatePaused
		})
	case "forbid": // XMPP with bob, by policy
		w.publish(func(peers map[string]*federation.Peer, _ map[string]string) { peers["bob"].Policy.Allow = nil })
	case "resume":
		w.publish(nil)
	case "revoke": // revoke DOMAIN
		w.publish(func(_ map[string]*federation.Peer, claims map[string]string) { delete(claims, words[1]) })
	default:
		t.Fatalf("%s: what is %q?", at, words)
	}
}

func (w *world) lane(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down["bob"] = down
	if !down {
		for _, it := range w.waiting {
			w.got = append(w.got, "p: "+string(it.Body))
		}
		w.waiting = nil
	}
}
