package session

import (
	"cmp"
	"slices"
	"time"
)

// resume goes on with what was in flight, in its order (MQTT 5 §4.4, §4.6).
func (s *Session) resume(c *conn, a *connack) {
	o := &s.out
	o.quota, o.used, o.behind = min(int(a.receiveMax), maxSent), 0, nil
	if a.present && (c.enc.version != V5 || o.crowded) {
		s.releaseAgain(c)
	}
	o.crowded = false
	for e := o.flying.Front(); e != nil; {
		f := e.Value.(*flight)
		e = e.Next()
		f.on = nil
		if !a.present {
			s.renew(f)
			continue
		}
		switch f.step {
		case released:
			s.release2(c, f)
		case noting, starting: // the diary comes back to it
			s.occupy(c, f)
		case sent:
			if o.used < o.quota {
				s.transmit(c, f)
			} else {
				o.behind = append(o.behind, f)
			}
		}
	}
	if !a.present {
		s.forgetBegun()
	}
}

// againMost is for how many messages that are completed PUBREL is sent again.
const againMost = 4096

// releaseAgain sends PUBREL for the messages that were completed last. A broker that was
// killed and has come up with an older state may hold some of them unreleased: nobody
// else would ask for them any more, they may not have reached its clients, and they count
// among what it takes at a time; see mayBegin. Any other has forgotten them, and answers
// without doing anything.
func (s *Session) releaseAgain(c *conn) {
	o := &s.out
	var ids []uint16
	for id := lowIDs + 1; id <= allIDs; id++ {
		if row := &o.rows[id]; row.Stage == Completed && row.Turn+againMost > o.turn {
			ids = append(ids, uint16(id))
		}
	}
	slices.SortFunc(ids, func(a, b uint16) int { return cmp.Compare(o.rows[a].Turn, o.rows[b].Turn) })
	for _, id := range ids {
		c.answer(typePubrel, id, codeSuccess)
	}
}

// renew is for a message in flight when the broker has lost the session. One whose
// PUBREL may have been sent is done; whether the others had arrived is not known, and
// they are sent anew.
func (s *Session) renew(f *flight) {
	if f.step == released {
		s.complete(f)
		return
	}
	if f.dup {
		s.metrics.renewed.Inc()
	}
	f.dup = false
	if f.qos == 2 {
		s.renewRow(f)
		return
	}
	s.out.behind = append(s.out.behind, f)
}

// renewRow writes the row of a message anew: it may say that the broker has it.
func (s *Session) renewRow(f *flight) {
	if s.out.used < s.out.quota {
		s.start(f)
		return
	}
	f.step = starting
	s.ask2(f)
	s.out.behind = append(s.out.behind, f)
}

// forgetBegun frees the packet ids of messages of an earlier life that nobody has
// sent again yet: the broker knows of them no more.
func (s *Session) forgetBegun() {
	for _, id := range s.orphans() {
		s.forget(id)
	}
}

// orphans are the packet ids of messages that an earlier life began and nobody has sent
// again yet, in their order.
func (s *Session) orphans() (ids []uint16) {
	o := &s.out
	for id := lowIDs + 1; id <= allIDs; id++ {
		if o.rows[id].Stage == Begun && o.byID[uint16(id)] == nil {
			ids = append(ids, uint16(id))
		}
	}
	slices.SortFunc(ids, func(a, b uint16) int { return cmp.Compare(o.rows[a].Turn, o.rows[b].Turn) })
	return ids
}

func (s *Session) forget(id uint16) {
	s.metrics.renewed.Inc()
	s.out.orphans--
	s.setRow(id, OutState{})
	s.diary.lazily(Change{Op: CutOut, ID: id})
}

// disown has the broker release what it may hold of an earlier life, if nothing else can
// begin for that and nobody has sent it again for AckTimeout: the peer that it came from
// is away, or sends here no more. What is sent again after all is a new message then.
func (s *Session) disown(c *conn, now time.Time) {
	s.mu.Lock()
	defer s.unlock()
	o := &s.out
	stuck := o.waiting.Len() > 0 && o.flying.Len() == 0 && !o.mayBegin()
	if s.conn != c || !stuck || now.Sub(s.since) <= s.cfg.AckTimeout {
		return
	}
	ids := s.orphans()
	s.log.Warn("messages of an earlier life that their peer does not send again hold up others; what the broker has of them goes on, "+
		"and may come twice should they be sent again", "addr", s.cfg.Addr, "count", len(ids))
	for _, id := range ids {
		c.answer(typePubrel, id, codeSuccess)
		s.forget(id)
	}
	s.pump()
}

