package xmpp

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"slices"
	"strings"
)

// table holds the available presence that crossed in one direction between this
// grid and one peer, so that it can be ended when it no longer holds. What the
// far side has missed is owed to it: the newest stanza of each sender and
// addressee, so that owing is bounded by who talks to whom, not by time.
//
// Memory is bounded by bytes: whoever fills the table only loses upkeep for what
// did not fit. It is not for concurrent use.
type table struct {
	limit  int
	bytes  int
	seq    uint64
	owing  int
	groups map[pair]*group
}

// pair is a sender without its resource and an addressee: the bare JID of a room
// that is being entered, anyone else's as it was addressed.
type pair struct{ from, to string }

type groupKind uint8

const (
	contact  groupKind = iota // to a contact, or directed to anyone
	joined                    // from a user into a room
	occupant                  // from a room about its occupants
)

// group is all presence of one pair: resources of a user, or nicknames of a room.
type group struct {
	pair
	kind    groupKind
	bytes   int
	entries map[string]*entry // by the sender's resource
}

type entry struct {
	to   string // as last addressed
	self bool   // tells an occupant about itself
	gone bool   // the newest presence is unavailable, and owed
	old  bool   // not heard of since it was asked for
	sum  uint64 // of the newest stanza, to know it when it comes back
	due  bool   // the far side lacks the newest presence
	owed []byte // which is this; nil for an unavailable that is built when due
	seq  uint64 // order of owing
	cost int    // bytes charged for it, without what is owed
}

// Charged for the maps and structs behind a group and an entry, measured on
// amd64 and rounded up.
const (
	groupBytes = 512
	entryBytes = 192
)

var sumSeed = maphash.MakeSeed()

func sumOf(stanza []byte) uint64 { return maphash.Bytes(sumSeed, stanza) }

func newTable(limit int) *table { return &table{limit: limit, groups: map[pair]*group{}} }

func split(jid string) (bare, resource string) {
	bare, resource, _ = strings.Cut(jid, "/")
	return bare, resource
}

// find returns the group that a presence belongs to, or nil.
func (t *table) find(from, to string) *group {
	if g := t.groups[pair{from, bareOf(to)}]; g != nil && g.kind == joined {
		return g
	}
	return t.groups[pair{from, to}]
}

// add makes room for an entry and returns it, or nil when the table is full.
func (t *table) add(p *presence, from, resource string) *entry {
	if p.join {
		t.dropContact(pair{from, p.to}) // what looked like a contact is a room
		t.dropContact(pair{from, bareOf(p.to)})
	}
	g := t.find(from, p.to)
	if g != nil {
		if e := g.entries[resource]; e != nil {
			t.readdress(g, e, p.to)
			return e
		}
	}
	e := &entry{to: p.to, cost: entryBytes + len(resource) + len(p.to)}
	base := 0
	if g == nil {
		base = groupBytes + len(from) + len(p.to)
	}
	if t.bytes+base+e.cost > t.limit {
		return nil
	}
	if g == nil {
		g = &group{pair: pair{from, p.to}, entries: map[string]*entry{}}
		switch {
		case p.join:
			g.kind, g.to = joined, bareOf(p.to)
		case p.occupant:
			g.kind = occupant
		}
		t.groups[g.pair] = g
	}
	g.entries[resource] = e
	g.bytes += base + e.cost
	t.bytes += base + e.cost
	return e
}

func (t *table) dropContact(at pair) {
	if g := t.groups[at]; g != nil && g.kind != joined {
		t.drop(g)
	}
}

// readdress follows an occupant to another nickname in the same room. What goes
// to the room itself does not change how it is entered.
func (t *table) readdress(g *group, e *entry, to string) {
	if g.kind == joined && to == g.to {
		return
	}
	more := len(to) - len(e.to)
	e.to, e.cost = to, e.cost+more
	g.bytes += more
	t.bytes += more
}

// note records a presence on its way; it says whether there was room.
func (t *table) note(p *presence, stanza []byte) bool {
	from, resource := split(p.from)
	switch p.kind {
	case unavailable:
		t.end(p, from, resource)
		return true
	case available:
	default:
		return true
	}
	e := t.add(p, from, resource)
	if e == nil {
		return false
	}
	t.settle(e)
	e.sum, e.gone, e.old = sumOf(stanza), false, false
	e.self = e.self || p.self
	g := t.find(from, p.to)
	if all := g.entries[""]; all != nil && all != e && all.gone {
		// It is owed that no resource is there. Should this presence overtake
		// that, it would be undone by it, so that it is sent once more behind it.
		if !t.setOwed(e, stanza) {
			t.remove(g, "")
		}
	}
	return true
}

