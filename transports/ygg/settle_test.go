package ygg

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Arceliar/ironwood/encrypted"
	"github.com/Arceliar/ironwood/network"
	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestKick joins pairs of nodes by kicks alone. A pair needs two looks at the tree
// at least, which their own timers would take more than a second for.
func TestKick(t *testing.T) {
	late := time.Now().Add(patience / 2)
	for range int(patience / time.Second) {
		joinByKicks(t)
		if time.Now().After(late) {
			t.Fatal("kicks are no quicker than ironwood's own timer")
		}
	}
}

func joinByKicks(t *testing.T) {
	t.Helper()
	var timers [2]*time.Timer
	var pcs [2]*encrypted.PacketConn
	for i := range pcs {
		pc, err := encrypted.NewPacketConn(newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		defer pc.Close()
		if timers[i], err = treeTimer(pc); err != nil {
			t.Fatal(err)
		}
		pcs[i] = pc
	}
	ends := [2]net.Conn{}
	ends[0], ends[1] = net.Pipe()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range pcs {
		wg.Go(func() {
			_ = pcs[i].HandleConn(ed25519.PublicKey(pcs[1-i].LocalAddr().(types.Addr)), ends[i], 0) // ends with the test
		})
		defer ends[i].Close()
	}
	eventually(t, "each has the other in its tree, and one is the root", func() bool {
		for _, timer := range timers {
			timer.Reset(0)
		}
		return joined(pcs[0]) && joined(pcs[1])
	})
}

// joined says whether pc has another node in its tree, below or above it.
func joined(pc *encrypted.PacketConn) bool {
	roots, tree := 0, pc.PacketConn.Debug.GetTree()
	for _, n := range tree {
		if n.Key.Equal(n.Parent) {
			roots++
		}
	}
	return len(tree) == 2 && roots == 1
}

// counter counts the searches that come to a relay, by who searches and for whom.
type counter struct {
	mu    sync.Mutex
	count map[[2]publicKey]int
}

func countLookups(relay *core.Core) *counter {
	c := &counter{count: map[[2]publicKey]int{}}
	relay.PacketConn.PacketConn.Debug.SetDebugLookupLogger(func(i network.DebugLookupInfo) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.count[[2]publicKey{publicKey(i.Key), publicKey(i.Target)}]++
	})
	return c
}

func (c *counter) of(from, to publicKey) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.count[[2]publicKey{from, to}]
}

// behindRelay is a node that has found its place behind a stock relay, and a key
// that the relay's filter takes for its own, so that searches for it come there.
func behindRelay(t *testing.T, cfg Config) (n *Node, lookups *counter, relay, absent publicKey) {
	t.Helper()
	uri := newURI()
	cfg.Peers = []string{uri}
	c := stockRelay(t, uri)
	lookups = countLookups(c)
	n = start(t, cfg)
	eventually(t, "a place in the tree", func() bool { return len(c.GetTree()) == 2 && len(n.core.GetTree()) == 2 })
	// The last bits of a key are in no address, and filters hold less than that.
	relay = publicKey(c.PublicKey())
	absent = relay
	absent[31] ^= 1
	return n, lookups, relay, absent
}

