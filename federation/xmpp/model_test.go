package xmpp

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// modelServer is an XMPP server as its neighbours see it: users with a mutual
// subscription to every user of the other grid (RFC 6121 §4), and a room
// (XEP-0045). Its state is what a test compares: what users are shown against
// what is the case.
type modelServer struct {
	domain, other string // a.grid, b.grid
	contacts      []string

	mu    sync.Mutex
	users map[string]*modelUser // by bare JID
	room  map[string]string     // occupants: full JID -> nickname
	out   [][]byte
	wake  chan struct{}
	gate  func() *Adapter // nil while there is no gateway

	written ledger // messages that the gateway has settled
	got     ledger // messages from the other grid
}

// ledger knows messages by their number. It is guarded by the mu of its server, or
// the run has ended.
type ledger struct {
	next    int
	numbers []int        // in order
	told    map[int]bool // came back as errors
}

// faults says which of the messages that were settled did not arrive once, or in
// another order than they were sent.
func (w *ledger) faults(got *ledger) (out []string) {
	count := map[int]int{}
	for i, n := range got.numbers {
		if count[n]++; i > 0 && n <= got.numbers[i-1] {
			out = append(out, fmt.Sprintf("message %d came after %d", n, got.numbers[i-1]))
		}
	}
	for _, n := range w.numbers {
		if told := w.told[n]; count[n] > 1 || (count[n] == 1) == told {
			out = append(out, fmt.Sprintf("message %d came %d times, error %v", n, count[n], told))
		}
	}
	return out
}

type modelUser struct {
	online map[string]bool // by resource
	shown  map[string]bool // full JIDs of contacts
	in     map[string]bool // resources that believe to be in the other grid's room
}

func newModelServer(domain, other string, names []string) *modelServer {
	m := &modelServer{domain: domain, other: other, users: map[string]*modelUser{}, room: map[string]string{}, wake: make(chan struct{}, 1)}
	for _, n := range names {
		m.users[n+"@"+domain] = &modelUser{online: map[string]bool{}, shown: map[string]bool{}, in: map[string]bool{}}
		m.contacts = append(m.contacts, n+"@"+other)
	}
	return m
}

// run sends what the server has to say.
func (m *modelServer) run(ctx context.Context) {
	for {
		m.mu.Lock()
		batch := m.out
		m.out = nil
		m.mu.Unlock()
		for _, s := range batch {
			a := m.gate()
			if a == nil {
				m.unreachable(s)
				continue
			}
			r, ok := replyWith(s)
			if !ok {
				panic("no addresses: " + string(s))
			}
			_ = a.Stanzas(ctx, r.from, r.to, [][]byte{s}, func() { m.settled(s) }) // ends with the gateway
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return
		}
	}
}

// numberOf is the number of a message that write wrote.
func numberOf(stanza []byte) (n int, ok bool) {
	_, body, found := strings.Cut(string(stanza), "<body>")
	_, err := fmt.Sscanf(body, "%d<", &n)
	return n, found && err == nil
}

// settled is what the gateway says of a stanza that it answers for from then on.
func (m *modelServer) settled(stanza []byte) {
	if n, ok := numberOf(stanza); ok {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.written.numbers = append(m.written.numbers, n)
	}
}

// write sends a message to a contact.
func (m *modelServer) write(user, resource string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users[user].online[resource] {
		m.written.next++
		m.say("<message type='chat' id='%d' from='%s/%s' to='%s'><body>%d</body></message>", m.written.next, user, resource, m.contacts[0], m.written.next)
	}
}

