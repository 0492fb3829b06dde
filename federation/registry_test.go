package federation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/store"
)

// world is a registry with its store, and a clock that tests move.
type world struct {
	*Registry
	store *store.Store
	id    *Identity
	now   time.Time
	allow map[string]map[Protocol]bool // by petname; "": anyone
}

func newWorld(t *testing.T) *world {
	t.Helper()
	id, _, _ := newIdentity(t)
	w := &world{id: id, now: time.Now().Truncate(time.Second), allow: map[string]map[Protocol]bool{"": {XMPP: true, Matrix: true}}}
	s, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "db")})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	w.store = s
	w.open(t)
	return w
}

// open opens the registry anew, as after a restart, with some more own domains.
func (w *world) open(t *testing.T, more ...string) {
	t.Helper()
	r, err := OpenRegistry(t.Context(), RegistryConfig{
		Store: w.store, Identity: w.id, Name: "home",
		Own:   map[Protocol][]string{XMPP: append([]string{"Home.grid"}, more...), Matrix: {"home.grid"}, MQTT: {"home/"}},
		Nodes: []Node{{ID: "n1", SPKI: w.id.NodeSPKI(), Addrs: []string{"tcp:127.0.0.1"}}},
		Policy: func(name string) Policy {
			if a, ok := w.allow[name]; ok {
				return Policy{Allow: a}
			}
			return Policy{Allow: w.allow[""]}
		},
		Now: func() time.Time { return w.now },
	})
	must(t, err)
	w.Registry = r
}

// grid is another grid, which signs descriptors.
type grid struct {
	*Identity
	seq uint64
}

func newGrid(t *testing.T) *grid {
	id, _, _ := newIdentity(t)
	return &grid{Identity: id}
}

// says signs a descriptor that claims XMPP domains.
func (g *grid) says(t *testing.T, domains ...string) []byte {
	t.Helper()
	g.seq++
	d := describeSelf(g.Identity, time.Now())
	d.Seq, d.XMPP, d.Matrix, d.MQTT = g.seq, nil, nil, nil
	if len(domains) > 0 {
		d.XMPP = &XMPPService{Domains: domains}
	}
	return sign(t, g.Identity, d)
}

func (w *world) introduce(t *testing.T, name string, envelope []byte, expect ...string) *Peer {
	t.Helper()
	p, err := w.Introduce(t.Context(), Introduction{Name: name, Envelope: envelope, Expect: expect})
	must(t, err)
	return p
}

// claims lists the claims on XMPP domains as "domain holder status".
func (w *world) claims() []string {
	var out []string
	snap := w.Directory().Now()
	for _, c := range snap.Claims() {
		out = append(out, fmt.Sprintf("%s %s %s", c.Domain, snap.Peer(c.Grid).Name, c.Status))
	}
	slices.Sort(out)
	return out
}

func wantClaims(t *testing.T, w *world, want ...string) {
	t.Helper()
	if got := w.claims(); !slices.Equal(got, want) {
		t.Errorf("claims %q, want %q", got, want)
	}
}

// audited says whether an event is on record.
func (w *world) audited(t *testing.T, event string) bool {
	t.Helper()
	entries, err := store.Audit(t.Context(), w.store.Read(), 1000)
	must(t, err)
	return slices.ContainsFunc(entries, func(e store.AuditEntry) bool { return e.Event == event })
}

func TestIntroduceExpectedDomainsAreActive(t *testing.T) {
	for name, c := range map[string]struct {
		domains, expect []string
		want            State
	}{
		"as expected":         {[]string{"bob.grid"}, []string{"bob.grid"}, StateActive},
		"below the expected":  {[]string{"bob.grid", "muc.bob.grid"}, []string{"bob.grid"}, StateActive},
		"one unexpected":      {[]string{"bob.grid", "alice.grid"}, []string{"bob.grid"}, StatePending},
		"only ends alike":     {[]string{"evilbob.grid"}, []string{"bob.grid"}, StatePending},
		"above the expected":  {[]string{"grid"}, []string{"bob.grid"}, StatePending},
		"nothing was asked":   {[]string{"bob.grid"}, nil, StatePending},
		"claims nothing":      {nil, []string{"bob.grid"}, StateActive},
		"a server name alone": {[]string{"bob.grid"}, []string{"bob.grid:8448"}, StatePending},
		"nothing for nothing": {nil, nil, StatePending},
	} {
		t.Run(name, func(t *testing.T) {
			w, g := newWorld(t), newGrid(t)
			p := w.introduce(t, "bob", g.says(t, c.domains...), c.expect...)
			if p.State != c.want {
				t.Fatalf("state %s, want %s", p.State, c.want)
			}
			for _, d := range c.domains {
				if _, err := w.Directory().Now().Route(XMPP, d); (err == nil) != (c.want == StateActive) {
					t.Errorf("route to %s: %v", d, err)
				}
			}
		})
	}
}

