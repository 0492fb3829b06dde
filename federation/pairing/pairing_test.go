package pairing

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
)

// invite makes an invite at g and parses it as the other side does.
func invite(t *testing.T, g *gateway, name string, expect ...string) Invite {
	t.Helper()
	s, err := g.Invite(t.Context(), name, expect)
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

func TestInviteRevokedAndExpired(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	revoked := invite(t, alice, "bob")
	must(t, alice.Revoke(t.Context(), revoked.ID()))
	_, _, err := accept(t, bob, alice, revoked, "alice")
	wantRefusal(t, err, http.StatusGone)
	if err := alice.Revoke(t.Context(), revoked.ID()); err == nil || !strings.Contains(err.Error(), "no unused invite") {
		t.Errorf("revoked twice: %v", err)
	}
	if err := alice.Revoke(t.Context(), "zz"); err == nil || !strings.Contains(err.Error(), "list of invites") {
		t.Errorf("bad id: %v", err)
	}

	old := invite(t, alice, "bob")
	alice.advance(InviteLifetime)
	_, _, err = accept(t, bob, alice, old, "alice")
	if r := wantRefusal(t, err, http.StatusGone); !strings.Contains(r.Message, old.Expires.UTC().Format("2006-01-02")) {
		t.Errorf("no date in %q", r.Message)
	}
	bob.advance(InviteLifetime)
	if _, err := bob.Preview(t.Context(), bob.dialer(t, alice), old); err == nil || !strings.Contains(err.Error(), "it expired at") {
		t.Errorf("expired by the own clock: %v", err)
	}
}

func TestWrongMACDoesNotBurnTheInvite(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	desc, err := eve.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	d := eve.dialer(t, alice)
	try := func(id, mac []byte) {
		t.Helper()
		err := d.ask(alice, PathPair, func(*session) any { return pairRequest{Invite: id, MAC: mac, Descriptor: desc} }, nil)
		wantRefusal(t, err, http.StatusForbidden)
	}
	try(inv.idBytes(), make([]byte, 32))
	try(inv.idBytes(), nil)
	try(make([]byte, 16), make([]byte, 32))
	if n := audited(t, alice, "invite-refused"); n != 3 {
		t.Errorf("%d refusals on record", n)
	}
	if _, _, err := accept(t, bob, alice, inv, "alice"); err != nil {
		t.Fatalf("the invite was burnt: %v", err)
	}
}

// TestUnknownInviteHasNoKey would pass any HMAC made with an empty key, if an
// invite that is not on record had one.
func TestUnknownInviteHasNoKey(t *testing.T) {
	alice, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	desc, err := eve.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	err = eve.dialer(t, alice).ask(alice, PathPair, func(s *session) any {
		mac, err := sessionMAC(nil, roleAccept, &s.state)
		must(t, err)
		return pairRequest{Invite: make([]byte, 16), MAC: mac, Descriptor: desc}
	}, nil)
	wantRefusal(t, err, http.StatusForbidden)
}

func TestProofIsBoundToSessionAndRole(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	desc, err := bob.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	d := bob.dialer(t, alice)
	var elsewhere []byte
	must(t, d.ask(alice, PathDescriptor, func(s *session) any {
		elsewhere, err = sessionMAC(inv.macKey(), roleAccept, &s.state)
		must(t, err)
		look, err := sessionMAC(inv.macKey(), roleLook, &s.state)
		must(t, err)
		return descriptorRequest{Invite: inv.idBytes(), MAC: look}
	}, &descriptorAnswer{}))
	err = d.ask(alice, PathPair, func(*session) any {
		return pairRequest{Invite: inv.idBytes(), MAC: elsewhere, Descriptor: desc}
	}, nil)
	wantRefusal(t, err, http.StatusForbidden) // right secret, other session: what a relay has
	err = d.ask(alice, PathPair, func(s *session) any {
		look, err := sessionMAC(inv.macKey(), roleLook, &s.state)
		must(t, err)
		return pairRequest{Invite: inv.idBytes(), MAC: look, Descriptor: desc}
	}, nil)
	wantRefusal(t, err, http.StatusForbidden) // other role
}

// TestFarEndMustKnowTheInvite has the right grid key answer without the secret.
func TestFarEndMustKnowTheInvite(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	desc, err := alice.reg.OwnDescriptorAs(t.Context(), "bob")
	must(t, err)
	shown, err := bob.Preview(t.Context(), bob.dialer(t, alice), inv)
	must(t, err)
	for name, mac := range map[string]func(r *http.Request) []byte{
		"nothing": func(*http.Request) []byte { return nil },
		"echo": func(r *http.Request) []byte {
			var req pairRequest
			if err := readBody(r.Body, &req); err != nil {
				t.Error(err)
			}
			return req.MAC
		},
	} {
		alice.addr = serveTLS(t, alice.ip, alice.id, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := writeJSON(w, http.StatusOK, pairAnswer{MAC: mac(r), State: federation.StateActive, Descriptor: desc}); err != nil {
				t.Error(err)
			}
		}))
		if _, _, err := bob.Accept(t.Context(), bob.dialer(t, alice), shown, "alice"); err == nil || !strings.Contains(err.Error(), "did not prove") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(bob.reg.Directory().Now().Peers()); n != 0 {
		t.Errorf("%d peers", n)
	}
}