// unreachable is what a server does with what it cannot send: a room removes who
// cannot be told something (XEP-0045 §15.6.2), the rest is lost here.
func (m *modelServer) unreachable(stanza []byte) {
	top, err := frame.ParseTop(stanza)
	if err != nil {
		panic(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if bareOf(string(top.From)) == m.ownRoom() && (string(top.Type) == "" || string(top.Type) == "groupchat") {
		m.roomMessage(string(top.To), "error")
	}
}

func (m *modelServer) say(format string, args ...any) {
	m.out = append(m.out, fmt.Appendf(nil, format, args...))
	signal(m.wake)
}

func (m *modelServer) ownRoom() string   { return "room@conference." + m.domain }
func (m *modelServer) otherRoom() string { return "room@conference." + m.other }

func (m *modelServer) login(user, resource string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users[user].online[resource] = true
	for _, c := range m.contacts {
		m.say("<presence from='%s/%s' to='%s'/>", user, resource, c)
		m.say("<presence from='%s' to='%s' type='probe'/>", user, c)
	}
}

func (m *modelServer) logout(user, resource string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	u := m.users[user]
	if !u.online[resource] {
		return
	}
	delete(u.online, resource)
	delete(u.in, resource)
	for _, c := range m.contacts {
		m.say("<presence from='%s/%s' to='%s' type='unavailable'/>", user, resource, c)
	}
	m.say("<presence from='%s/%s' to='%s/%s' type='unavailable'/>", user, resource, m.otherRoom(), nickOf(user, resource))
	if len(u.online) == 0 {
		clear(u.shown)
	}
}

func nickOf(user, resource string) string {
	name, _, _ := strings.Cut(user, "@")
	return name + resource
}

func (m *modelServer) enter(user, resource string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users[user].online[resource] {
		m.say("<presence from='%s/%s' to='%s/%s'><x xmlns='http://jabber.org/protocol/muc'/></presence>", user, resource, m.otherRoom(), nickOf(user, resource))
	}
}

func (m *modelServer) leave(user, resource string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	// Who leaves while the own gateway is dead and stays online is not missed by
	// anyone: see upkeep.
	if m.users[user].in[resource] && m.gate() != nil {
		delete(m.users[user].in, resource)
		m.say("<presence from='%s/%s' to='%s/%s' type='unavailable'/>", user, resource, m.otherRoom(), nickOf(user, resource))
	}
}

// talk lets the room say something to everyone in it, and everyone who believes
// to be in the other room say something there.
func (m *modelServer) talk() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for full, nick := range m.room {
		m.say("<message type='groupchat' from='%s/%s' to='%s'/>", m.ownRoom(), nick, full)
	}
	for user, u := range m.users {
		for resource := range u.in {
			m.say("<message type='groupchat' from='%s/%s' to='%s'/>", user, resource, m.otherRoom())
		}
	}
}

// Send is LocalServer.
func (m *modelServer) Send(_ context.Context, _, _ string, stanzas ...[]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range stanzas {
		top, err := frame.ParseTop(s)
		if err != nil {
			panic(err)
		}
		from, to, kind := string(top.From), string(top.To), string(top.Type)
		bare, resource := split(to)
		switch {
		case bare == m.ownRoom() && top.Kind == frame.Presence:
			join, _ := mucElements(s)
			m.roomPresence(from, resource, kind, join)
		case bare == m.ownRoom():
			m.roomMessage(from, kind)
		case m.users[bare] == nil:
			panic("who is " + to)
		case top.Kind == frame.Message && kind == "chat":
			if n, ok := numberOf(s); ok { // its user reads it later, if not now
				m.got.numbers = append(m.got.numbers, n)
			}
		case top.Kind == frame.Message && kind == "error" && len(top.ID) > 0:
			n, err := strconv.Atoi(string(top.ID))
			if err != nil {
				panic(err)
			}
			if m.written.told == nil {
				m.written.told = map[int]bool{}
			}
			m.written.told[n] = true
		case bareOf(from) == m.otherRoom():
			m.fromRoom(m.users[bare], from, to, resource, kind, s)
		case top.Kind == frame.Presence:
			m.contactPresence(bare, m.users[bare], from, kind)
		}
	}
	return nil
}

// Hand is LocalServer.
func (m *modelServer) Hand(ctx context.Context, from, to string, stanzas ...[]byte) (int, error) {
	return len(stanzas), m.Send(ctx, from, to, stanzas...)
}

func (m *modelServer) contactPresence(bare string, u *modelUser, from, kind string) {
	switch kind {
	case "":
		if len(u.online) > 0 {
			u.shown[from] = true
		}
	case "unavailable":
		for full := range u.shown {
			if full == from || bareOf(full) == from {
				delete(u.shown, full)
			}
		}
	case "probe":
		for r := range u.online {
			m.say("<presence from='%s/%s' to='%s'/>", bare, r, bareOf(from))
		}
		if len(u.online) == 0 {
			m.say("<presence from='%s' to='%s' type='unavailable'/>", bare, bareOf(from))
		}
	}
}

// fromRoom is what a client makes of what the other grid's room tells it.
func (m *modelServer) fromRoom(u *modelUser, from, to, resource, kind string, stanza []byte) {
	self := hasStatus(stanza, "110")
	switch {
	case kind == "error":
		delete(u.in, resource)
	case strings.HasPrefix(string(stanza), "<message"):
		if !u.online[resource] { // RFC 6121 §8.5.3.2.1
			m.say("<message type='error' from='%s' to='%s'/>", to, from)
		}
	case self && kind == "" && u.online[resource]:
		u.in[resource] = true
	case self && kind == "unavailable":
		delete(u.in, resource)
	}
}

func (m *modelServer) roomPresence(from, nick, kind string, join bool) {
	old, in := m.room[from]
	switch {
	case kind == "" && (in || join):
		m.room[from] = nick
		m.tell(from, nick, "")
	case kind == "unavailable" && in:
		m.tell(from, old, " type='unavailable'")
		delete(m.room, from)
	case kind == "error" && in:
		m.tell(from, old, " type='unavailable'")
		delete(m.room, from)
	}
}

// tell broadcasts an occupant's presence, its own copy last (XEP-0045 §7.2.3).
func (m *modelServer) tell(subject, nick, kind string) {
	for full := range m.room {
		if full != subject {
			m.say("<presence%s from='%s/%s' to='%s'><x xmlns='http://jabber.org/protocol/muc#user'/></presence>", kind, m.ownRoom(), nick, full)
		}
	}
	m.say("<presence%s from='%s/%s' to='%s'><x xmlns='http://jabber.org/protocol/muc#user'><status code='110'/></x></presence>", kind, m.ownRoom(), nick, subject)
}

func (m *modelServer) roomMessage(from, kind string) {
	nick, in := m.room[from]
	switch {
	case kind == "error" && in:
		m.tell(from, nick, " type='unavailable'")
		delete(m.room, from)
	case kind == "groupchat" && !in:
		m.say("<message type='error' from='%s' to='%s'/>", m.ownRoom(), from)
	}
}

// differences says how what the users of m are shown differs from what is the
// case at the other server.
func (m *modelServer) differences(other *modelServer) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	var out []string
	truth, believers := map[string]bool{}, map[string]bool{}
	for bare, u := range other.users {
		for r := range u.online {
			truth[bare+"/"+r] = true
		}
		for r := range u.in {
			believers[bare+"/"+r] = true
		}
	}
	for bare, u := range m.users {
		if len(u.online) == 0 {
			continue
		}
		for full := range truth {
			if !u.shown[full] {
				out = append(out, bare+" does not see "+full)
			}
		}
		for full := range u.shown {
			if !truth[full] {
				out = append(out, bare+" sees the ghost of "+full)
			}
		}
	}
	for full := range m.room {
		if !believers[full] {
			out = append(out, m.ownRoom()+" has the ghost of "+full)
		}
	}
	for full := range believers {
		if _, in := m.room[full]; !in {
			out = append(out, full+" believes to be in "+m.ownRoom())
		}
	}
	slices.Sort(out)
	return out
}
