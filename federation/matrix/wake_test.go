package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// looksUp has the homeserver do as real ones do when a client asks for an alias: it
// asks the alias's server, backoff or not.
func (s *side) looksUp(client *http.Client) *lookupLog {
	l := &lookupLog{}
	s.hs.serve(func(w http.ResponseWriter, r *http.Request) {
		alias, ok := strings.CutPrefix(r.URL.Path, "/_matrix/client/v3/directory/room/")
		if r.Method != http.MethodGet || !ok || r.Header.Get("Authorization") != "" {
			s.t.Errorf("the homeserver is asked %s %s", r.Method, r.URL)
			return
		}
		_, server, _ := strings.Cut(alias, ":")
		res, err := client.Get("https://" + server + "/_matrix/federation/v1/query/directory?room_alias=" + url.QueryEscape(alias))
		if err != nil {
			l.add(alias, 0, "")
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		raw, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			s.t.Error(err)
		}
		l.add(alias, res.StatusCode, string(raw))
		w.WriteHeader(http.StatusNotFound)
	})
	return l
}

type lookupLog struct {
	mu      sync.Mutex
	aliases []string
	answers []string
}

func (l *lookupLog) add(alias string, status int, body string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.aliases, l.answers = append(l.aliases, alias), append(l.answers, fmt.Sprintf("%d %s", status, body))
}

func (l *lookupLog) all() (aliases, answers []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append(aliases, l.aliases...), append(answers, l.answers...)
}

func (l *lookupLog) count() int { a, _ := l.all(); return len(a) }

const noAlias = `{"errcode":"M_NOT_FOUND","error":"Room alias not found"}`

// farAliasUnknown is the peer's homeserver, which has no such alias.
func farAliasUnknown(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	io.WriteString(w, noAlias)
}

func (s *side) wakeOf(server string) (found WakeStatus) {
	for _, w := range s.a.Wakes() {
		if w.Server == server {
			found = w
		}
	}
	return found
}

func TestWakeAtLinkUp(t *testing.T) {
	s := newSide(t)
	s.a.out.wakes.pace.again = time.Millisecond // the second lookup, too
	s.publish("b.grid", "c.grid")
	log := s.looksUp(s.client(false))
	s.links.serve(farAliasUnknown)
	s.a.PeerUp(s.bob.ID)
	life := s.a.out.wakes.peers[s.bob.ID]
	if s.a.PeerUp(s.bob.ID); s.a.out.wakes.peers[s.bob.ID] != life {
		t.Error("what is said twice begins twice")
	}
	eventually(t, "each name is looked up", func() bool { return log.count() >= 2*wakeTimes })
	eventually(t, "status says so", func() bool {
		return !s.wakeOf("b.grid").Reached.IsZero() && !s.wakeOf("c.grid").Reached.IsZero()
	})
	aliases, answers := log.all()
	if len(aliases) != 2*wakeTimes {
		t.Errorf("looked up %q", aliases)
	}
	for i, a := range answers {
		// Only a success makes Synapse forget its backoff, and there is no room.
		if a != `200 {"room_id":"","servers":[]}` || !strings.HasPrefix(aliases[i], "#"+wakePrefix) {
			t.Errorf("%s: %s", aliases[i], a)
		}
	}
	// A new life of the link begins anew.
	s.a.PeerDown(s.bob.ID)
	if len(s.a.Wakes()) > 0 {
		t.Errorf("with the link down: %+v", s.a.Wakes())
	}
	s.a.PeerUp(s.bob.ID)
	eventually(t, "each name is looked up again", func() bool { return log.count() == 4*wakeTimes })
}

