package ygg

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

// openTime is for a stream to open once a peering is up. It takes 1 to 2 s,
// as the tests log; with SYNs alone it takes longer than this four times in
// five, since the stale session is mended only by traffic.
const openTime = 15 * time.Second

// TestRestart restarts the far node with the same key, which leaves this one
// with a session that the other knows nothing of, and dials at once.
func TestRestart(t *testing.T) {
	t.Parallel()
	relay := newURI()
	stockRelay(t, relay)
	a := start(t, Config{Peers: []string{relay}})
	cfg := Config{Key: newKey(t), Peers: []string{relay}}
	var old transports.Conn
	for round := range 4 {
		b := newNode(t, cfg)
		echo(t, b, 7)
		stop := run(t, b)
		eventually(t, "a peering of the new node", func() bool { return b.Status().Up })
		up := time.Now()
		c, err := dialIn(t, openTime, a, b, 7)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: stream open %v after the peering", round, time.Since(up))
		wantEcho(t, c)
		if old != nil {
			// Nobody writes to it, so TCP alone would not notice for a minute.
			if err := old.SetReadDeadline(time.Now().Add(patience / 4)); err != nil {
				t.Fatal(err)
			}
			if _, err := old.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("round %d: read from a node that has restarted: %v", round, err)
			}
			old.Close()
		}
		old = c
		eventually(t, "both know each other's start", func() bool {
			r := a.table.key(b.public)
			return r != nil && r.introduced()
		})
		// It goes down as in a crash: its resets reach nobody.
		if err := b.RemovePeer(relay); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the node is cut off", func() bool { return !b.Status().Up })
		stop()
	}
	old.Close()
	eventually(t, "nothing counts as in use", func() bool { return len(a.table.inUse()) == 0 })
}

// TestLatePeering dials first and lets the network come afterwards.
func TestLatePeering(t *testing.T) {
	t.Parallel()
	relay := newURI()
	a, b := start(t, Config{}), start(t, Config{})
	echo(t, b, 7)
	type result struct {
		c   transports.Conn
		err error
	}
	got := make(chan result, 1)
	go func() {
		c, err := dialIn(t, patience, a, b, 7)
		got <- result{c, err}
	}()
	eventually(t, "the dial is under way", func() bool { return len(a.table.inUse()) == 1 })
	for _, n := range []*Node{a, b} {
		if err := n.AddPeer(relay); err != nil {
			t.Fatal(err)
		}
	}
	stockRelay(t, relay)
	eventually(t, "both are peered", func() bool { return a.Status().Up && b.Status().Up })
	up := time.Now()
	r := <-got
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer r.c.Close()
	t.Logf("stream open %v after the peerings", time.Since(up))
	wantEcho(t, r.c)
}

// TestDialSaysWhy wants errors that tell an operator where to look.
func TestDialSaysWhy(t *testing.T) {
	t.Parallel()
	uri := newURI()
	a := start(t, Config{})
	b := start(t, Config{Listen: []string{uri}, Accept: func(transports.Addr) bool { return false }})
	fails := func(want string) {
		t.Helper()
		_, err := dialIn(t, time.Second, a, b, 7)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v, want an error with %q", err, want)
		}
	}
	fails("no peering")
	if err := a.AddPeer(uri); err != nil {
		t.Fatal(err)
	}
	eventually(t, "peering", func() bool { return a.Status().Up })
	fails("has not approved this node")

	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := newNode(t, Config{Peers: []string{uri}})
	run(t, c)
	to := c.Self()
	to.Port = 9
	if _, err := a.Dial(ctx, to); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial to a port that nobody listens on: %v", err)
	}
	if _, err := a.Dial(ctx, transports.Addr{Net: Network, Node: a.Self().Node, Port: 1}); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Errorf("dial to itself: %v", err)
	}
	// The second half of a key is not in the address: a wrong one must not be
	// taken for the right one.
	wrong := strings.Repeat("0", 32)
	if _, err := a.Dial(ctx, transports.Addr{Net: Network, Node: to.Node[:32] + wrong, Port: 9}); err == nil || !strings.Contains(err.Error(), "last digit") {
		t.Errorf("dial to a key with the same address as a known one: %v", err)
	}
}

// TestPeeringsAtRunTime adds, replaces and removes peerings of a running node.
func TestPeeringsAtRunTime(t *testing.T) {
	t.Parallel()
	uri := newURI()
	changes := make(chan struct{}, 100)
	hub := start(t, Config{Listen: []string{uri}})
	n := start(t, Config{OnPeering: func() { changes <- struct{}{} }})
	<-n.ready
	if err := n.RemovePeer(uri); err == nil || !strings.Contains(err.Error(), "no such peering") {
		t.Errorf("remove what is not there: %v", err)
	}
	if err := n.AddPeer("tls://nowhere"); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
		t.Errorf("add nonsense: %v", err)
	}
	// The round with a wrong pin shows that options are taken anew.
	for _, tc := range []struct {
		options, fails string
	}{{"", ""}, {"?key=" + someKey, "pinned"}, {"?key=" + hub.Self().Node, ""}} {
		if err := n.AddPeer(uri + tc.options); err != nil {
			t.Fatal(err)
		}
		if err := n.AddPeer(uri); err == nil || !strings.Contains(err.Error(), "already there") {
			t.Errorf("add twice: %v", err)
		}
		eventually(t, "state of peering with "+tc.options, func() bool {
			s := n.Status()
			if raceDetector {
				return s.Up == (tc.fails == "")
			}
			if len(s.Peerings) != 1 || s.Peerings[0].URI != uri {
				return false
			}
			p := s.Peerings[0]
			if tc.fails != "" {
				return !p.Up && strings.Contains(p.LastError, tc.fails)
			}
			return p.Up && s.Up && !p.Inbound && p.Node == hub.Self().Node && p.RxBytes > 0
		})
		if tc.fails == "" {
			<-changes
			eventually(t, "inbound peering on the hub", func() bool {
				ps := hub.Status().Peerings
				return raceDetector && len(ps) == 1 || len(ps) == 1 && ps[0].Inbound && ps[0].Node == n.Self().Node
			})
		}
		if err := n.RemovePeer(uri); err != nil {
			t.Fatal(err)
		}
		eventually(t, "peering gone", func() bool { return !n.Status().Up })
		if tc.fails == "" {
			<-changes
		}
	}
}