func TestRegistrySurvivesRestart(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	must(t, w.Pause(t.Context(), "bob"))
	heard := time.Unix(1_700_000_000, 0)
	must(t, w.Heard(t.Context(), g.ID(), heard.AddDate(1, 0, 0))) // the clock was ahead
	must(t, w.Heard(t.Context(), g.ID(), heard))
	w.open(t)
	p := w.Directory().Now().PeerByKey(g.Key())
	if p == nil || p.Name != "bob" || p.State != StatePaused || p.Descriptor == nil || p.Descriptor.Seq != 1 || !p.LastHeard.Equal(heard) {
		t.Fatalf("after restart: %+v", p)
	}
	wantClaims(t, w, "bob.grid bob active")
}

func TestStates(t *testing.T) {
	do := map[string]func(*Registry, context.Context, string) error{
		"approve": (*Registry).Approve, "pause": (*Registry).Pause, "resume": (*Registry).Resume,
		"block": (*Registry).Block, "remove": (*Registry).Remove,
	}
	legal := map[State]map[string]State{
		StatePending: {"approve": StateActive, "block": StateBlocked, "remove": StateRemoved},
		StateActive:  {"pause": StatePaused, "block": StateBlocked, "remove": StateRemoved},
		StatePaused:  {"resume": StateActive, "block": StateBlocked, "remove": StateRemoved},
		StateBlocked: {"remove": StateRemoved},
		StateRemoved: {"block": StateBlocked},
	}
	reach := map[State][]string{
		StatePending: {}, StateActive: {"approve"}, StatePaused: {"approve", "pause"},
		StateBlocked: {"block"}, StateRemoved: {"remove"},
	}
	for from, path := range reach {
		for verb := range do {
			t.Run(string(from)+" "+verb, func(t *testing.T) {
				w, g := newWorld(t), newGrid(t)
				w.introduce(t, "bob", g.says(t, "bob.grid"))
				for _, step := range path {
					must(t, do[step](w.Registry, t.Context(), "bob"))
				}
				want, ok := legal[from][verb]
				if !ok {
					want = from
				}
				err := do[verb](w.Registry, t.Context(), "bob")
				if ok != (err == nil) || !ok && !errors.Is(err, ErrIllegalState) {
					t.Errorf("got %v", err)
				}
				if p := w.Directory().Now().Peer(g.ID()); p.State != want {
					t.Errorf("state %s, want %s", p.State, want)
				}
				owned := w.Directory().Now().Owner(XMPP, "bob.grid") != nil
				if owned != (want == StateActive || want == StatePaused) {
					t.Errorf("in state %s the domain is held: %v", want, owned)
				}
			})
		}
	}
	w := newWorld(t)
	if err := w.Approve(t.Context(), "nobody"); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("unknown peer: %v", err)
	}
}

func TestBlockedIsForGood(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	must(t, w.Block(t.Context(), "bob"))
	if _, err := w.Introduce(t.Context(), Introduction{Name: "bob2", Envelope: g.says(t, "bob.grid"), Expect: []string{"bob.grid"}}); !errors.Is(err, ErrBlocked) {
		t.Errorf("introduced anew: %v", err)
	}
	if _, err := w.AcceptDescriptor(t.Context(), g.says(t, "bob.grid")); !errors.Is(err, ErrBlocked) {
		t.Errorf("descriptor: %v", err)
	}
	wantClaims(t, w)
}

// A change that was stored and could not be read takes effect when it is tried again,
// though there is nothing left to change.
func TestChangeThatWasNotPublished(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	rename := func(from, to string) {
		t.Helper()
		must(t, w.store.Write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec("ALTER TABLE " + from + " RENAME TO " + to)
			return err
		}))
	}
	err := w.change(t.Context(), func(tx *sql.Tx) error {
		p, err := store.PeerByGrid(t.Context(), tx, string(g.ID()))
		must(t, err)
		p.State = string(StateBlocked)
		must(t, store.PutPeer(tx, p))
		_, err = tx.Exec("ALTER TABLE domain_claim RENAME TO away")
		return err
	})
	if err == nil {
		t.Fatal("claims were read")
	}
	rename("away", "domain_claim")
	if err := w.Block(t.Context(), "bob"); !errors.Is(err, ErrIllegalState) {
		t.Errorf("once more: %v", err)
	}
	if s := w.Directory().Now().Peer(g.ID()).State; s != StateBlocked {
		t.Errorf("bob is %s", s)
	}
}