func TestPairingPinsTheGridOfTheInvite(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob")
	d := bob.dialer(t)
	d.to[alice.ip] = eve.addr // eve sits at alice's address
	if _, err := bob.Preview(t.Context(), d, inv); !errors.Is(err, federation.ErrUnknownGrid) {
		t.Errorf("got %v", err)
	}
}

func TestGridIntroducesItselfOnly(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob", "grid")
	bobs, err := bob.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	err = eve.dialer(t, alice).ask(alice, PathPair, func(s *session) any {
		mac, err := sessionMAC(inv.macKey(), roleAccept, &s.state)
		must(t, err)
		return pairRequest{Invite: inv.idBytes(), MAC: mac, Descriptor: bobs}
	}, nil)
	wantRefusal(t, err, http.StatusBadRequest)
}

func TestStrangersLearnNothing(t *testing.T) {
	alice, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	desc, err := eve.reg.OwnDescriptorAs(t.Context(), "alice")
	must(t, err)
	for _, body := range []any{descriptorRequest{}, descriptorRequest{Descriptor: desc}} {
		err := eve.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return body }, nil)
		if r := wantRefusal(t, err, http.StatusForbidden); strings.Contains(r.Error(), "alice.grid") || r.Hint == "" {
			t.Errorf("%+v", r)
		}
	}
}

func TestBlockedGridIsRefused(t *testing.T) {
	alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	_, _, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)
	must(t, alice.reg.Block(t.Context(), "bob"))
	_, _, err = accept(t, bob, alice, invite(t, alice, "robert", "bob.grid"), "alice")
	wantRefusal(t, err, http.StatusForbidden)
	must(t, alice.reg.Remove(t.Context(), "bob"))
	_, there, err := accept(t, bob, alice, invite(t, alice, "robert", "bob.grid"), "alice")
	must(t, err)
	if there != federation.StateActive {
		t.Errorf("invited anew: %s", there)
	}
}