// TestListenTaken wants Run to fail, not to go on without the listener.
func TestListenTaken(t *testing.T) {
	t.Parallel()
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	<-n.ready // or the other would have the address first
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := newNode(t, Config{Listen: []string{uri}}).Run(ctx); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Run: %v, want that the address is in use", err)
	}
}

// TestRetry counts dials at a peer that hangs up at once. With core's backoff
// alone, ten of them take more than a minute.
func TestRetry(t *testing.T) {
	t.Parallel()
	uri := newURI()
	l, err := net.Listen("tcp", strings.TrimPrefix(uri, "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	start(t, Config{Peers: []string{uri}})
	dials := make(chan struct{})
	go func() {
		defer close(dials)
		for range 10 {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	select {
	case <-dials:
	case <-time.After(patience / 2):
		t.Error("a peer is not redialled while there is no other")
	}
}

// TestLateTry has a try come through although a fresh one has taken its place. Its
// stream must not stay.
func TestLateTry(t *testing.T) {
	uri := newURI()
	a, b := start(t, Config{Listen: []string{uri}}), start(t, Config{Peers: []string{uri}})
	echo(t, a, 7)
	c, err := dialIn(t, patience, b, a, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	far := publicKey(newKey(t).Public().(ed25519.PublicKey)) // it is nowhere
	r, release, err := b.table.hold(far)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	d := dialer{node: b, remote: r, port: 7, tries: make(chan try)}
	ended := make(chan error, 1)
	go func() {
		_, err := d.run(ctx)
		ended <- err
	}()
	late := c.(*conn)
	d.tries <- try{serial: -1, conn: late}
	// The same once more, so that the first has been worked on.
	d.tries <- try{serial: -1}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the dial ended with %v", err)
	}
	late.far.mu.Lock()
	_, there := late.far.conns[late]
	late.far.mu.Unlock()
	if there {
		t.Error("the stream still belongs to the node")
	}
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the stream is open: %v", err)
	}
}

// TestClockSetBack leaves behind what a clock noted that was an hour ahead. It must
// neither keep probes and their answers back for that hour, nor pass for news.
func TestClockSetBack(t *testing.T) {
	uri := newURI()
	a, b := start(t, Config{Listen: []string{uri}}), start(t, Config{Peers: []string{uri}})
	eventually(t, "the peering", func() bool { return a.peered.Load() != 0 })
	r, err := a.table.add(b.public)
	if err != nil {
		t.Fatal(err)
	}
	ahead := time.Now().Add(time.Hour).UnixNano()
	for _, noted := range []*atomic.Int64{&r.heard, &r.used, &r.asked, &r.replied, &a.peered} {
		noted.Store(ahead)
	}
	if r.heardWithin(warm) || r.inUse(time.Now()) || a.peeredWithin(fastTime) {
		t.Error("what is yet to come has just been")
	}
	if err := a.bridge.probe(r, fastProbe); err != nil || r.asked.Load() == ahead {
		t.Errorf("no probe is sent: %v", err)
	}
	ask := append(slices.Clone(probeAsk), make([]byte, probeSize-len(probeAsk))...)
	if err := a.bridge.handleProbe(ask, b.public, r); err != nil || r.replied.Load() == ahead {
		t.Errorf("no probe is answered: %v", err)
	}
	if r.resumed.Load() == 0 {
		t.Error("the silence before was no silence")
	}
	r.used.Store(ahead)
	a.table.sweep(time.Now())
	if a.table.key(b.public) != nil {
		t.Error("the node is not forgotten")
	}
}

// TestLooksAtTheClock: what was noted a little later than whoever asks has looked at the
// clock is no sign of a clock that was set back.
func TestLooksAtTheClock(t *testing.T) {
	table := newTable()
	looked := time.Now()
	r, err := table.add(publicKey{1})
	if err != nil {
		t.Fatal(err)
	}
	r.used.Store(looked.Add(10 * time.Millisecond).UnixNano())
	if !r.inUse(looked) {
		t.Error("the node is not in use")
	}
	if table.sweep(looked); table.key(r.key) != r {
		t.Error("the node is forgotten as it becomes known")
	}
	r.hear(looked.Add(10 * time.Millisecond))
	resumed := r.resumed.Load()
	if r.hear(looked); r.resumed.Load() != resumed {
		t.Error("a silence of less than nothing")
	}
}
