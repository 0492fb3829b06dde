package session

import (
	"cmp"
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Packet ids up to lowIDs are of messages at QoS 1 and of subscriptions, which
// nobody asks for after a crash; the others are of QoS 2.
const (
	lowIDs  = 8191
	allIDs  = 65535
	maxSent = 4096 // messages in flight, whatever the broker would take
)

// step is how far a message on its way to the broker is.
type step uint8

const (
	waiting  step = iota // has no packet id
	starting             // QoS 2: its packet id is being written down
	sent                 // PUBLISH was sent, or is with the next connection
	noting               // QoS 2: PUBREC came, which is being written down
	released             // QoS 2: PUBREL was sent, or is with the next connection
)

// flight is a message on its way to the broker.
type flight struct {
	m    *Message // nil where only PUBREL is to be sent, of an earlier life
	key  Key
	qos  byte
	id   uint16
	step step
	turn uint64 // its place among the messages at QoS 2
	asks int    // counts what is asked of the diary
	dup  bool   // PUBLISH was sent before
	done func(error)

	elem *list.Element
	on   *conn     // that it was sent on
	at   time.Time // when
}

// outgoing is the way to the broker. The session's lock holds it.
type outgoing struct {
	waiting *list.List // of *flight, in the order of Send
	bytes   int        // of those
	flying  *list.List // of *flight, in the order of their first PUBLISH
	behind  []*flight  // flying, and not sent on this connection for want of quota
	byKey   map[Key]*flight
	byID    map[uint16]*flight

	quota, used int // of the broker's receive maximum on this connection
	// orphans is how many messages at QoS 2 an earlier life began that nobody has sent
	// again yet: the broker may hold them; see Session.disown.
	orphans int
	// crowded: the broker has said that it holds too much, though by orphans and flying it
	// cannot.
	crowded bool

	rows      []OutState // by packet id, as the journal has them or will
	ids       map[Key]uint16
	low, high uint16 // the last ids taken
	turn      uint64 // the last message at QoS 2
}

func (o *outgoing) load(st *State) {
	*o = outgoing{waiting: list.New(), flying: list.New(), byKey: map[Key]*flight{}, byID: map[uint16]*flight{},
		rows: make([]OutState, allIDs+1), ids: make(map[Key]uint16, len(st.Out)), high: lowIDs}
	var unreleased []*flight
	for id, row := range st.Out {
		if id <= lowIDs {
			continue // none of ours
		}
		o.rows[id], o.ids[row.Key] = row, id
		if row.Turn > o.turn {
			o.turn, o.high = row.Turn, id
		}
		switch row.Stage {
		case Begun:
			o.orphans++
		case Received:
			unreleased = append(unreleased, &flight{key: row.Key, qos: 2, id: id, step: released, turn: row.Turn, done: func(error) {}})
		}
	}
	// A broker gives messages to others when they are released: in their order.
	slices.SortFunc(unreleased, func(a, b *flight) int { return cmp.Compare(a.turn, b.turn) })
	for _, f := range unreleased {
		f.elem = o.flying.PushBack(f)
		o.byKey[f.key], o.byID[f.id] = f, f
	}
}

// errAgain is what the first done is called with when a key is sent twice.
var errAgain = errors.New("sent again with the same key")

// Send queues a message for the broker. It blocks while the queue is full, and
// returns ctx's error when that ends before there is room, or what is wrong with
// the message; then done is not called. Otherwise done is called once, and must not
// block: with nil when the broker has the message (QoS 0: it is with the connection;
// 1: PUBACK; 2: PUBCOMP), a *Refused when the broker does not take it, ErrDown for
// QoS 0 without a connection, ErrClosed at the end of Run. Messages of one QoS are
// sent in the order of the calls, also after the connection was lost.
//
// At QoS 2 key identifies the message, in this and later lives of the process. After
// Send was called with a key, it must be called with it again until done was called
// with nil or a *Refused, however late: see Begun. A message with the key of one
// that was completed lately is not sent; done is called with nil. At QoS 0 and 1 key
// may be empty. The message must not be changed afterwards.
func (s *Session) Send(ctx context.Context, key string, m *Message, done func(error)) error {
	_, err := s.send(ctx, key, m, done)
	return err
}

// Publish is Send and the wait for its end. When ctx ends first the message may
// have been sent, and may still be: the same key goes on where it stands.
func (s *Session) Publish(ctx context.Context, key string, m *Message) error {
	end := make(chan error, 1)
	f, err := s.send(ctx, key, m, func(err error) { end <- err })
	if err != nil {
		return err
	}
	select {
	case err := <-end:
		return err
	case <-ctx.Done():
		s.withdraw(f)
		return context.Cause(ctx)
	}
}

// Begun says whether the message of a key may have been sent at QoS 2 and is not
// completed. Such a message must be sent to its end, not dropped: the broker may
// hold it, its packet id cannot be used for another one, and it counts among those that
// the broker takes at a time.
func (s *Session) Begun(key string) bool {
	s.mu.Lock()
	defer s.unlock()
	id, ok := s.out.ids[hashKey(key)]
	return ok && s.out.rows[id].Stage != Completed
}

func hashKey(key string) Key {
	sum := sha256.Sum256([]byte(key))
	return Key(sum[:len(Key{})])
}

func (s *Session) send(ctx context.Context, key string, m *Message, done func(error)) (*flight, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("publish: %w", &Refused{What: "publish", Code: codeTopicInvalid, Text: err.Error()})
	}
	if m.QoS == 2 && key == "" {
		return nil, errors.New("publish: a message at QoS 2 needs a key")
	}
	f := &flight{m: m, qos: m.QoS, done: done}
	if key != "" {
		f.key = hashKey(key)
	}
	for {
		wait, err := s.admit(f)
		if err != nil || wait == nil {
			return f, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// admit takes a message if there is room; otherwise it returns what to wait for.
func (s *Session) admit(f *flight) (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case f.qos == 0:
		return s.admit0(f), nil
	case s.known(f):
		s.pump()
		return nil, nil
	case s.out.waiting.Len() >= s.cfg.MaxQueued || s.out.bytes > 0 && s.out.bytes+f.m.size() > s.cfg.MaxQueuedBytes:
		return s.freed, nil
	}
	s.out.bytes += f.m.size()
	f.elem = s.out.waiting.PushBack(f)
	if f.key != (Key{}) {
		s.out.byKey[f.key] = f
	}
	s.pump()
	return nil, nil
}

// most0 is how many bytes may wait for the writer when a message at QoS 0 joins.
const most0 = 1 << 20

func (s *Session) admit0(f *flight) <-chan struct{} {
	c := s.conn
	if c == nil || c.ended() { // which may not be taken out of use yet
		s.call(f, ErrDown)
		return nil
	}
	if wait := c.crowded(most0); wait != nil {
		return wait
	}
	s.transmit0(c, f)
	return nil
}

// transmit0 writes a message at QoS 0, with which it is done.
func (s *Session) transmit0(c *conn, f *flight) {
	if s.out.byKey[f.key] == f {
		delete(s.out.byKey, f.key)
	}
	err := s.fits(f.m)
	if err == nil {
		err = c.send(func(e encoder) error { return e.publish(f.m, 0, false, c.maxPacket) })
	}
	if err == nil {
		s.metrics.sent[0].Inc()
	}
	s.call(f, err)
}

// lower is for a broker that does not have the QoS of a message.
func (f *flight) lower(most byte) {
	if f.qos > most {
		m := *f.m
		m.QoS, f.qos = most, most
		f.m = &m
	}
}

// call has done called when the lock is released.
func (s *Session) call(f *flight, err error) {
	done := f.done
	s.calls = append(s.calls, func() { done(err) })
}

// known finds what a key stands for already: a message on its way, which gets the
// new done; one that was completed; or one that an earlier life of the process
// has begun.
func (s *Session) known(f *flight) bool {
	if f.key == (Key{}) {
		return false
	}
	if g := s.out.byKey[f.key]; g != nil {
		s.call(g, errAgain)
		g.done = f.done
		return true
	}
	id, ok := s.out.ids[f.key]
	if !ok || f.qos != 2 {
		return false
	}
	if s.out.rows[id].Stage == Completed {
		s.call(f, nil)
		return true
	}
	f.id, f.step, f.dup, f.turn = id, sent, true, s.out.rows[id].Turn
	s.out.orphans--
	s.fly(f)
	s.out.behind = append(s.out.behind, f)
	return true
}

// fly notes that a message has a packet id.
func (s *Session) fly(f *flight) {
	f.elem = s.out.flying.PushBack(f)
	s.out.byID[f.id] = f
	if f.key != (Key{}) {
		s.out.byKey[f.key] = f
	}
}

// withdraw takes back a message that has not been begun.
func (s *Session) withdraw(f *flight) {
	s.mu.Lock()
	defer s.unlock()
	if f.step != waiting || f.elem == nil {
		return
	}
	s.unqueue(f)
	if s.out.byKey[f.key] == f {
		delete(s.out.byKey, f.key)
	}
	s.roomLocked()
}

func (s *Session) unqueue(f *flight) {
	s.out.waiting.Remove(f.elem)
	s.out.bytes -= f.m.size()
	f.elem = nil
}

// pump sends what the broker's receive maximum lets through: first what it did not
// let through when the connection was made, then what waits.
func (s *Session) pump() {
	c, o := s.conn, &s.out
	if c == nil {
		return
	}
	for len(o.behind) > 0 && o.used < o.quota {
		f := o.behind[0]
		o.behind = o.behind[1:]
		switch {
		case f.elem == nil || f.on == c:
		case f.step == starting:
			s.start(f)
		default:
			s.transmit(c, f)
		}
	}
	room := false
	for o.mayBegin() && o.waiting.Len() > 0 {
		f := o.waiting.Front().Value.(*flight)
		if f.lower(s.info.MaxQoS); f.qos == 0 {
			s.unqueue(f)
			room = true
			s.transmit0(c, f)
			continue
		}
		id := o.take(f.qos, s.subs.pending)
		if id == 0 {
			break // all in use; one that ends brings us here again
		}
		s.unqueue(f)
		room = true
		s.begin(c, f, id)
	}
	if room {
		s.roomLocked()
	}
}

// mayBegin says whether the broker has room for one more. What it holds from before
// counts with it, whichever connection or life that is of: mosquitto (2.0.11) counts so,
// too, and answers what is too much with PUBREC or PUBACK, does not take it and closes
// the connection. In MQTT 5 they have a reason code; in 3.1.1 they look like any other,
// and the message is lost.
func (o *outgoing) mayBegin() bool {
	return o.used < o.quota && o.flying.Len()+o.orphans < o.quota
}

// begin gives a message its packet id.
func (s *Session) begin(c *conn, f *flight, id uint16) {
	f.id = id
	s.fly(f)
	if f.qos == 2 {
		s.out.turn++
		f.turn = s.out.turn
	}
	if f.qos == 1 {
		f.step = sent
		s.transmit(c, f)
		return
	}
	s.start(f)
}

// start has the packet id of a message at QoS 2 written down, and then sends it.
// It has its place in the quota meanwhile.
func (s *Session) start(f *flight) {
	f.step = starting
	s.occupy(s.conn, f)
	row := OutState{f.key, Begun, f.turn}
	s.setRow(f.id, row)
	asks := s.ask2(f)
	s.diary.add(func() {
		s.mu.Lock()
		defer s.unlock()
		if f.asks != asks || f.elem == nil {
			return
		}
		f.step = sent
		if s.conn != nil && f.on == s.conn {
			s.transmit(s.conn, f)
		}
	}, Change{Op: PutOut, ID: f.id, Out: row})
}

func (s *Session) ask2(f *flight) int {
	f.asks++
	return f.asks
}

// occupy counts a message against the quota of a connection, once.
func (s *Session) occupy(c *conn, f *flight) {
	if c != nil && f.on != c {
		f.on = c
		s.out.used++
	}
}

// transmit writes the PUBLISH of a message.
func (s *Session) transmit(c *conn, f *flight) {
	s.occupy(c, f)
	err := s.fits(f.m)
	if err == nil {
		err = c.send(func(e encoder) error { return e.publish(f.m, f.id, f.dup, c.maxPacket) })
	}
	if err != nil {
		s.refused(f, err)
		return
	}
	if f.dup {
		s.metrics.resent.Inc()
	}
	f.dup, f.at = true, time.Now()
}

// fits refuses for the broker what would make it end the connection.
func (s *Session) fits(m *Message) error {
	switch {
	case m.Retain && !s.info.Retain:
		return &Refused{What: "publish", Code: codeRetain}
	case m.QoS > s.info.MaxQoS: // in flight since it had another maximum
		return &Refused{What: "publish", Code: codeQoS}
	}
	return nil
}

// setRow sets what the journal is about to have of a packet id.
func (s *Session) setRow(id uint16, row OutState) {
	o := &s.out
	if old := o.rows[id]; old.Stage != Free && o.ids[old.Key] == id {
		delete(o.ids, old.Key)
	}
	o.rows[id] = row
	if row.Stage != Free {
		o.ids[row.Key] = id
	}
}

// take finds a packet id, 0 if there is none. Those of QoS 2 go round, so that a
// message that was completed is known for as long as may be.
func (o *outgoing) take(qos byte, pending map[uint16]*request) uint16 {
	if qos == 2 {
		for range allIDs - lowIDs {
			if o.high++; o.high <= lowIDs { // went round
				o.high = lowIDs + 1
			}
			if st := o.rows[o.high].Stage; o.byID[o.high] == nil && (st == Free || st == Completed) {
				return o.high
			}
		}
		return 0
	}
	for range lowIDs {
		o.low = o.low%lowIDs + 1
		if o.byID[o.low] == nil && pending[o.low] == nil {
			return o.low
		}
	}
	return 0
}
