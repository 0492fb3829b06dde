package session

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// lifeLen is the length of what marks a life of the session at the broker.
const lifeLen = 8

// incoming is the way from the broker. The session's lock holds it.
type incoming struct {
	life  []byte    // nil for a session that never was
	rows  []InState // by packet id, as the journal has them or will
	turn  uint64    // that of the last release, and those of QoS 1 since
	held  map[uint16]*arrival
	mine  [8]byte // marks the UIDs at QoS 0 and 1 of this process
	count uint64
	// reuses: the broker does not use packet ids in turn. The row of id 0, which no
	// packet has, keeps it in Released, and in Turn a turn not long ago.
	reuses bool

	unacked, bytes int
	less           chan struct{} // closed and replaced when these fall
}

// recentMost is for how many messages a released id counts as recent. It must be far
// below the number of packet ids, which a broker uses in turn.
const recentMost = 2048

// noteTurn is for how many messages at QoS 1 the turn is written once.
const noteTurn = 256

// arrival is a message of the broker's at QoS 1 or 2.
type arrival struct {
	m    *Message
	id   uint16
	size int
	hash uint64
	on   *conn // that it last came on
	open bool  // counted in unacked
	safe bool  // the handler has it for good
}

// connIn is what of the way from the broker is of a connection.
type connIn struct {
	// order1 and order2 are what PUBACK and PUBREC are owed for, in the order of
	// the PUBLISHes, in which they must be sent (MQTT 5 §4.6).
	order1, order2 []*arrival
	ids1           map[uint16]bool // of those at QoS 1
	since          uint64          // incoming.turn when it began
}

func (in *incoming) load(st *State) {
	*in = incoming{rows: make([]InState, allIDs+1), held: map[uint16]*arrival{}, less: make(chan struct{})}
	if len(st.Life) > 0 {
		in.life = st.Life
	}
	for id, row := range st.In {
		in.rows[id] = row
		in.turn = max(in.turn, row.Turn)
	}
	in.reuses = in.rows[0].Released > 0
	_, _ = rand.Read(in.mine[:]) // which never fails
}

// begin forgets all that was known of the broker's packet ids.
func (in *incoming) begin(life []byte) {
	in.life = life
	in.reuses = false
	clear(in.rows)
	clear(in.held)
}

// recent says whether an id was released so lately that the broker cannot have it
// for another message: what comes with it is what was released, which the broker
// has forgotten. mosquitto (2.0.11) does so when a connection ends before PUBREL is
// repeated on it, with PUBREC; and any broker that was killed and has come up with
// an older state.
func (in *incoming) recent(id uint16) bool {
	at := in.rows[id].Turn
	return at > 0 && in.turn-at < recentMost && !in.reuses
}

// uid names a message at QoS 2. The hash keeps messages apart that a broker gives
// the same id without releasing it in between, as one does that was killed and has
// come up with an older state.
func (in *incoming) uid(id uint16, released uint32, hash uint64) []byte {
	b := make([]byte, 0, lifeLen+14)
	b = append(b, in.life...)
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint32(b, released)
	return binary.BigEndian.AppendUint64(b, hash)
}

func (in *incoming) nextUID() []byte {
	in.count++
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 16), in.mine[:]...), in.count)
}

// hash is of what of a message stays the same when it is sent again; the expiry
// does not.
func (m *Message) hash() uint64 {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(m.Topic))))
	h.Write([]byte(m.Topic))
	h.Write(m.Payload)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// arrive takes a PUBLISH.
func (s *Session) arrive(c *conn, p *packet) error {
	m := p.message
	s.metrics.arrived[m.QoS].Inc()
	if m.QoS == 0 {
		s.mu.Lock()
		defer s.unlock()
		m.UID = s.in.nextUID()
		if !s.inbox.put(event{m: m}) {
			s.metrics.dropped.Inc()
			s.missed(c, m)
		}
		return nil
	}
	if err := s.gate(c); err != nil {
		return err
	}
	if m.QoS == 1 {
		return s.arrive1(c, p)
	}
	return s.arrive2(c, p)
}