// TestWakeIsTriedAgain goes through everything that can be in the way.
func TestWakeIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *side) (mend func())
		why   string
	}{
		"own homeserver down": {func(s *side) func() {
			s.hs.serve(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
			return func() { s.looksUp(s.client(false)) }
		}, "own homeserver does not answer"},
		"no proxy": {func(s *side) func() {
			s.hs.serve(func(w http.ResponseWriter, r *http.Request) { http.Error(w, "?", http.StatusInternalServerError) })
			return func() { s.looksUp(s.client(false)) }
		}, "is its proxy set to this gateway"},
		"far homeserver down": {func(s *side) func() {
			s.looksUp(s.client(false))
			s.links.serve(func(w http.ResponseWriter, r *http.Request) { errHomeserver.WithMessage("down").Write(w) })
			return func() { s.links.serve(farAliasUnknown) }
		}, "the peer's homeserver did not answer"},
		"far gateway refuses": {func(s *side) func() {
			s.looksUp(s.client(false))
			s.links.serve(func(w http.ResponseWriter, r *http.Request) { unrecognized("no").Write(w) })
			return func() { s.links.serve(farAliasUnknown) }
		}, "the peer's homeserver did not answer"},
		"link fails": {func(s *side) func() {
			s.looksUp(s.client(false))
			s.links.down(federation.ErrPeerDown)
			return s.links.up
		}, "the peer's homeserver did not answer"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSide(t)
			s.links.serve(farAliasUnknown)
			mend := c.spoil(s)
			s.a.PeerUp(s.bob.ID)
			eventually(t, "status says why", func() bool { return strings.Contains(s.wakeOf("b.grid").Problem, c.why) })
			if w := s.wakeOf("b.grid"); !w.Reached.IsZero() {
				t.Errorf("%+v", w)
			}
			mend()
			eventually(t, "the far homeserver is reached", func() bool { w := s.wakeOf("b.grid"); return w.Problem == "" && !w.Reached.IsZero() })
		})
	}
}

// TestWakeOfOwnHomeserver: that it is back is seen at once, however long it was away.
func TestWakeOfOwnHomeserver(t *testing.T) {
	s := newSide(t)
	s.a.out.wakes.pace.max = time.Hour
	var lookups atomic.Int64
	s.hs.serve(func(http.ResponseWriter, *http.Request) {
		lookups.Add(1)
		panic(http.ErrAbortHandler)
	})
	s.a.PeerUp(s.bob.ID)
	// Each twice as long after the one before, this would take an hour.
	eventually(t, "it is tried again and again", func() bool { return lookups.Load() >= 22 })
}

// TestWakeAfterTrouble: a far homeserver that restarts while the link is up.
func TestWakeAfterTrouble(t *testing.T) {
	s := newSide(t)
	log := s.looksUp(s.client(false))
	s.links.serve(farAliasUnknown)
	s.a.PeerUp(s.bob.ID)
	eventually(t, "the first lookup", func() bool { return log.count() == 1 && !s.wakeOf("b.grid").Reached.IsZero() })
	s.settle("b.grid")
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get(headerTarget), wakePrefix) {
			farAliasUnknown(w, r)
			return
		}
		errHomeserver.WithMessage("down").Write(w)
	})
	if res := s.do(s.client(false), http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil); res.StatusCode != http.StatusBadGateway {
		t.Errorf("%s %s", res.Status, res.body)
	}
	eventually(t, "another lookup", func() bool { return log.count() == 2 })
}

// TestWakeAfterTroubleOnTheWay: a request is lost while the link stays up, as when its
// connection for live requests breaks. The homeserver backs off for that, too.
func TestWakeAfterTroubleOnTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(s *side)
		mend  func(s *side)
	}{
		"no connection": {func(s *side) { s.links.down(federation.ErrPeerDown) }, func(s *side) { s.links.up() }},
		"a fault":       {func(s *side) { s.links.down(errors.New("stream reset")) }, func(s *side) { s.links.up() }},
		"half an answer": {func(s *side) {
			s.links.serve(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.Header.Get(headerTarget), wakePrefix) {
					farAliasUnknown(w, r)
					return
				}
				io.WriteString(w, "half of it")
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
		}, func(*side) {}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSide(t)
			log := s.looksUp(s.client(false))
			s.links.serve(farAliasUnknown)
			s.a.PeerUp(s.bob.ID)
			eventually(t, "the first lookup", func() bool { return log.count() == 1 && !s.wakeOf("b.grid").Reached.IsZero() })
			s.settle("b.grid")
			before := s.wakeOf("b.grid").Reached
			c.spoil(s)
			res, err := s.client(false).Get("https://b.grid/_matrix/federation/v1/version")
			if err == nil {
				if _, err = io.ReadAll(res.Body); err == nil && res.StatusCode < 500 {
					t.Errorf("answered %s", res.Status)
				}
				res.Body.Close()
			}
			c.mend(s)
			eventually(t, "another lookup", func() bool { return s.wakeOf("b.grid").Reached.After(before) })
		})
	}
}