func TestRemovedMayComeBack(t *testing.T) {
	w, g, other := newWorld(t), newGrid(t), newGrid(t)
	old := g.says(t, "bob.grid")
	w.introduce(t, "bob", old, "bob.grid")
	w.introduce(t, "carol", other.says(t))
	newest := g.says(t, "bob.grid")
	if _, err := w.AcceptDescriptor(t.Context(), newest); err != nil {
		t.Fatal(err)
	}
	must(t, w.Remove(t.Context(), "bob"))
	if _, err := w.AcceptDescriptor(t.Context(), g.says(t, "bob.grid")); !errors.Is(err, ErrPeerNotActive) {
		t.Errorf("a tombstone took a descriptor: %v", err)
	}
	if _, err := w.Introduce(t.Context(), Introduction{Name: "carol", Envelope: newest}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("name of another: %v", err)
	}
	if _, err := w.Introduce(t.Context(), Introduction{Name: "bob", Envelope: old}); !errors.Is(err, ErrRollback) {
		t.Errorf("came back with an old descriptor: %v", err)
	}
	if p := w.introduce(t, "robert", g.says(t, "bob.grid"), "bob.grid"); p.State != StateActive || p.Name != "robert" {
		t.Errorf("came back as %+v", p)
	}
	wantClaims(t, w, "bob.grid robert active")
}

func TestNameOfRemovedIsFree(t *testing.T) {
	w, first, second := newWorld(t), newGrid(t), newGrid(t)
	w.introduce(t, "bob", first.says(t))
	if _, err := w.Introduce(t.Context(), Introduction{Name: "bob", Envelope: second.says(t)}); !errors.Is(err, ErrNameTaken) {
		t.Fatalf("two bobs: %v", err)
	}
	must(t, w.Remove(t.Context(), "bob"))
	w.introduce(t, "bob", second.says(t))
	must(t, w.Approve(t.Context(), "bob"))
	if s := w.Directory().Now().Peer(second.ID()).State; s != StateActive {
		t.Errorf("the living bob is %s", s)
	}
	// It is nobody else's then, and what is left of the first can be named still.
	must(t, w.Remove(t.Context(), "bob"))
	third := newGrid(t)
	w.introduce(t, "bob", third.says(t))
	names := map[string]GridID{}
	for _, p := range w.Directory().Now().Peers() {
		if other, ok := names[p.Name]; ok {
			t.Errorf("%s and %s are both %q", other.Short(), p.ID.Short(), p.Name)
		}
		names[p.Name] = p.ID
	}
	if names["bob"] != third.ID() || names[first.ID().Short()] != first.ID() || names[second.ID().Short()] != second.ID() {
		t.Errorf("names %v", names)
	}
	must(t, w.Block(t.Context(), first.ID().Short()))
	// A name that looks like an id is one like any other.
	must(t, w.Remove(t.Context(), "bob"))
	w.introduce(t, third.ID().Short(), newGrid(t).says(t))
	w.introduce(t, "bob", newGrid(t).says(t))
	if p := w.Directory().Now().Peer(third.ID()); p.Name != string(third.ID()[:9]) {
		t.Errorf("the third has become %q", p.Name)
	}
}