// acknowledged is told of PUBACK, PUBREC and PUBCOMP.
func (s *Session) acknowledged(c *conn, p *packet) error {
	f := s.out.byID[p.id]
	s.out.crowded = s.out.crowded || p.code == codeQuota
	switch p.kind {
	case typePuback:
		if f == nil || f.qos != 1 {
			return breach(codeProtocol, "PUBACK for packet id %d, which is of no message at QoS 1", p.id)
		}
		if p.code >= codeUnspecified {
			s.refused(f, &Refused{What: "publish", Code: p.code, Text: p.text})
			break
		}
		s.finish(f, nil)
	case typePubrec:
		s.received(c, f, p)
	case typePubcomp:
		if f == nil || f.qos != 2 { // of a PUBREL that was sent for an unknown id
			break
		}
		if f.step != released {
			return breach(codeProtocol, "PUBCOMP for packet id %d before PUBREL", p.id)
		}
		s.complete(f)
	}
	s.pump()
	return nil
}

// received is told of PUBREC.
func (s *Session) received(c *conn, f *flight, p *packet) {
	switch {
	case f == nil || f.qos != 2:
		// It has a message that is not known here; it is to forget it.
		if s.out.rows[p.id].Stage != Begun {
			c.answer(typePubrel, p.id, codeIDUnknown)
		}
	case p.code >= codeUnspecified:
		s.refused(f, &Refused{What: "publish", Code: p.code, Text: p.text})
	case f.step == released:
		s.release2(c, f)
	case f.step == sent:
		f.step = noting
		f.at = time.Time{}
		row := OutState{f.key, Received, f.turn}
		s.setRow(f.id, row)
		asks := s.ask2(f)
		s.diary.add(func() {
			s.mu.Lock()
			defer s.unlock()
			if f.asks != asks || f.elem == nil {
				return
			}
			f.step = released
			if s.conn != nil {
				s.release2(s.conn, f)
			}
		}, Change{Op: PutOut, ID: f.id, Out: row})
	}
}

// release2 sends PUBREL.
func (s *Session) release2(c *conn, f *flight) {
	s.occupy(c, f)
	f.at = time.Now()
	c.answer(typePubrel, f.id, codeSuccess)
}

// complete ends a flow at QoS 2. Its row stays, so that the key is known when it
// comes again; that it is complete need not be on disk, PUBREL would only be
// repeated.
func (s *Session) complete(f *flight) {
	row := OutState{f.key, Completed, f.turn}
	s.setRow(f.id, row)
	s.diary.lazily(Change{Op: PutOut, ID: f.id, Out: row})
	s.finish(f, nil)
}

// refused ends a message that the broker does not take.
func (s *Session) refused(f *flight, err error) {
	if f.qos == 2 {
		s.setRow(f.id, OutState{})
		s.diary.lazily(Change{Op: CutOut, ID: f.id})
	}
	s.metrics.refused.Inc()
	s.finish(f, err)
}

// finish ends a flight.
func (s *Session) finish(f *flight, err error) {
	o := &s.out
	o.flying.Remove(f.elem)
	f.elem = nil
	delete(o.byID, f.id)
	if o.byKey[f.key] == f {
		delete(o.byKey, f.key)
	}
	if f.on != nil && f.on == s.conn {
		o.used--
	}
	if err == nil {
		s.metrics.sent[f.qos].Inc()
	}
	s.call(f, err)
}

// failAll ends all that is under way, at the end of the session.
func (s *Session) failAll(err error) {
	for e := s.out.waiting.Front(); e != nil; e = e.Next() {
		s.call(e.Value.(*flight), err)
	}
	for e := s.out.flying.Front(); e != nil; e = e.Next() {
		f := e.Value.(*flight)
		f.elem = nil
		s.call(f, err)
	}
	s.out.waiting.Init()
	s.out.flying.Init()
	s.out.byKey, s.out.byID, s.out.behind = map[Key]*flight{}, map[uint16]*flight{}, nil
}

// overdue says whether the broker owes an acknowledgement for too long.
func (s *Session) overdue(c *conn, now time.Time) bool {
	s.mu.Lock()
	defer s.unlock()
	if c.paused.Load() || now.Sub(time.Unix(0, c.resumed.Load())) <= s.cfg.AckTimeout {
		return false
	}
	for e := s.out.flying.Front(); e != nil; e = e.Next() {
		f := e.Value.(*flight)
		if f.on == c && (f.step == sent || f.step == released) && !f.at.IsZero() && now.Sub(f.at) > s.cfg.AckTimeout {
			return true
		}
	}
	return s.subs.overdue(now, s.cfg.AckTimeout)
}
