package ygg

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/Arceliar/ironwood/encrypted"
	"github.com/Arceliar/ironwood/network"
)

// ironwood looks at its tree once a second and says nothing in between. A node
// that joins needs three such looks at least, its own and its neighbour's in turn,
// and one that has restarted with the same key five, before anybody finds it. So
// while a peering is young this node looks again as soon as there is news: then
// it waits for the neighbour's looks only, and two nodes of this kind for none.
const (
	settleEvery = 25 * time.Millisecond
	// settleTime is how long a peering counts as young.
	settleTime = 3 * time.Second
	// lastKick ends the looks that follow news, each twice as long after the one
	// before: the neighbour's answers take a round trip.
	lastKick = 400 * time.Millisecond
	// maxKicks bounds them for one peering: with many neighbours there is news all
	// the time, and each look costs more.
	maxKicks = 24
	// seekTime is how long a node that looks for this one is looked for in turn,
	// seekEvery how often.
	seekTime  = 4 * time.Second
	seekEvery = 4 * settleEvery
	// maxSought bounds the nodes that are looked for at a time.
	maxSought = 64
)

// treeTimer is what has ironwood look at its tree. There is no way to ask for a
// look, but the timer may be set to go off sooner by anybody who has it. TestKick
// holds upstream to that.
func treeTimer(pc *encrypted.PacketConn) (*time.Timer, error) {
	core := reflect.ValueOf(pc.PacketConn).Elem().FieldByName("core")
	if core.Kind() != reflect.Pointer || core.Type().Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("find ironwood's timer: no core in %T", pc.PacketConn)
	}
	router := core.Elem().FieldByName("router")
	if router.Kind() != reflect.Struct {
		return nil, fmt.Errorf("find ironwood's timer: no router in %s", core.Type())
	}
	timer := router.FieldByName("mainTimer")
	if !timer.IsValid() || timer.Type() != reflect.TypeFor[*time.Timer]() || timer.IsNil() {
		return nil, fmt.Errorf("find ironwood's timer: no mainTimer in %s", router.Type())
	}
	// Read once, before anything can close the connection, which clears the field.
	// A timer that goes off after that finds nothing to do.
	return (*time.Timer)(timer.UnsafePointer()), nil
}

// settler follows the tree while a peering is young.
type settler struct {
	node  *Node
	until time.Time // a peering is young until then
	tree  map[publicKey]place
	next  time.Time     // of the next look, zero for none
	gap   time.Duration // between that and the one after it
	left  int           // looks that may still be made
	seek  time.Time     // when nodes were last looked for
}

// place is what the tree says of a node.
type place struct {
	parent   publicKey
	sequence uint64
}

// settle works until ctx is done, and only while there is something to settle.
func (n *Node) settle(ctx context.Context) error {
	s := settler{node: n}
	tick := time.NewTimer(settleEvery)
	defer tick.Stop()
	for {
		now := time.Now()
		var due <-chan time.Time
		if now.Before(s.until) || n.sought.any(now) {
			tick.Reset(settleEvery)
			due = tick.C
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.joined:
			s.until = time.Now().Add(settleTime)
			// The second is for a peering that was not in the tree yet.
			s.next, s.gap, s.left = time.Now().Add(settleEvery), lastKick/2, maxKicks
		case <-n.sought.more:
		case <-due:
			s.step(time.Now())
		}
	}
}

func (s *settler) step(now time.Time) {
	if now.Before(s.until) && s.news() {
		s.next, s.gap = now, settleEvery
	}
	if !s.next.IsZero() && !now.Before(s.next) && s.left > 0 {
		s.left--
		s.node.tree.Reset(0)
		s.next = now.Add(s.gap)
		if s.gap *= 2; s.gap > lastKick {
			s.next = time.Time{}
		}
	}
	if now.Sub(s.seek) >= seekEvery {
		s.seek = now
		s.node.seekBack(now)
	}
}

// news says whether the place of another node in the tree has changed. What
// neighbours remember of this one's own, from before it restarted, is none:
// acting on it before they have spoken of themselves would make them forget it,
// and with it that this node is theirs.
func (s *settler) news() bool {
	tree := map[publicKey]place{}
	for _, i := range s.node.core.GetTree() {
		if k := publicKey(i.Key); k != s.node.public {
			tree[k] = place{publicKey(i.Parent), i.Sequence}
		}
	}
	old := s.tree
	s.tree = tree
	return !maps.Equal(old, tree)
}

// seekBack looks for those that look for this node.
func (n *Node) seekBack(now time.Time) {
	ks := n.sought.list(now)
	if len(ks) == 0 {
		return
	}
	ways := n.ways()
	for _, k := range ks {
		if ways[k] {
			n.sought.remove(k)
		} else {
			n.bridge.seek(k)
		}
	}
}

// sought are the nodes that look for this one and that it has not found itself.
// Without the way back to them it answers nothing: ironwood keeps the answer to
// the opening of a session until the way is found, but looks for it only once.
type sought struct {
	more chan struct{} // holds a token when there is one more

	mu    sync.Mutex
	until map[publicKey]time.Time // may be past by as long again
}

func newSought() *sought {
	return &sought{more: make(chan struct{}, 1), until: map[publicKey]time.Time{}}
}

func (s *sought) add(k publicKey, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, ok := s.until[k]; ok && !now.After(until.Add(seekTime)) || !ok && len(s.until) >= maxSought {
		return
	}
	s.until[k] = now.Add(seekTime)
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *sought) remove(k publicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.until, k)
}

func (s *sought) any(now time.Time) bool { return len(s.list(now)) > 0 }

// list is of those whose time is not over. They are forgotten only later, or two
// nodes that cannot find each other would keep each other looking.
func (s *sought) list(now time.Time) []publicKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ks []publicKey
	for k, until := range s.until {
		switch {
		case now.After(until.Add(seekTime)):
			delete(s.until, k)
		case now.Before(until):
			ks = append(ks, k)
		}
	}
	return ks
}

// found is told by ironwood that there is a new way to a node. It must not wait.
func (n *Node) found(key ed25519.PublicKey) {
	k := publicKey(key)
	n.sought.remove(k)
	if r := n.table.key(k); r != nil {
		r.found.Store(true)
	}
}

// looked is told by ironwood of searches that come by. It must not wait. Searches
// prove nothing of who searches, so that those of unknown nodes have no more
// effect than that the watch looks more often.
func (n *Node) looked(i network.DebugLookupInfo) {
	from := publicKey(i.Key)
	if publicKey(i.Target) != n.public || from == n.public {
		return
	}
	if n.table.key(from) != nil {
		n.sought.add(from, time.Now())
		return
	}
	select {
	case n.stirred <- struct{}{}:
	default:
	}
}

// lookForWay notes whether there is a way to r now; found tells of later ones.
func (n *Node) lookForWay(r *remote) bool {
	r.found.Store(false) // before asking, so that what found says meanwhile stays
	if n.ways()[r.key] {
		r.found.Store(true)
	}
	return r.found.Load()
}

// ways are the nodes that ironwood has a path to.
func (n *Node) ways() map[publicKey]bool {
	ks := map[publicKey]bool{}
	for _, p := range n.core.GetPaths() {
		ks[publicKey(p.Key)] = true
	}
	return ks
}

// seek looks for the way to a node.
func (b *bridge) seek(k publicKey) { b.pc.SendLookup(k[:]) }
