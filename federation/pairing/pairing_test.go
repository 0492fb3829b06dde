package pairing

import (
	"database/sql"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

// invite makes an invite at g and parses it as the other side does.
func invite(t *testing.T, g *gateway, name string, expect ...string) Invite {
	t.Helper()
	s, err := g.Invite(t.Context(), name, expect, 0)
	must(t, err)
	inv, err := Parse(s)
	must(t, err)
	return inv
}

// accept looks and accepts.
func accept(t *testing.T, g, inviter *gateway, inv Invite, name string) (*federation.Peer, federation.State, error) {
	t.Helper()
	shown, err := g.Preview(t.Context(), g.dialer(t, inviter), inv)
	if err != nil {
		return nil, "", err
	}
	return g.Accept(t.Context(), g.dialer(t, inviter), shown, name)
}

func TestPairing(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	inv := invite(t, alice, "bob", "Bob.Grid")
	shown, err := bob.Preview(t.Context(), bob.dialer(t, alice), inv)
	must(t, err)
	if d := shown.Descriptor; d.Grid != alice.id.ID() || d.XMPP.Domains[0] != "alice.grid" || d.Name != "grid of 127.0.71.1" {
		t.Errorf("shown %+v", d)
	}
	if n := len(bob.reg.Directory().Now().Peers()) + len(alice.reg.Directory().Now().Peers()); n != 0 {
		t.Errorf("a look made %d peers", n)
	}
	peer, there, err := bob.Accept(t.Context(), bob.dialer(t, alice), shown, "alice")
	must(t, err)
	if peer.Name != "alice" || peer.State != federation.StateActive || there != federation.StateActive {
		t.Errorf("peer %+v, there %s", peer, there)
	}
	for _, c := range []struct {
		g            *gateway
		domain, name string
	}{{alice, "bob.grid", "bob"}, {bob, "alice.grid", "alice"}} {
		if p, err := c.g.reg.Directory().Now().Route(federation.XMPP, c.domain); err != nil || p.Name != c.name {
			t.Errorf("%s routes %s to %v, %v", c.g.ip, c.domain, p, err)
		}
	}
	list, err := alice.List(t.Context())
	must(t, err)
	if len(list) != 1 || list[0].Status != StatusUsed || list[0].UsedBy != bob.id.ID() || list[0].Expect[0] != "bob.grid" {
		t.Errorf("list %+v", list)
	}
	peerings, err := store.Peerings(t.Context(), bob.store.Read())
	must(t, err)
	if len(peerings) != 1 || peerings[0].URI != "tls://192.0.2.1:443" || peerings[0].Grid != string(alice.id.ID()) {
		t.Errorf("peerings %+v", peerings)
	}
}

// A way into the mesh that two grids named stays until both are gone.
func TestPeeringOfTwo(t *testing.T) {
	alice, bob, carol := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "carol.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	_, _, err = accept(t, bob, carol, invite(t, carol, "bob", "bob.grid"), "carol")
	must(t, err)
	for _, left := range []struct {
		name string
		n    int
	}{{"alice", 1}, {"carol", 0}} {
		must(t, bob.reg.Remove(t.Context(), left.name))
		peerings, err := store.Peerings(t.Context(), bob.store.Read())
		must(t, err)
		if len(peerings) != left.n {
			t.Errorf("without %s the peerings are %+v", left.name, peerings)
		}
	}
}

func TestUnexpectedDomainsArePending(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid", "bank.example")
	_, there, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	if there != federation.StatePending {
		t.Errorf("there %s", there)
	}
	if _, err := alice.reg.Directory().Now().Route(federation.XMPP, "bob.grid"); err == nil {
		t.Error("a pending peer is routed")
	}
	must(t, alice.reg.Approve(t.Context(), "bob"))
	if _, err := alice.reg.Directory().Now().Route(federation.XMPP, "bank.example"); err != nil {
		t.Error(err)
	}
}

func TestPolicyHidesDomainsInThePreview(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	shown, err := bob.Preview(t.Context(), bob.dialer(t, alice), invite(t, alice, "mute"))
	must(t, err)
	if shown.Descriptor.XMPP != nil {
		t.Errorf("shown %+v", shown.Descriptor.XMPP)
	}
}

func TestInviteIsForOneGrid(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	_, _, err := accept(t, bob, alice, inv, "alice")
	must(t, err)
	_, _, err = accept(t, eve, alice, inv, "alice")
	if r := wantRefusal(t, err, http.StatusConflict); !strings.Contains(r.Message, "used by another grid") || r.Hint == "" {
		t.Errorf("%+v", r)
	}
	if alice.reg.Directory().Now().Peer(eve.id.ID()) != nil {
		t.Error("eve is a peer")
	}
	// Bob did not hear the answer and comes again, even after the time is over
	// there; his own clock is behind.
	alice.advance(InviteLifetime + time.Hour)
	_, there, err := accept(t, bob, alice, inv, "alice")
	must(t, err)
	if there != federation.StateActive {
		t.Errorf("again: %s", there)
	}
}

func TestInviteIsUsedOnceInARace(t *testing.T) {
	alice := newGateway(t, "127.0.71.1", "alice.grid")
	inv := invite(t, alice, "guest", "grid")
	var won atomic.Int32
	var wg sync.WaitGroup
	shown := map[*gateway]*Preview{}
	for _, ip := range []string{"127.0.71.2", "127.0.71.3", "127.0.71.4", "127.0.71.5"} {
		g := newGateway(t, ip, "d"+ip[len(ip)-1:]+".grid")
		var err error
		shown[g], err = g.Preview(t.Context(), g.dialer(t, alice), inv)
		must(t, err)
	}
	for g, shown := range shown {
		wg.Go(func() {
			_, _, err := g.Accept(t.Context(), g.dialer(t, alice), shown, "alice")
			var refusal *Error
			switch {
			case err == nil:
				won.Add(1)
			case !errors.As(err, &refusal) || refusal.Status != http.StatusConflict:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || len(alice.reg.Directory().Now().Peers()) != 1 {
		t.Errorf("%d grids used it", won.Load())
	}
}

func TestPeersExchangeDescriptors(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	bob.openRegistry(t, "bob.grid", "muc.bob.grid", "bank.example")
	newer, err := bob.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	var answer descriptorAnswer
	must(t, bob.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{Descriptor: newer} }, &answer))
	if _, err := bob.reg.AcceptDescriptor(t.Context(), answer.Descriptor); err != nil {
		t.Errorf("answer: %v", err)
	}
	snap := alice.reg.Directory().Now()
	if _, err := snap.Route(federation.XMPP, "muc.bob.grid"); err != nil {
		t.Errorf("below a domain that bob holds: %v", err)
	}
	if _, err := snap.Route(federation.XMPP, "bank.example"); err == nil {
		t.Error("a new domain was not asked about")
	}
}

func TestRotatedKeyIsLearnt(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)

	bob.rotate(t)
	bob.openRegistry(t, "bob.grid")
	newer, err := bob.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	d := bob.dialer(t, alice)
	// The new key is a stranger's until it has shown that the old one announced it.
	wantRefusal(t, d.ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, nil), http.StatusForbidden)
	must(t, d.ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{Descriptor: newer} }, &descriptorAnswer{}))
	if p := alice.reg.Directory().Now().PeerByKey(bob.id.Key()); p == nil || p.Name != "bob" || p.State != federation.StateActive {
		t.Errorf("the new key is %+v", p)
	}
}

