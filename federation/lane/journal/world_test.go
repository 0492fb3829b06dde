package journal

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// rules are the ways in which a world can be made to break a rule of the package;
// the zero value keeps them all.
type rules struct {
	oneEpoch     bool // rule 1: every life appends in the same epoch
	storedEpoch  bool // rule 1: an epoch is the stored one plus one, so that an older copy repeats it
	noLink       bool // rule 2: a frame need not follow
	ackFirst     bool // rule 3: acknowledged before the commit
	deleteTaken  bool // rule 4: deleted when taken, not when safe
	noFence      bool // rule 5: any epoch may begin a stream
	forgetIDs    bool // rule 6: ids that were taken are not remembered
	promiseEarly bool // the local server is acknowledged before the replica has the item
	neverResend  bool // a new stream goes on behind the last item of all
}

// world is two grids with one lane between them, a local server that submits
// items 1, 2, 3... in order and repeats what it was not promised, and everything
// that can go wrong. Each side is a pair of machines: what is committed reaches
// the replica some time later, and a failover goes on from what the replica has.
type world struct {
	rules
	rng   *rand.Rand
	clock uint64 // of which epochs are made; it only goes forward

	primary *sender
	old     *sender // a primary that was replaced and does not know it yet
	client  *sender // whom the local server talks to
	backup  senderDB
	lagging []senderDB // commits that the backup does not have yet

	recv     *receiver
	rBackup  receiverDB
	rLagging []receiverDB

	next     int   // id of the next new item
	pending  []int // submitted and not promised, in order
	promised int   // every id up to this
	repeats  int   // submissions of what was submitted before
	steps    int
}

type entry struct {
	pos Pos
	id  int
}

// senderDB and receiverDB are what is on a disk. They are copied, never shared.
type senderDB struct {
	out   Out
	epoch uint64
	log   []entry
}

type receiverDB struct {
	in    In
	taken []int // in order
}

func (db senderDB) copy() senderDB     { db.log = slices.Clone(db.log); return db }
func (db receiverDB) copy() receiverDB { db.taken = slices.Clone(db.taken); return db }

// sender is one life of the sending gateway.
type sender struct {
	db     senderDB
	epoch  uint64
	stream *stream // nil while there is none
}

// receiver is one life of the receiving gateway: what it has in memory and what
// it has committed.
type receiver struct {
	mem, db receiverDB
	stream  *stream // the one that has the turn
}

// stream is one connection between two lives, with what is under way on it.
type stream struct {
	from   *sender
	epoch  uint64
	flight *Flight
	hello  bool // the opening is under way to the receiver
	frames []sent
	acks   []Ack
	cut    bool
}

type sent struct {
	Frame
	id int
}

func newWorld(seed uint64, r rules) *world {
	w := &world{rules: r, rng: rand.New(rand.NewPCG(seed, 0)), next: 1, clock: 1}
	w.primary = w.start(senderDB{})
	w.client = w.primary
	w.backup = w.primary.db.copy()
	w.recv = &receiver{}
	return w
}

// start begins a life of the sending gateway with what is on its disk.
func (w *world) start(db senderDB) *sender {
	w.clock++
	s := &sender{db: db.copy()}
	switch {
	case w.oneEpoch:
		s.epoch = 1
	case w.storedEpoch:
		s.epoch = db.epoch + 1
	default:
		s.epoch = max(db.epoch+1, w.clock)
	}
	s.db.epoch = s.epoch
	return s
}

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// submit has the local server hand over a new item, to the old primary if it has
// not noticed the failover.
func (w *world) submit() error {
	if len(w.pending) >= 4 {
		return nil
	}
	w.pending = append(w.pending, w.next)
	w.next++
	return w.append(w.client, w.next-1)
}

func (w *world) append(to *sender, id int) error {
	pos, err := to.db.out.Append(to.epoch)
	if err != nil {
		return err
	}
	to.db.log = append(to.db.log, entry{pos, id})
	w.committed(to)
	if w.promiseEarly && to == w.primary {
		w.promise(to.db)
	}
	return nil
}

// committed starts a commit on its way to the backup, if the node still has the
// lease.
func (w *world) committed(s *sender) {
	if s == w.primary {
		w.lagging = append(w.lagging, s.db.copy())
	}
}

// resubmit has the local server turn to the primary and repeat what it was not
// promised.
func (w *world) resubmit() error {
	w.client = w.primary
	for _, id := range w.pending {
		w.repeats++
		if err := w.append(w.primary, id); err != nil {
			return err
		}
	}
	return nil
}

// promise acknowledges to the local server what a database holds.
func (w *world) promise(db senderDB) {
	for len(w.pending) > 0 {
		id := w.pending[0]
		if !slices.ContainsFunc(db.log, func(e entry) bool { return e.id == id }) {
			return
		}
		w.promised = id
		w.pending = w.pending[1:]
	}
}

// replicate brings the backup some commits forward; what it has is promised.
func (w *world) replicate() {
	if n := len(w.lagging); n > 0 {
		k := 1 + w.rng.IntN(n)
		for _, db := range w.lagging[:k] {
			w.promise(db)
		}
		w.backup, w.lagging = w.lagging[k-1], slices.Clone(w.lagging[k:])
	}
}

func (w *world) rReplicate() {
	if n := len(w.rLagging); n > 0 {
		k := 1 + w.rng.IntN(n)
		w.rBackup, w.rLagging = w.rLagging[k-1], slices.Clone(w.rLagging[k:])
		if st := w.recv.stream; st != nil && !st.cut {
			st.acks = append(st.acks, w.ack())
		}
	}
}

// crash restarts the sending gateway on its own disk.
func (w *world) crash() error {
	w.old = nil
	cut(w.primary.stream)
	w.primary = w.start(w.primary.db)
	w.committed(w.primary)
	return w.resubmit()
}

// failover makes the backup the primary. The old one may live on for a while.
func (w *world) failover() error {
	w.old = w.primary
	w.lagging = nil
	w.primary = w.start(w.backup)
	w.backup = w.primary.db.copy() // a third machine, or the same one back
	if w.chance(50) {
		return w.bury()
	}
	return nil
}

// bury ends the old primary, which the local server notices.
func (w *world) bury() error {
	if w.old != nil {
		cut(w.old.stream)
		w.old = nil
	}
	return w.notice()
}

// notice has the local server turn to the primary if it has not yet.
func (w *world) notice() error {
	if w.client == w.primary {
		return nil
	}
	return w.resubmit()
}

func (w *world) rCrash() {
	cut(w.recv.stream)
	w.recv = &receiver{mem: w.recv.db.copy(), db: w.recv.db}
}

func (w *world) rFailover() {
	cut(w.recv.stream)
	w.rLagging = nil
	w.recv = &receiver{mem: w.rBackup.copy(), db: w.rBackup.copy()}
}

func cut(st *stream) {
	if st != nil {
		st.cut, st.frames, st.acks, st.hello = true, nil, nil, false
	}
}

func (w *world) String() string {
	return fmt.Sprintf("step %d: promised %d, taken %v, sender %+v, receiver %+v", w.steps, w.promised, w.recv.mem.taken, w.primary.db, w.recv.mem.in)
}
