package federation

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/store"
)

func TestSecondClaimantIsInConflict(t *testing.T) {
	w, bob, eve := newWorld(t), newGrid(t), newGrid(t)
	w.introduce(t, "bob", bob.says(t, "bob.grid"), "bob.grid")
	w.introduce(t, "eve", eve.says(t, "bob.grid"), "bob.grid")
	wantClaims(t, w, "bob.grid bob active", "bob.grid eve conflict")
	owner := func() string { return w.Directory().Now().Owner(XMPP, "bob.grid").Name }
	if owner() != "bob" {
		t.Errorf("the domain went to %s", owner())
	}
	must(t, w.AssignDomain(t.Context(), XMPP, "BOB.grid", "eve"))
	wantClaims(t, w, "bob.grid bob conflict", "bob.grid eve active")
	if owner() != "eve" {
		t.Errorf("assigned to eve, held by %s", owner())
	}
	// The holder goes: the domain is no one's until the operator says so.
	must(t, w.Remove(t.Context(), "eve"))
	wantClaims(t, w, "bob.grid bob conflict")
	if w.Directory().Now().Owner(XMPP, "bob.grid") != nil {
		t.Error("the domain was silently switched")
	}
	must(t, w.AssignDomain(t.Context(), XMPP, "bob.grid", "bob"))
	if owner() != "bob" {
		t.Errorf("assigned to bob, held by %s", owner())
	}
}

func TestAssignDomainRefuses(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"))
	for name, c := range map[string]struct {
		domain, peer, want string
	}{
		"pending peer": {"bob.grid", "bob", "it is pending; approve it first"},
		"unknown peer": {"bob.grid", "nobody", "no such peer"},
		"own domain":   {"home.grid", "bob", "this grid's own"},
		"no domain":    {"1.2.3.4", "bob", "IP address"},
		"not claimed":  {"carol.grid", "bob", "pending"},
	} {
		if err := w.AssignDomain(t.Context(), XMPP, c.domain, c.peer); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, w.Approve(t.Context(), "bob"))
	if err := w.AssignDomain(t.Context(), XMPP, "carol.grid", "bob"); err == nil || !strings.Contains(err.Error(), "does not claim it") {
		t.Errorf("not claimed: %v", err)
	}
}

func TestOwnDomainCannotBeClaimed(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid", "home.grid"), "bob.grid", "home.grid")
	wantClaims(t, w, "bob.grid bob active")
	if !w.audited(t, "claim-refused") {
		t.Error("not audited")
	}
	if _, err := w.Directory().Now().Route(XMPP, "home.grid"); !errors.Is(err, ErrUnknownDomain) {
		t.Errorf("own domain is routed: %v", err)
	}
}

func TestDomainThatBecomesOurOwnIsTaken(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid", "shared.grid"), "bob.grid", "shared.grid")
	w.open(t, "shared.grid")
	wantClaims(t, w, "bob.grid bob active")
	if !w.audited(t, "claim-refused") {
		t.Error("not audited")
	}
}

func TestLaterDomains(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	accept := func(domains ...string) {
		t.Helper()
		_, err := w.AcceptDescriptor(t.Context(), g.says(t, domains...))
		must(t, err)
	}
	accept("bob.grid", "muc.bob.grid", "bank.example")
	wantClaims(t, w, "bank.example bob pending", "bob.grid bob active", "muc.bob.grid bob active")
	accept("bob.grid", "muc.bob.grid", "bank.example")
	wantClaims(t, w, "bank.example bob pending", "bob.grid bob active", "muc.bob.grid bob active")
	must(t, w.AssignDomain(t.Context(), XMPP, "bank.example", "bob"))
	accept("bob.grid")
	wantClaims(t, w, "bob.grid bob active")
}

// A grid that stops a protocol for a while names its domains no more, and its peers
// need not approve them anew.
func TestReleasedDomainComesBack(t *testing.T) {
	w, bob, carol := newWorld(t), newGrid(t), newGrid(t)
	w.introduce(t, "bob", bob.says(t, "bob.grid", "b.example"), "bob.grid", "b.example")
	w.introduce(t, "carol", carol.says(t, "carol.grid"), "carol.grid")
	accept := func(g *grid, domains ...string) {
		t.Helper()
		_, err := w.AcceptDescriptor(t.Context(), g.says(t, domains...))
		must(t, err)
	}
	accept(bob)
	wantClaims(t, w, "carol.grid carol active")
	w.open(t)
	accept(carol, "carol.grid", "b.example")
	must(t, w.AssignDomain(t.Context(), XMPP, "b.example", "carol"))
	accept(bob, "bob.grid", "b.example", "new.example")
	wantClaims(t, w, "b.example bob pending", "b.example carol active", "bob.grid bob active", "carol.grid carol active", "new.example bob pending")

	accept(bob, "bob.grid")
	accept(bob, "bob.grid", "new.example")
	wantClaims(t, w, "b.example carol active", "bob.grid bob active", "carol.grid carol active", "new.example bob pending")

	must(t, w.Remove(t.Context(), "bob"))
	w.introduce(t, "bob", bob.says(t), "bob.grid")
	accept(bob, "bob.grid")
	wantClaims(t, w, "b.example carol active", "bob.grid bob pending", "carol.grid carol active")
}