// missed tells the handler once more of the subscriptions, behind all that waits for it,
// when a retained message was dropped.
func (s *Session) missed(c *conn, m *Message) {
	if m.Retain && c.subs.told && !s.inbox.stands() {
		s.stand(c, true)
	}
}

// gate holds the reading of a connection up while more is unacknowledged than
// memory is meant for. A broker of MQTT 5 should count by itself, but mosquitto
// (2.0.11) sends as many as the receive maximum for each PUBCOMP: to end the connection
// for that, as MQTT 5 §3.3.4 has it, would be to do so again and again.
func (s *Session) gate(c *conn) error {
	s.mu.Lock()
	defer s.unlock()
	for s.in.bytes > s.cfg.MaxUnacked || s.in.unacked >= int(s.cfg.ReceiveMaximum) {
		less := s.in.less
		s.unlock()
		c.paused.Store(true)
		var err error
		select {
		case <-less:
		case <-c.gone:
			err = c.reason()
		}
		if c.pinged.Load() != 0 {
			c.pinged.Store(time.Now().UnixNano())
		}
		c.resumed.Store(time.Now().UnixNano())
		c.paused.Store(false)
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) arrive1(c *conn, p *packet) error {
	s.mu.Lock()
	defer s.unlock()
	if c.in.ids1[p.id] || s.in.held[p.id] != nil && s.in.held[p.id].on == c {
		if p.dup { // MQTT 3.1.1 lets a broker repeat at any time
			return nil
		}
		return breach(codeProtocol, "packet id %d is in use", p.id)
	}
	if c.in.ids1 == nil {
		c.in.ids1 = map[uint16]bool{}
	}
	c.in.ids1[p.id] = true
	s.turn1()
	a := &arrival{m: p.message, id: p.id, size: p.message.size(), on: c}
	a.m.UID = s.in.nextUID()
	c.in.order1 = append(c.in.order1, a)
	s.admitIn(a)
	return nil
}

// turn1 counts a message at QoS 1, which takes an id of the broker's too, and is on
// disk only now and then.
func (s *Session) turn1() {
	in := &s.in
	if in.turn++; in.turn%noteTurn == 0 {
		in.rows[0].Turn = in.turn
		s.diary.lazily(Change{Op: PutIn, In: in.rows[0]})
	}
}

// admitIn counts a message and has it handed on.
func (s *Session) admitIn(a *arrival) {
	a.open = true
	s.in.unacked++
	s.in.bytes += a.size
	s.inbox.put(event{m: a.m, a: a})
}

// settle no longer counts a message.
func (s *Session) settle(a *arrival) {
	if !a.open {
		return
	}
	a.open = false
	s.in.unacked--
	s.in.bytes -= a.size
	s.in.stir()
}

func (s *Session) arrive2(c *conn, p *packet) error {
	hash := p.message.hash()
	s.mu.Lock()
	defer s.unlock()
	in := &s.in
	if c.in.ids1[p.id] {
		return breach(codeProtocol, "packet id %d is in use", p.id)
	}
	if a := in.held[p.id]; a != nil {
		same := a.hash == hash
		switch {
		case a.on == c && p.dup && same: // MQTT 3.1.1 lets a broker repeat at any time
			s.flush(c)
			return nil
		case a.on == c:
			return breach(codeProtocol, "packet id %d is in use", p.id)
		case p.dup && same:
			a.on = c
			c.in.order2 = append(c.in.order2, a)
			s.flush(c)
			return nil
		}
		// The broker does not know of the one before, and means another message.
		s.settle(a)
		delete(in.held, p.id)
		if err := s.bump(c, p.id); err != nil {
			return err
		}
	}
	a := &arrival{m: p.message, id: p.id, size: p.message.size(), hash: hash, on: c}
	s.reopen(c, p)
	a.m.UID = in.uid(p.id, in.rows[p.id].Released, hash)
	in.held[p.id] = a
	c.in.order2 = append(c.in.order2, a)
	s.admitIn(a)
	return nil
}

// reopen is for a PUBLISH with an id that was released. A repeat of what was released
// is to have the same UID again; another message has another hash in any case.
func (s *Session) reopen(c *conn, p *packet) {
	in := &s.in
	row := &in.rows[p.id]
	if !in.recent(p.id) {
		return
	}
	if !p.dup && row.Turn > c.in.since {
		// It had PUBCOMP on this very connection: it is the broker's way. So a message
		// with DUP may be a new one of which the first PUBLISH was lost.
		in.reuses = true
		in.rows[0].Released = 1
		s.diary.add(nil, Change{Op: PutIn, In: in.rows[0]})
		return
	}
	if row.Turn = 0; p.dup {
		row.Released--
	}
	s.diary.add(nil, Change{Op: PutIn, ID: p.id, In: *row})
}

// bump counts a release of an id and waits until it is on disk, without the lock.
func (s *Session) bump(c *conn, id uint16) error {
	row := &s.in.rows[id]
	row.Released++
	row.Turn = 0
	written := make(chan struct{})
	s.diary.add(func() { close(written) }, Change{Op: PutIn, ID: id, In: *row})
	s.unlock()
	defer s.mu.Lock()
	select {
	case <-written:
		return nil
	case <-c.gone:
		return c.reason()
	}
}

// acked returns what the handler calls for a message.
func (s *Session) acked(a *arrival) func(error) {
	return func(err error) {
		s.mu.Lock()
		defer s.unlock()
		if a.safe || !a.open {
			return // a second call, or the broker sends it again in any case
		}
		s.settle(a)
		if err != nil {
			if s.in.held[a.id] == a {
				delete(s.in.held, a.id)
			}
			if c := a.on; c == s.conn && c != nil {
				s.calls = append(s.calls, func() { go c.leave(codeUnspecified, err) })
			}
			return
		}
		a.safe, a.m = true, nil
		if s.conn != nil && a.on == s.conn {
			s.flush(s.conn)
		}
	}
}

// flush sends the acknowledgements that are due, in their order.
func (s *Session) flush(c *conn) {
	q := &c.in.order1
	for len(*q) > 0 && (*q)[0].safe {
		a := (*q)[0]
		*q = (*q)[1:]
		delete(c.in.ids1, a.id)
		c.answer(typePuback, a.id, codeSuccess)
	}
	q = &c.in.order2
	for len(*q) > 0 && (*q)[0].safe {
		a := (*q)[0]
		*q = (*q)[1:]
		c.answer(typePubrec, a.id, codeSuccess)
	}
}

// release takes PUBREL: the broker may use the id again once it has PUBCOMP.
func (s *Session) release(c *conn, p *packet) error {
	s.mu.Lock()
	defer s.unlock()
	in := &s.in
	a := in.held[p.id]
	switch {
	case a == nil && in.recent(p.id): // its PUBCOMP was lost
		s.complete2(c, p.id, codeSuccess)
		return nil
	case a == nil:
		// It may be of an earlier life of this process, which did not live to see it
		// released.
		s.releaseID(c, p.id, codeIDUnknown)
		return nil
	case !a.safe:
		return breach(codeProtocol, "PUBREL for packet id %d before PUBREC", p.id)
	}
	delete(in.held, p.id)
	s.releaseID(c, p.id, codeSuccess)
	return nil
}

func (s *Session) releaseID(c *conn, id uint16, code byte) {
	s.in.turn++
	row := &s.in.rows[id]
	row.Released++
	row.Turn = s.in.turn
	s.complete2(c, id, code, Change{Op: PutIn, ID: id, In: *row})
}

// complete2 sends PUBCOMP when the release is on disk.
func (s *Session) complete2(c *conn, id uint16, code byte, changes ...Change) {
	s.diary.add(func() {
		s.mu.Lock()
		defer s.unlock()
		if s.conn != c {
			return // it asks again
		}
		c.answer(typePubcomp, id, code)
	}, changes...)
}

// stir lets the gate look again.
func (in *incoming) stir() {
	close(in.less)
	in.less = make(chan struct{})
}