func TestIntroduceRefuses(t *testing.T) {
	w, g, other := newWorld(t), newGrid(t), newGrid(t)
	d, err := ParseDescriptor(other.says(t), w.now)
	must(t, err)
	own, err := w.OwnDescriptorAs(t.Context(), "x")
	must(t, err)
	failing := errors.New("together or not at all")
	for name, c := range map[string]struct {
		in   Introduction
		want string
	}{
		"bad name":       {Introduction{Name: "Bob", Envelope: g.says(t)}, "peer name"},
		"ourselves":      {Introduction{Name: "me", Envelope: own}, "this grid itself"},
		"bad descriptor": {Introduction{Name: "bob", Envelope: []byte("{}")}, "bad descriptor"},
		"another grid":   {Introduction{Name: "bob", Envelope: g.says(t), Confirmed: d}, "not the grid that was confirmed"},
		"failing with":   {Introduction{Name: "bob", Envelope: g.says(t), With: func(*sql.Tx) error { return failing }}, failing.Error()},
	} {
		if _, err := w.Introduce(t.Context(), c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.Directory().Now().Peers()); n != 0 {
		t.Errorf("%d peers", n)
	}
}

func TestIntroduceConfirmed(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	shown, err := ParseDescriptor(g.says(t, "bob.grid"), w.now)
	must(t, err)
	p, err := w.Introduce(t.Context(), Introduction{Name: "bob", Envelope: g.says(t, "bob.grid", "bank.example"), Confirmed: shown})
	must(t, err)
	if p.State != StatePending {
		t.Errorf("a domain that was not shown was approved: %s", p.State)
	}
	p, err = w.Introduce(t.Context(), Introduction{Name: "bob", Envelope: g.says(t, "bob.grid"), Confirmed: shown})
	must(t, err)
	if p.State != StateActive {
		t.Errorf("as shown, yet %s", p.State)
	}
	wantClaims(t, w, "bob.grid bob active")
}

func TestChangeWakesSubscribers(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	changed, cancel := w.Directory().Subscribe()
	defer cancel()
	must(t, w.Pause(t.Context(), "bob"))
	select {
	case <-changed: // published before Pause returned
	default:
		t.Error("no one was told")
	}
	if p := w.Directory().Now().Peer(g.ID()); p.State != StatePaused {
		t.Errorf("state %s", p.State)
	}
}

func TestCheckPetname(t *testing.T) {
	for _, ok := range []string{"b", "bob", "bob-2", "0", strings.Repeat("a", 32)} {
		must(t, CheckPetname(ok))
	}
	for _, bad := range []string{"", "-", "-a", "a-", "Bob", "b b", "b.c", "b_c", "bücher", strings.Repeat("a", 33), "a\n"} {
		if CheckPetname(bad) == nil {
			t.Errorf("%q is a name", bad)
		}
	}
}

func TestOpenRegistryRefusesBadOwnDomains(t *testing.T) {
	w := newWorld(t)
	for _, own := range []map[Protocol][]string{{XMPP: {"1.2.3.4"}}, {XMPP: {"a.b", "A.B"}}, {MQTT: {"a"}}, {"smtp": {"a.b"}}} {
		if _, err := OpenRegistry(t.Context(), RegistryConfig{Store: w.store, Identity: w.id, Own: own}); err == nil || !strings.Contains(err.Error(), "own domains") {
			t.Errorf("%v: %v", own, err)
		}
	}
}

// One domain that is expected is so for every protocol; a server name with a port
// is expected alone.
func TestIntroduceExpectedServerNames(t *testing.T) {
	for name, c := range map[string]struct {
		names, expect []string
		want          State
	}{
		"the same":                 {[]string{"bob.grid"}, []string{"bob.grid"}, StateActive},
		"with a port":              {[]string{"bob.grid:8448"}, []string{"bob.grid"}, StateActive},
		"below, with a port":       {[]string{"hs.bob.grid:8448"}, []string{"bob.grid"}, StateActive},
		"just that port":           {[]string{"bob.grid:8448"}, []string{"Bob.grid:8448"}, StateActive},
		"another port":             {[]string{"bob.grid:8449"}, []string{"bob.grid:8448"}, StatePending},
		"without the port":         {[]string{"bob.grid"}, []string{"bob.grid:8448"}, StatePending},
		"below one with a port":    {[]string{"hs.bob.grid:8448"}, []string{"bob.grid:8448"}, StatePending},
		"only ends alike":          {[]string{"evilbob.grid:8448"}, []string{"bob.grid"}, StatePending},
		"one more than expected":   {[]string{"bob.grid", "other.grid"}, []string{"bob.grid"}, StatePending},
		"each of them is expected": {[]string{"bob.grid", "other.grid:1"}, []string{"bob.grid", "other.grid:1"}, StateActive},
	} {
		t.Run(name, func(t *testing.T) {
			w, g := newWorld(t), newGrid(t)
			var expect []string
			for _, e := range c.expect {
				norm, err := NormalizeExpected(e)
				must(t, err)
				expect = append(expect, norm)
			}
			d := describeSelf(g.Identity, time.Now())
			d.Seq, d.XMPP, d.MQTT, d.Matrix = 1, nil, nil, &MatrixService{ServerNames: c.names}
			if p := w.introduce(t, "bob", sign(t, g.Identity, d), expect...); p.State != c.want {
				t.Fatalf("state %s, want %s", p.State, c.want)
			}
			for _, n := range c.names {
				if _, err := w.Directory().Now().Route(Matrix, n); (err == nil) != (c.want == StateActive) {
					t.Errorf("route to %s: %v", n, err)
				}
			}
		})
	}
	for _, bad := range []string{"", ":8448", "bob.grid:0", "1.2.3.4:8448", "@bob:bob.grid", "bob grid"} {
		if got, err := NormalizeExpected(bad); err == nil {
			t.Errorf("%q is expected as %q", bad, got)
		}
	}
}

// A change of the configuration reaches what is asked for each request.
func TestReloadTakesPolicy(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	var denied map[string]bool
	w.cfg.Policy = func(string) Policy { return Policy{Matrix: MatrixPolicy{DenyRooms: denied}} }
	must(t, w.Reload(t.Context()))
	before := w.Directory().Now().Peer(g.ID())
	denied = map[string]bool{"!spam:bob.grid": true}
	must(t, w.Reload(t.Context()))
	if p := w.Directory().Now().Peer(g.ID()); !before.Policy.Matrix.AllowsRoom("!spam:bob.grid") || p.Policy.Matrix.AllowsRoom("!spam:bob.grid") {
		t.Errorf("before %+v, after %+v", before.Policy.Matrix, p.Policy.Matrix)
	}
}