// end forgets what an unavailable presence ends: one entry; all of the sender's,
// where it comes from the bare JID; all of a room's, where it tells an occupant
// that its stay is over.
func (t *table) end(p *presence, from, resource string) {
	g := t.find(from, p.to)
	if g == nil {
		return
	}
	if resource == "" || (p.self && !p.renamed) {
		t.drop(g)
		return
	}
	t.remove(g, resource)
}

func (t *table) remove(g *group, resource string) {
	e := g.entries[resource]
	if e == nil {
		return
	}
	t.settle(e)
	if len(g.entries) == 1 {
		t.drop(g)
		return
	}
	delete(g.entries, resource)
	g.bytes -= e.cost
	t.bytes -= e.cost
}

func (t *table) drop(g *group) {
	for _, e := range g.entries {
		t.settle(e)
	}
	t.bytes -= g.bytes
	delete(t.groups, g.pair)
}

// settle marks an entry as known to the far side.
func (t *table) settle(e *entry) {
	if e.due {
		t.bytes -= len(e.owed)
		t.owing--
		e.due, e.owed = false, nil
	}
}

// owe remembers a stanza that the far side did not get, unless a newer one has
// followed it. It says whether there was room.
//
// A request to enter a room is not repeated: its sender is told that it failed.
// What is owed then is to leave, in case the room has the user from before.
func (t *table) owe(p *presence, stanza []byte) bool {
	from, resource := split(p.from)
	var e *entry
	if g := t.find(from, p.to); g != nil {
		e = g.entries[resource]
	}
	switch {
	case p.kind == available && (e == nil || e.sum != sumOf(stanza)):
		return true // ended or replaced since
	case p.kind == available && p.join:
		t.oweEnd(e)
		return true
	case p.kind == available:
	case p.kind != unavailable, e != nil && !e.gone:
		return true // no state, or back since
	case e == nil:
		if e = t.add(p, from, resource); e == nil {
			return false
		}
		e.gone, e.self = true, p.self
	}
	if t.setOwed(e, stanza) {
		return true
	}
	if e.gone {
		t.oweEnd(e) // without what the sender said with it
	}
	return e.gone
}

func (t *table) setOwed(e *entry, stanza []byte) bool {
	t.settle(e)
	if t.bytes+len(stanza) > t.limit {
		return false
	}
	t.seq++
	// A copy: the stanza may stand in a buffer with all that came with it, which is
	// not charged for.
	e.due, e.owed, e.seq = true, bytes.Clone(stanza), t.seq
	t.bytes += len(stanza)
	t.owing++
	return true
}

// oweEnd remembers that the far side must learn that a presence has ended. There
// is always room for that.
func (t *table) oweEnd(e *entry) {
	t.settle(e)
	t.seq++
	t.owing++
	e.gone, e.due, e.seq = true, true, t.seq
}

// debt is one stanza that is owed.
type debt struct {
	group    *group
	resource string
	seq      uint64
	stanza   []byte
}

// owed returns what is owed, oldest first.
func (t *table) owed() []debt {
	debts := make([]debt, 0, t.owing)
	for _, g := range t.groups {
		for resource, e := range g.entries {
			if !e.due {
				continue
			}
			d := debt{g, resource, e.seq, e.owed}
			if d.stanza == nil {
				d.stanza = g.unavailable(resource, e)
			}
			debts = append(debts, d)
		}
	}
	slices.SortFunc(debts, func(a, b debt) int { return cmp.Compare(a.seq, b.seq) })
	return debts
}

// paid settles a debt, unless a newer one has taken its place.
func (t *table) paid(d debt) {
	e := d.group.entries[d.resource]
	if t.groups[d.group.pair] != d.group || e == nil || !e.due || e.seq != d.seq {
		return
	}
	if e.gone {
		t.remove(d.group, d.resource)
	} else {
		t.settle(e)
	}
}

func (g *group) address(resource string) string {
	if resource == "" {
		return g.from
	}
	return g.from + "/" + resource
}

func (g *group) unavailable(resource string, e *entry) []byte {
	return unavailableFrom(g.address(resource), e.to, g.kind == occupant, e.self)
}

// endings builds the end of all presence of a group. An occupant's own comes
// last: a client that knows it is out may ignore what the room says after.
func (g *group) endings() [][]byte {
	out := make([][]byte, 0, len(g.entries))
	var last [][]byte
	for resource, e := range g.entries {
		switch {
		case e.self:
			last = append(last, g.unavailable(resource, e))
		default:
			out = append(out, g.unavailable(resource, e))
		}
	}
	return append(out, last...)
}
