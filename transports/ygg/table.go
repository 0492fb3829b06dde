package ygg

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
)

const (
	// maxKnown bounds the table. It is reached only if Accept lets thousands
	// of keys in, since refused keys never enter.
	maxKnown = 4096
	// idleTime is how long a node without streams is remembered.
	idleTime = 2 * time.Minute
	// silence is less than a node needs to restart and be found again. Streams may
	// open in the new life before a probe tells of it.
	silence = 100 * time.Millisecond
	// glances is more than passes between the looks at the clock of two that work side
	// by side, or between a tick and what is done at it.
	glances = time.Second
)

// remote is a node that this one dials or lets in.
type remote struct {
	key publicKey
	ip  address.Address
	to  net.Addr // key, in ironwood's form

	streams atomic.Int32 // open streams and dials in progress, either way
	inbound atomic.Int32 // accepted streams, handshakes included
	pending atomic.Int32 // handshakes of accepted streams
	heard   atomic.Int64 // when a packet last came, Unix nanoseconds
	resumed atomic.Int64 // when one last came after silence, likewise
	used    atomic.Int64 // when streams last fell to 0, or the entry's birth
	asked   atomic.Int64 // when it was last probed
	replied atomic.Int64 // when its probe was last answered
	found   atomic.Bool  // a way to it has been found once

	mu      sync.Mutex
	answer  chan struct{}      // closed and replaced at each answer to a probe
	started int64              // what its probes say of it, 0 before the first
	conns   map[*conn]struct{} // established streams
}

// within says whether a moment was less than d before now, both in Unix nanoseconds.
// One that is yet to come, by more than glances, was not: the clock has been set back since.
func within(d time.Duration, then, now int64) bool {
	since := now - then
	return since > -int64(glances) && since < int64(d)
}

// hold counts a stream or a dial; the function it returns gives it back, once.
func (r *remote) hold() (release func()) {
	r.streams.Add(1)
	return sync.OnceFunc(func() {
		r.used.Store(time.Now().UnixNano())
		r.streams.Add(-1)
	})
}

// inUse says that streams to the node are open or closed just now, so that its
// packets may pass whether or not it may open streams itself.
func (r *remote) inUse(now time.Time) bool {
	return r.streams.Load() > 0 || within(idleTime, r.used.Load(), now.UnixNano())
}

// hear notes that a packet has come.
func (r *remote) hear(now time.Time) {
	if was := r.heard.Swap(now.UnixNano()); !within(silence, was, now.UnixNano()) {
		r.resumed.Store(now.UnixNano())
	}
}

// heardWithin says whether the node sent anything in the last d.
func (r *remote) heardWithin(d time.Duration) bool {
	return within(d, r.heard.Load(), time.Now().UnixNano())
}

// nextAnswer is closed when the node next answers a probe.
func (r *remote) nextAnswer() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answer
}

func (r *remote) answered() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.answer)
	r.answer = make(chan struct{})
}

// restarted notes when the node says it was started, and says whether that is
// later than it was. A probe of before the restart that comes late is no news.
func (r *remote) restarted(started int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.started
	r.started = max(was, started)
	return was != 0 && started > was
}

// introduced says whether a probe of the node has told when it started.
func (r *remote) introduced() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started != 0
}

func (r *remote) attach(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
}

func (r *remote) detach(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// abortOld ends the established streams to what the node was before it restarted,
// as a reset by the far end would: those from before it was last silent. The
// owners of the streams still have to close them.
func (r *remote) abortOld() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		if c.opened.UnixNano() < r.resumed.Load() {
			c.ep.Abort()
		}
	}
}

// table maps between full keys and the addresses they hash to. Entries come
// from this node's own dials, and from decrypted packets of accepted keys: the
// only proof that an address belongs to a key.
type table struct {
	mu    sync.RWMutex
	byKey map[publicKey]*remote
	byIP  map[address.Address]*remote
}

func newTable() *table {
	return &table{byKey: map[publicKey]*remote{}, byIP: map[address.Address]*remote{}}
}

func (t *table) key(k publicKey) *remote {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byKey[k]
}

func (t *table) ip(ip address.Address) *remote {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byIP[ip]
}

var (
	errTableFull = fmt.Errorf("%d nodes are in use", maxKnown)
	// errSameAddress is all but certainly a mistyped key: the IPv6 address
	// holds the first half of a key, and two real keys do not share it.
	errSameAddress = errors.New("another key with the same beginning is in use; compare the two to the last digit")
)

// add returns the entry of k, made if need be. It fails when the table is full
// of nodes in use, or when another key has the same address, which is then the
// first one's.
func (t *table) add(k publicKey) (*remote, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addLocked(k)
}

// hold is add and remote.hold in one, so that no sweep comes between them.
func (t *table) hold(k publicKey) (*remote, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, err := t.addLocked(k)
	if err != nil {
		return nil, nil, err
	}
	return r, r.hold(), nil
}

func (t *table) addLocked(k publicKey) (*remote, error) {
	if r := t.byKey[k]; r != nil {
		return r, nil
	}
	ip := k.ip()
	if t.byIP[ip] != nil {
		return nil, errSameAddress
	}
	if len(t.byKey) >= maxKnown {
		t.sweepLocked(time.Now(), 0)
		if len(t.byKey) >= maxKnown {
			return nil, errTableFull
		}
	}
	r := &remote{key: k, ip: ip, to: types.Addr(k[:]), answer: make(chan struct{}), conns: map[*conn]struct{}{}}
	r.used.Store(time.Now().UnixNano())
	t.byKey[k], t.byIP[ip] = r, r
	return r, nil
}

// sweep forgets nodes that have been without streams for the idle time.
func (t *table) sweep(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweepLocked(now, idleTime)
}

func (t *table) sweepLocked(now time.Time, idle time.Duration) {
	for k, r := range t.byKey {
		if r.streams.Load() == 0 && !within(idle, r.used.Load(), now.UnixNano()) {
			delete(t.byKey, k)
			delete(t.byIP, r.ip)
		}
	}
}

// inUse lists the nodes with streams or dials.
func (t *table) inUse() []*remote {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var rs []*remote
	for _, r := range t.byKey {
		if r.streams.Load() > 0 {
			rs = append(rs, r)
		}
	}
	return rs
}
