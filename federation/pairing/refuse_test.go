package pairing

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

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

func TestPreviewIsOfTheGridOfTheInvite(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob")
	eves, err := eve.reg.OwnDescriptorAs(t.Context(), "bob")
	must(t, err)
	alice.addr = serveTLS(t, alice.ip, alice.id, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := writeJSON(w, http.StatusOK, descriptorAnswer{Descriptor: eves}); err != nil {
			t.Error(err)
		}
	}))
	if _, err := bob.Preview(t.Context(), bob.dialer(t, alice), inv); err == nil || !strings.Contains(err.Error(), "not that of the grid in the invite") {
		t.Errorf("got %v", err)
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

// TestUsedInviteShowsNothingToOthers has the finder of a used invite claim, in a
// root of its own making, to be the grid that used it.
func TestUsedInviteShowsNothingToOthers(t *testing.T) {
	alice, bob, eve := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid"), newGateway(t, "127.0.71.3", "eve.grid")
	inv := invite(t, alice, "bob", "bob.grid")
	_, _, err := accept(t, bob, alice, inv, "alice")
	must(t, err)
	d := eve.dialer(t, alice)
	d.leaf = forgedLeaf(t, bob.id.ID(), eve.ip)
	err = d.ask(alice, PathDescriptor, func(s *session) any {
		mac, err := sessionMAC(inv.macKey(), roleLook, &s.state)
		must(t, err)
		return descriptorRequest{Invite: inv.idBytes(), MAC: mac}
	}, nil)
	wantRefusal(t, err, http.StatusConflict)
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

// An invite that a grid has used lets it come again, since it may not have heard the
// answer; but not past its removal, which is the operator's later word.
func TestUsedInviteEndsWithThePeer(t *testing.T) {
	for name, end := range map[string]func(*gateway) error{
		"removed": func(g *gateway) error { return g.reg.Remove(t.Context(), "bob") },
		"blocked, then removed": func(g *gateway) error {
			return errors.Join(g.reg.Block(t.Context(), "bob"), g.reg.Remove(t.Context(), "bob"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			alice, bob := newGateway(t, "127.0.71.1", "alice.grid"), newGateway(t, "127.0.71.2", "bob.grid")
			inv := invite(t, alice, "bob", "bob.grid")
			shown, err := bob.Preview(t.Context(), bob.dialer(t, alice), inv)
			must(t, err)
			_, _, err = bob.Accept(t.Context(), bob.dialer(t, alice), shown, "alice")
			must(t, err)
			must(t, end(alice))
			alice.advance(time.Minute) // the limit on strangers is another matter
			_, _, err = bob.Accept(t.Context(), bob.dialer(t, alice), shown, "alice")
			wantRefusal(t, err, http.StatusGone)
			_, err = bob.Preview(t.Context(), bob.dialer(t, alice), inv)
			wantRefusal(t, err, http.StatusGone)
			if s := alice.reg.Directory().Now().Peer(bob.id.ID()).State; s != federation.StateRemoved {
				t.Errorf("bob is %s", s)
			}
			if list, err := alice.List(t.Context()); err != nil || list[0].Status != StatusUsed || list[0].UsedBy != bob.id.ID() {
				t.Errorf("listed as %+v, %v", list, err)
			}
			alice.advance(time.Minute)
			_, there, err := accept(t, bob, alice, invite(t, alice, "bob", "bob.grid"), "alice")
			must(t, err)
			if there != federation.StateActive {
				t.Errorf("invited anew: %s", there)
			}
		})
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

// A peer that asks without end is slowed down, whatever it brings, and only it.
func TestPeersThatFloodAreSlowedDown(t *testing.T) {
	alice, bob, carol := newGateway(t, "127.0.72.1", "alice.grid"), newGateway(t, "127.0.72.2", "bob.grid"), newGateway(t, "127.0.72.3", "carol.grid")
	for name, g := range map[string]*gateway{"bob": bob, "carol": carol} {
		if _, _, err := accept(t, g, alice, invite(t, alice, name, name+".grid"), "alice"); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(g *gateway) error {
		return g.dialer(t, alice).ask(alice, PathDescriptor, func(*session) any { return descriptorRequest{} }, &descriptorAnswer{})
	}
	for range perPeerBurst {
		if err := ask(bob); err != nil {
			t.Fatal(err)
		}
	}
	wantRefusal(t, ask(bob), http.StatusTooManyRequests)
	if err := ask(carol); err != nil {
		t.Errorf("another peer is slowed down, too: %v", err)
	}
	alice.advance(time.Second)
	if err := ask(bob); err != nil {
		t.Errorf("a second later: %v", err)
	}
	wantRefusal(t, ask(bob), http.StatusTooManyRequests)
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
	if len(l.sources.of) > maxSources {
		t.Errorf("%d sources are remembered", len(l.sources.of))
	}
	now = now.Add(10 * time.Second)
	if !l.allow("one more") || len(l.sources.of) != 1 {
		t.Errorf("idle sources are not forgotten: %d", len(l.sources.of))
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
	if _, err := alice.Invite(t.Context(), "Bob", nil, 0); err == nil {
		t.Error("bad name")
	}
	if _, err := alice.Invite(t.Context(), "bob", []string{"1.2.3.4"}, 0); err == nil || !strings.Contains(err.Error(), "expected domain") {
		t.Errorf("bad domain: %v", err)
	}
	for _, life := range []time.Duration{-1, time.Millisecond, maxInviteLifetime + 1} {
		if _, err := alice.Invite(t.Context(), "bob", nil, life); err == nil || !strings.Contains(err.Error(), "30 days") {
			t.Errorf("lifetime %v: %v", life, err)
		}
	}
	for range maxOpenInvites {
		_, err := alice.Invite(t.Context(), "bob", nil, 0)
		must(t, err)
	}
	if _, err := alice.Invite(t.Context(), "bob", nil, 0); err == nil || !strings.Contains(err.Error(), "revoke some") {
		t.Errorf("one too many: %v", err)
	}
	alice.advance(InviteLifetime)
	_, err := alice.Invite(t.Context(), "bob", nil, 0)
	must(t, err)
	alice.advance(inviteKept + time.Second)
	_, err = alice.Invite(t.Context(), "bob", nil, 0)
	must(t, err)
	if list, err := alice.List(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d invites are kept, %v", len(list), err)
	}
}