// TestWakeAfterCustodyRefused: the homeserver backs off for a transaction that could not wait
// here, too, though the link is up all the time.
func TestWakeAfterCustodyRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*fakeOutbox)
		body  func() string
	}{
		"disk":             {func(f *fakeOutbox) { f.disk = errors.New("disk full") }, func() string { return "{}" }},
		"others before it": {func(f *fakeOutbox) { f.wait = 1 }, func() string { return incompressible(t) }},
	} {
		t.Run(name, func(t *testing.T) {
			s := inCustody(t)
			log := s.looksUp(s.client(false))
			s.links.serve(farAliasUnknown)
			s.a.PeerUp(s.bob.ID)
			eventually(t, "the first lookup", func() bool { return log.count() == 1 && !s.wakeOf("b.grid").Reached.IsZero() })
			s.settle("b.grid")
			before := s.wakeOf("b.grid").Reached
			s.outbox.set(func() { c.spoil(s.outbox) })
			if res := s.sendTxn(c.body()); res.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s %.100s", res.Status, res.body)
			}
			eventually(t, "another lookup", func() bool { return s.wakeOf("b.grid").Reached.After(before) })
		})
	}
}

// TestWakeAfterTroubleBeside: a server fails while the last lookup is on its way back. What
// the homeserver hears last may be the failure.
func TestWakeAfterTroubleBeside(t *testing.T) {
	s := newSide(t)
	s.links.serve(farAliasUnknown)
	inner := s.looksUp(s.client(false))
	lookUp := *s.hs.handler.Load()
	s.hs.serve(func(w http.ResponseWriter, r *http.Request) {
		if inner.count() == 0 { // it has to be the last
			s.left("b.grid", 1)
		}
		lookUp(w, r)
		if inner.count() == 1 {
			s.a.out.wakes.trouble(s.bob.ID, "b.grid")
		}
	})
	s.a.PeerUp(s.bob.ID)
	eventually(t, "another lookup", func() bool { return inner.count() == 2 })
}

// settle has nothing left to do for a name.
func (s *side) settle(name string) { s.left(name, 0) }

// left has so many lookups left to do for a name.
func (s *side) left(name string, n int) {
	w := s.a.out.wakes
	w.mu.Lock()
	k := w.peers[s.bob.ID]
	w.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.names[name].left = n
}

// TestWakeAliasIsSecret: nobody but the gateway gets the answer that is made up.
func TestWakeAliasIsSecret(t *testing.T) {
	s := newSide(t)
	s.links.serve(farAliasUnknown)
	const path = "https://b.grid/_matrix/federation/v1/query/directory?room_alias="
	for _, alias := range []string{"#room:b.grid", "#" + wakePrefix + ":b.grid", "#" + wakePrefix + "x:b.grid", s.a.out.wakes.alias("c.grid")} {
		if res := s.do(s.client(false), http.MethodGet, path+url.QueryEscape(alias), nil); res.StatusCode != http.StatusNotFound || res.body != noAlias {
			t.Errorf("%s: %s %s", alias, res.Status, res.body)
		}
	}
	// And where the peer has it, the answer is the peer's.
	if res := s.do(s.client(false), http.MethodGet, path+url.QueryEscape(s.a.out.wakes.alias("b.grid")), nil); res.StatusCode != http.StatusOK {
		t.Errorf("its own: %s %s", res.Status, res.body)
	}
}

func TestWakesFollowPolicyAndClaims(t *testing.T) {
	s := newSide(t)
	s.bob.Policy.Matrix.DenyServers = map[string]bool{"denied.grid": true}
	s.publish("b.grid", "denied.grid")
	log := s.looksUp(s.client(false))
	s.links.serve(farAliasUnknown)
	s.a.PeerUp(s.bob.ID)
	eventually(t, "b.grid is looked up", func() bool { return !s.wakeOf("b.grid").Reached.IsZero() })
	s.publish("b.grid", "denied.grid", "new.grid") // approved later
	eventually(t, "new.grid is looked up", func() bool { return !s.wakeOf("new.grid").Reached.IsZero() })
	s.publish("new.grid")
	eventually(t, "b.grid is forgotten", func() bool { return s.wakeOf("b.grid") == WakeStatus{} })
	if aliases, _ := log.all(); strings.Contains(strings.Join(aliases, " "), "denied") {
		t.Errorf("looked up %q", aliases)
	}
}