// A name that another grid was given since does not go back to the one before it.
func TestReleasedDomainOfTwo(t *testing.T) {
	w, bob, carol := newWorld(t), newGrid(t), newGrid(t)
	w.introduce(t, "bob", bob.says(t, "b.example"), "b.example")
	w.introduce(t, "carol", carol.says(t, "carol.grid"), "carol.grid")
	accept := func(g *grid, domains ...string) {
		t.Helper()
		_, err := w.AcceptDescriptor(t.Context(), g.says(t, domains...))
		must(t, err)
	}
	accept(bob)
	accept(carol, "carol.grid", "b.example")
	must(t, w.AssignDomain(t.Context(), XMPP, "b.example", "carol"))
	accept(carol, "carol.grid")
	accept(bob, "b.example")
	wantClaims(t, w, "b.example bob pending", "carol.grid carol active")
	accept(carol, "carol.grid", "b.example")
	wantClaims(t, w, "b.example bob pending", "b.example carol active", "carol.grid carol active")
}

func TestReleasedDomainsAreBounded(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	for i := range 5 {
		var names []string
		for j := range maxClaims {
			names = append(names, fmt.Sprintf("n%d-%d.bob.grid", i, j))
		}
		names[0] = "bob.grid"
		_, err := w.AcceptDescriptor(t.Context(), g.says(t, names...))
		must(t, err)
	}
	var n int
	must(t, w.store.Read().QueryRow(`SELECT count(*) FROM domain_released`).Scan(&n))
	if n != maxReleased {
		t.Errorf("%d released names are remembered, want %d", n, maxReleased)
	}
}

func TestAcceptDescriptor(t *testing.T) {
	w, g, stranger := newWorld(t), newGrid(t), newGrid(t)
	first := g.says(t, "bob.grid")
	w.introduce(t, "bob", first, "bob.grid")
	second := g.says(t, "bob.grid")
	refused := func(raw []byte, want error) {
		t.Helper()
		if _, err := w.AcceptDescriptor(t.Context(), raw); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	for range 2 { // the same again is no rollback
		_, err := w.AcceptDescriptor(t.Context(), second)
		must(t, err)
	}
	refused(first, ErrRollback)
	if !w.audited(t, "descriptor-refused") {
		t.Error("the rollback is not on record")
	}
	g.seq--
	refused(g.says(t, "other.grid"), ErrRollback) // other content, same number
	refused(stranger.says(t), ErrUnknownGrid)
	refused([]byte("{}"), ErrBadDescriptor)
	row, err := store.PeerByGrid(t.Context(), w.store.Read(), string(g.ID()))
	must(t, err)
	if !bytes.Equal(row.Envelope, second) {
		t.Error("the signed bytes are not kept as they came")
	}
}

func TestPeerRotatesItsKey(t *testing.T) {
	w := newWorld(t)
	ids := rotations(t, 2)
	g := &grid{Identity: ids[0]}
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	rotated := &grid{Identity: ids[2]} // one rotation was missed
	_, err := w.AcceptDescriptor(t.Context(), rotated.says(t, "bob.grid"))
	must(t, err)
	snap := w.Directory().Now()
	if snap.PeerByKey(ids[0].Key()) != nil {
		t.Error("the old key still is bob")
	}
	if p := snap.PeerByKey(ids[2].Key()); p == nil || p.Name != "bob" || p.ID != ids[0].ID() {
		t.Errorf("the new key is %+v", p)
	}
	if _, err := w.AcceptDescriptor(t.Context(), g.says(t, "bob.grid")); !errors.Is(err, ErrRollback) {
		t.Errorf("the old key still speaks: %v", err)
	}
	wantClaims(t, w, "bob.grid bob active")
}

// What was accepted once may be no descriptor by the rules of a later yggate. The next
// one of the peer is taken even so, if it continues that one.
func TestDescriptorOnRecordThatCannotBeRead(t *testing.T) {
	w, g := newWorld(t), newGrid(t)
	w.introduce(t, "bob", g.says(t, "bob.grid"), "bob.grid")
	g.seq++
	d := describeSelf(g.Identity, time.Now())
	d.Seq, d.Nodes = g.seq, nil
	must(t, w.store.Write(t.Context(), func(tx *sql.Tx) error {
		p, err := store.PeerByGrid(t.Context(), tx, string(g.ID()))
		p.Seq, p.Envelope = d.Seq, sign(t, g.Identity, d)
		return errors.Join(err, store.PutPeer(tx, p))
	}))
	w.open(t)
	if p := w.Directory().Now().Peer(g.ID()); p.Descriptor != nil {
		t.Fatal("it can be read")
	}
	for name, change := range map[string]func(*Descriptor){
		"an older one":      func(d *Descriptor) { d.Seq-- },
		"another successor": func(d *Descriptor) { d.Seq++; d.Next = HashKey(w.id.Key()) },
	} {
		bad := describeSelf(g.Identity, time.Now())
		bad.Seq = d.Seq
		change(bad)
		if _, err := w.AcceptDescriptor(t.Context(), sign(t, g.Identity, bad)); !errors.Is(err, ErrRollback) && !errors.Is(err, errForeignKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.AcceptDescriptor(t.Context(), g.says(t, "bob.grid")); err != nil {
		t.Fatalf("the one that mends it: %v", err)
	}
	if p := w.Directory().Now().Peer(g.ID()); p.Descriptor == nil || p.Descriptor.Seq != g.seq {
		t.Errorf("the peer has %+v", p.Descriptor)
	}
}