// TestDialWaitsForWay wants a dial to search for the way to a node again and
// again, and to send nothing before there is one: ironwood would keep that in
// place of the answer to a session's opening.
func TestDialWaitsForWay(t *testing.T) {
	t.Parallel()
	n, lookups, _, absent := behindRelay(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := n.Dial(ctx, absent.addr(7))
		done <- err
	}()
	// More of them than there are in the time after which SYNs are tried blindly.
	eventually(t, "searches", func() bool { return lookups.of(n.public, absent) > int(2*blindAfter/fastProbe) })
	if got := n.bridge.sent.Load(); got != 0 {
		t.Errorf("%d packets were sent without a way", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v", err)
	}
}

// TestSoughtSeeks wants a node that another looks for to look for that in turn, as
// long as it has not found it, and only if it is known here.
func TestSoughtSeeks(t *testing.T) {
	t.Parallel()
	n, lookups, relay, absent := behindRelay(t, Config{})
	stranger := absent
	stranger[31] ^= 2
	for _, k := range []publicKey{absent, relay} {
		// They have the same address, which add refuses.
		r := &remote{key: k}
		r.used.Store(time.Now().UnixNano())
		n.table.mu.Lock()
		n.table.byKey[k] = r
		n.table.mu.Unlock()
	}
	// The relay answers searches for the absent one in its own name.
	eventually(t, "a way to the relay", func() bool {
		n.bridge.seek(absent)
		return n.ways()[relay]
	})
	for _, k := range []publicKey{stranger, relay, absent} {
		n.looked(network.DebugLookupInfo{Key: k[:], Target: n.public[:]})
		n.looked(network.DebugLookupInfo{Key: n.public[:], Target: k[:]}) // its own, and others' that come by
	}
	eventually(t, "searches", func() bool { return lookups.of(n.public, absent) >= 5 })
	if got := lookups.of(n.public, stranger); got != 0 {
		t.Errorf("%d searches for a node that is not known", got)
	}
	if got := lookups.of(n.public, relay); got != 0 {
		t.Errorf("%d searches for a node that the way is known to", got)
	}
	now := time.Now()
	n.sought.add(absent, now)
	n.found(ed25519.PublicKey(absent[:]))
	if n.sought.any(now) {
		t.Error("it is looked for after it was found")
	}
	n.sought.add(absent, now)
	if over := now.Add(seekTime + time.Millisecond); n.sought.any(over) {
		t.Error("it is looked for after its time")
	} else if n.sought.add(absent, over); n.sought.any(over) {
		t.Error("it is looked for again at once")
	}
	for i := range 2 * maxSought {
		k := stranger
		k[0] = byte(i)
		n.sought.add(k, now)
	}
	if got := len(n.sought.list(now)); got > maxSought {
		t.Errorf("%d nodes are looked for at a time", got)
	}
}

// TestLostSYN has a node answer probes and drop the first SYNs. The netstack would
// send them again after 1, 3 and 7 seconds; an answer that comes after them says
// sooner that they are lost.
func TestLostSYN(t *testing.T) {
	t.Parallel()
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	<-n.ready
	c := stockRelay(t, newURI())
	u, err := parsePeer(uri)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddPeer(u, ""); err != nil {
		t.Fatal(err)
	}
	var syns [2]atomic.Int32 // with the first source port, with others
	go func() {
		var first uint16
		buf := make([]byte, 1<<16)
		for {
			k, _, err := c.PacketConn.ReadFrom(buf)
			if err != nil {
				return
			}
			switch p := buf[:k]; {
			case k == probeSize && string(p[:8]) == string(probeAsk):
				answer := binary.BigEndian.AppendUint64(append([]byte(nil), probeAnswer...), 1)
				_, _ = c.PacketConn.WriteTo(answer, types.Addr(n.public[:])) // the test notices
			case k > 1+header.IPv6MinimumSize+header.TCPMinimumSize && p[1]>>4 == header.IPv6Version &&
				p[1+6] == byte(header.TCPProtocolNumber):
				port := header.TCP(p[1+header.IPv6MinimumSize:]).SourcePort()
				if first == 0 {
					first = port
				}
				if port == first {
					syns[0].Add(1)
				} else {
					syns[1].Add(1)
				}
			}
		}
	}()
	far := publicKey(c.PublicKey())
	eventually(t, "a way to it", func() bool {
		n.bridge.seek(far)
		return n.ways()[far]
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := n.Dial(ctx, far.addr(7))
		done <- err
	}()
	eventually(t, "a fresh SYN", func() bool { return syns[1].Load() > 0 })
	// Fewer than there are by the time at which a try is over by itself.
	if got := syns[0].Load(); got > 3 {
		t.Errorf("the first SYN was sent %d times before a fresh one", got)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v", err)
	}
}

// TestAbortOld wants streams to a node's former life to end when it says that it
// has restarted, and those that have opened since to stay.
func TestAbortOld(t *testing.T) {
	tbl := newTable()
	r, err := tbl.add(publicKey(newKey(t)[ed25519.SeedSize:]))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	at := func(d time.Duration) time.Time { return begin.Add(d) }
	r.hear(at(0))
	r.hear(at(silence / 2))
	old, young := new(abortable), new(abortable)
	r.attach(&conn{ep: old, opened: at(silence / 2)})
	r.hear(at(10 * silence))
	r.attach(&conn{ep: young, opened: at(10*silence + silence/2)})
	r.hear(at(10*silence + silence/2))
	r.abortOld()
	if !old.aborted || young.aborted {
		t.Errorf("aborted: of the former life %v, of this one %v", old.aborted, young.aborted)
	}
}

type abortable struct {
	tcpip.Endpoint
	aborted bool
}

func (a *abortable) Abort() { a.aborted = true }