func TestAwaitUp(t *testing.T) {
	s := newSide(t)
	w := s.a.out.wakes
	w.pace.up = time.Hour
	done := make(chan struct{})
	go func() { w.awaitUp(t.Context(), s.bob.ID); close(done) }()
	s.a.PeerUp("somebody-else")
	select {
	case <-done:
		t.Fatal("did not wait for bob")
	default:
	}
	s.a.PeerUp(s.bob.ID)
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("does not notice that the link is up")
	}
	s.a.PeerDown(s.bob.ID)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.awaitUp(ctx, s.bob.ID) // returns
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error(ctx.Err())
	}
}

// TestPeersWake: a wake of the peer's finds this side's link up before the homeserver
// is woken by it, and one that cannot be reached is woken when it is back.
func TestPeersWake(t *testing.T) {
	w := newInWorld(t)
	w.a.out.wakes.pace.up = time.Hour
	target := "/_matrix/federation/v1/query/directory?room_alias=" + url.QueryEscape("#"+wakePrefix+"x:b.grid")
	asked := make(chan int, 1)
	go func() { asked <- w.do(ask{target: target}).status }()
	select {
	case status := <-asked:
		t.Errorf("did not wait for the own link: %d", status)
	case <-time.After(200 * time.Millisecond): // right code passes however slow the machine is
	}
	w.a.PeerUp(w.alice.ID)
	if status := <-asked; status != http.StatusOK || len(w.home.requests()) != 1 {
		t.Errorf("with the link up: %d, and the homeserver has been asked %d times", status, len(w.home.requests()))
	}

	k := w.a.out.wakes.peers[w.alice.ID]
	k.names["a.grid"] = &waking{}
	w.home.answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if status := w.do(ask{}).status; status != http.StatusBadGateway {
		t.Errorf("a homeserver that breaks off: %d", status)
	}
	if k.names["a.grid"].left != 1 {
		t.Error("it is not woken when it is back")
	}
}

// TestLinkUpWhileWakesBegin: whoever finds that wakes run may add to what they wait for.
// It is the race detector that sees a fault.
func TestLinkUpWhileWakesBegin(t *testing.T) {
	s := newSide(t)
	for range 300 {
		w := newWakes(s.a.out)
		ctx, cancel := context.WithCancel(t.Context())
		var ended sync.WaitGroup
		ended.Go(func() {
			if err := w.run(ctx); err != nil {
				t.Error(err)
			}
		})
		ended.Go(func() {
			for runs := false; !runs; { // at once, or it is no race
				w.mu.Lock()
				runs = w.start != nil
				w.mu.Unlock()
			}
			w.up("a-peer")
			cancel()
		})
		ended.Wait()
	}
}

func TestAliasLookup(t *testing.T) {
	for raw, want := range map[string]string{
		"/_matrix/federation/v1/query/directory?room_alias=%23yggate-wake-x%3Ab.grid":         "#yggate-wake-x:b.grid",
		"/_matrix/federation/v1/query/directory?room_alias=%23a%3Ab&room_alias=%23c%3Ad":      "",
		"/_matrix/federation/v1/query/profile?room_alias=%23yggate-wake-x%3Ab.grid":           "",
		"/_matrix/federation/v1/query/directory?x=1&room_alias=%23yggate-wake-x%3Ab.grid&y=2": "#yggate-wake-x:b.grid",
		"/_matrix/federation/v1/query/directory?room_alias=%zz":                               "",
		"/_matrix/federation/v1/query/directory":                                              "",
	} {
		target, e := parseTarget(raw)
		if e != nil {
			t.Fatal(e)
		}
		if got := aliasLookup(target); got != want || isPeersWake(target) != (want != "") {
			t.Errorf("%s: %q, want %q", raw, got, want)
		}
	}
}