func TestPendingPeerIsToldNothing(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob"), "alice")
	must(t, err)
	err = bob.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, nil)
	if r := wantRefusal(t, err, http.StatusForbidden); !strings.Contains(r.Message, "pending") {
		t.Errorf("%+v", r)
	}
}

func TestBurnDecidesARace(t *testing.T) {
	alice := newGateway(t, "127.0.71.1", "alice.grid")
	inv := invite(t, alice, "guest")
	use := func(grid federation.GridID) error {
		return alice.store.Write(t.Context(), func(tx *sql.Tx) error { return burn(tx, inv.idBytes(), grid, alice.clock()) })
	}
	must(t, use("first"))
	wantRefusal(t, use("second"), http.StatusConflict)
	must(t, use("first"))
}

// A grid that was a peer here once and is one again, by another name and with another
// policy, is told other things than before: under another number.
func TestAcceptAgainByAnotherName(t *testing.T) {
	alice, bob := newGateway(t, "127.0.73.1", "alice.grid"), newGateway(t, "127.0.73.2", "bob.grid")
	known, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	must(t, bob.Exchange(t.Context(), bob.dialer(t, alice), known)) // as Run does
	if _, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "mute"); err != nil {
		t.Errorf("a peer that keeps its name: %v", err)
	}
	must(t, bob.reg.Remove(t.Context(), "alice"))
	if p, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "mute"); err != nil || p.Name != "mute" {
		t.Errorf("one that was removed: %+v, %v", p, err)
	}
	d := alice.reg.Directory().Now().Peer(bob.id.ID()).Descriptor
	if d.XMPP != nil {
		t.Errorf("alice is told %+v", d.XMPP)
	}
}
