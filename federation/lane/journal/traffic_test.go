package journal

import (
	"errors"
	"slices"
)

// transmit does one thing for the sender: open a stream, or send the next item.
func (w *world) transmit(s *sender) {
	st := s.stream
	if st == nil || st.cut {
		s.stream = &stream{from: s, epoch: s.epoch, hello: true}
		return
	}
	if st.flight == nil {
		return // waits for the receiver to say where it stands
	}
	for _, e := range s.db.log {
		if e.pos.After(st.flight.Sent()) {
			st.frames = append(st.frames, sent{st.flight.Next(e.pos), e.id})
			return
		}
	}
}

// arrive hands the receiver the next thing from a stream.
func (w *world) arrive(st *stream) {
	if st == nil || st.cut {
		return
	}
	if st.hello {
		st.hello = false
		w.begin(st)
		return
	}
	if len(st.frames) == 0 || w.recv.stream != st {
		return
	}
	f := st.frames[0]
	st.frames = st.frames[1:]
	mem := &w.recv.mem
	take, err := mem.in.Accept(f.Frame)
	if w.noLink && errors.Is(err, ErrGap) && f.Pos.After(mem.in.Cursor) {
		mem.in.Cursor, take, err = f.Pos, true, nil
	}
	if err != nil {
		cut(st)
		return
	}
	if take && (w.forgetIDs || !slices.Contains(mem.taken, f.id)) {
		mem.taken = append(mem.taken, f.id)
	}
	if w.ackFirst {
		st.acks = append(st.acks, Ack{mem.in.Cursor, mem.in.Cursor})
	}
}

// begin gives a stream the turn.
func (w *world) begin(st *stream) {
	r := w.recv
	if err := r.mem.in.Begin(st.epoch); err != nil && !w.noFence {
		cut(st)
		return
	}
	if r.stream != st {
		cut(r.stream)
	}
	r.stream = st
	w.commit()
	st.acks = append(st.acks, w.ack())
}

// commit puts what the receiver has taken on its disk.
func (w *world) commit() {
	w.recv.db = w.recv.mem.copy()
	w.rLagging = append(w.rLagging, w.recv.db.copy())
}

// ack says where the receiver's disk stands, and its backup's.
func (w *world) ack() Ack {
	a := Ack{Cursor: w.recv.db.in.Cursor, Safe: w.rBackup.in.Cursor}
	if a.Safe.After(a.Cursor) {
		a.Safe = a.Cursor
	}
	return a
}

// settle commits and acknowledges.
func (w *world) settle() {
	w.commit()
	if st := w.recv.stream; st != nil && !st.cut {
		st.acks = append(st.acks, w.ack())
	}
}

// heed hands a sender the next acknowledgement.
func (w *world) heed(s *sender) {
	st := s.stream
	if st == nil || st.cut || len(st.acks) == 0 {
		return
	}
	a := st.acks[0]
	st.acks = st.acks[1:]
	if w.deleteTaken {
		a.Safe = a.Cursor
	}
	if st.flight == nil {
		f, _, err := s.db.out.Begin(s.epoch, a)
		if err != nil {
			cut(st)
			return
		}
		if w.neverResend {
			f.sent = s.db.out.Last
		}
		st.flight = f
	} else if st.flight.Ack(a) != nil {
		cut(st)
		return
	}
	before := len(s.db.log)
	s.db.log = slices.DeleteFunc(s.db.log, func(e entry) bool { return !e.pos.After(s.db.out.Safe) })
	if len(s.db.log) != before {
		w.committed(s)
	}
}

// disturb does to a stream what no network below it should: it loses, doubles and
// reorders single frames and acknowledgements.
func (w *world) disturb(st *stream) {
	if st == nil || st.cut {
		return
	}
	if n := len(st.frames); n > 0 {
		i, j := w.rng.IntN(n), w.rng.IntN(n)
		switch w.rng.IntN(3) {
		case 0:
			st.frames = slices.Delete(st.frames, i, i+1)
		case 1:
			st.frames = slices.Insert(st.frames, j, st.frames[i])
		case 2:
			st.frames[i], st.frames[j] = st.frames[j], st.frames[i]
		}
	}
	if n := len(st.acks); n > 0 && st.flight != nil {
		i, j := w.rng.IntN(n), w.rng.IntN(n)
		switch w.rng.IntN(3) {
		case 0:
			st.acks = slices.Delete(st.acks, i, i+1)
		case 1:
			st.acks = slices.Insert(st.acks, j, st.acks[i])
		case 2:
			st.acks[i], st.acks[j] = st.acks[j], st.acks[i]
		}
	}
}