func TestAcceptRefusesBeforeTheInviteIsUsed(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	_, _, err := accept(t, bob, eve, invite(t, eve, "bob", "bob.grid"), "eve")
	must(t, err)
	inv := invite(t, alice, "bob", "bob.grid")
	for name, want := range map[string]string{"Alice": "peer name", "eve": "belongs to another peer"} {
		if _, _, err := accept(t, bob, alice, inv, name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := alice.Preview(t.Context(), alice.dialer(t, alice), inv); err == nil || !strings.Contains(err.Error(), "made the invite itself") {
		t.Errorf("own invite: %v", err)
	}
	list, err := alice.List(t.Context())
	must(t, err)
	if list[0].Status != StatusOpen {
		t.Errorf("the invite is %s", list[0].Status)
	}
}

func TestNameTakenAtTheInviter(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	first, second := invite(t, alice, "friend", "grid"), invite(t, alice, "friend", "grid")
	_, _, err := accept(t, bob, alice, first, "alice")
	must(t, err)
	_, _, err = accept(t, eve, alice, second, "alice")
	wantRefusal(t, err, http.StatusConflict)
	if list, err := alice.List(t.Context()); err != nil || !slices.ContainsFunc(list, func(l Listed) bool { return l.Status == StatusOpen }) {
		t.Errorf("a use that failed burnt the invite: %+v, %v", list, err)
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
	keys := t.TempDir() + "/keys"
	id, sheet, err := federation.CreateIdentity(keys)
	must(t, err)
	bob.id = id
	bob.openRegistry(t, "bob.grid")
	bob.Pairing = New(Config{Registry: bob.reg, Store: bob.store, Key: id.Key(), Now: bob.clock})
	_, _, err = accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
	must(t, err)

	bob.id, err = federation.Rotate(keys, sheet, func(string) error { return nil })
	must(t, err)
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

func TestStrangersAreSlowedDown(t *testing.T) {
	alice, eve, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.3", "eve.grid"), newGateway(t, "127.0.71.2", "bob.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	d := eve.dialer(t, alice)
	knock := func() error {
		return d.ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, nil)
	}
	for range perSourceBurst {
		wantRefusal(t, knock(), http.StatusForbidden)
	}
	for range 50 {
		wantRefusal(t, knock(), http.StatusTooManyRequests)
	}
	if _, _, err := accept(t, bob, alice, inv, "alice"); err != nil {
		t.Errorf("another node is slowed down, too: %v", err)
	}
	alice.advance(time.Second)
	wantRefusal(t, knock(), http.StatusForbidden)
	wantRefusal(t, knock(), http.StatusTooManyRequests)
	err := bob.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, &descriptorAnswer{})
	for range 50 {
		if err == nil {
			err = bob.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, &descriptorAnswer{})
		}
	}
	if err != nil {
		t.Errorf("a peer is slowed down as strangers are: %v", err)
	}
}

func TestLimiterHoldsAllTogetherAndStaysSmall(t *testing.T) {
	now := time.Now()
	l := newLimiter(func() time.Time { return now })
	passed := 0
	for i := range 3 * maxSources {
		if l.allow(transports.Addr{Net: "tcp", Node: "x", Port: uint16(i)}.String()) {
			passed++
		}
	}
	if passed != inAllBurst {
		t.Errorf("%d of %d sources passed at once, want %d", passed, 3*maxSources, inAllBurst)
	}
	if len(l.sources) > maxSources {
		t.Errorf("%d sources are remembered", len(l.sources))
	}
	now = now.Add(10 * time.Second)
	if !l.allow("one more") || len(l.sources) != 1 {
		t.Errorf("idle sources are not forgotten: %d", len(l.sources))
	}
}

func TestBadRequests(t *testing.T) {
	alice, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	for name, body := range map[string]string{
		"array": "[]", "text": `"hello"`, "duplicate": `{"invite":"AA==","invite":"AA=="}`, "upper case": `{"Invite":"AA=="}`,
		"wrong type": `{"invite":1}`, "too long": `{"mac":"` + strings.Repeat("A", maxBody) + `"}`,
		"no descriptor": `{"descriptor":{}}`,
	} {
		path := PathPair
		if name == "no descriptor" {
			path = PathDescriptor
		}
		err := eve.dialer(t, alice).ask(alice, path, func(*session) any { return raw(body) }, nil)
		wantRefusal(t, err, http.StatusBadRequest)
		alice.advance(2 * time.Second)
	}
}

// raw is sent as it is.
type raw string

func (r raw) MarshalJSON() ([]byte, error) { return []byte(r), nil }

func TestNoTLSNoService(t *testing.T) {
	alice := newGateway(t, "127.0.71.1", "alice.grid")
	rec := httptest.NewRecorder()
	alice.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, PathPair, strings.NewReader("{}")))
	var refusal Error
	if err := json.Unmarshal(rec.Body.Bytes(), &refusal); err != nil || rec.Code != http.StatusForbidden || refusal.Message != "no TLS" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestInviteRefuses(t *testing.T) {
	alice := newGateway(t, "127.0.71.1", "alice.grid")
	if _, err := alice.Invite(t.Context(), "Bob", nil); err == nil {
		t.Error("bad name")
	}
	if _, err := alice.Invite(t.Context(), "bob", []string{"1.2.3.4"}); err == nil || !strings.Contains(err.Error(), "expected domain") {
		t.Errorf("bad domain: %v", err)
	}
	for range maxOpenInvites {
		_, err := alice.Invite(t.Context(), "bob", nil)
		must(t, err)
	}
	if _, err := alice.Invite(t.Context(), "bob", nil); err == nil || !strings.Contains(err.Error(), "revoke some") {
		t.Errorf("one too many: %v", err)
	}
	alice.advance(InviteLifetime)
	_, err := alice.Invite(t.Context(), "bob", nil)
	must(t, err)
	alice.advance(inviteKept + time.Second)
	_, err = alice.Invite(t.Context(), "bob", nil)
	must(t, err)
	if list, err := alice.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d invites are kept, %v", len(list), err)
	}
}
