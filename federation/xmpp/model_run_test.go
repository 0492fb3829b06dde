package xmpp

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// modelGrid is a model server behind a real Adapter on real memory lanes.
type modelGrid struct {
	id, peer federation.GridID
	server   *modelServer
	dir      *federation.Directory
	link     *modelLink
	far      *modelGrid
	disk     *modelDisk

	mu      sync.Mutex
	adapter *Adapter
	lanes   *lane.Memory
	epoch   uint64
	up      bool
	stop    func()
}

// modelLink is the way between two grids.
type modelLink struct {
	mu    sync.Mutex
	up    bool
	conns []net.Conn
}

func newModelGrid(id, peer federation.GridID, link *modelLink) *modelGrid {
	domain, other := string(id)+".grid", string(peer)+".grid"
	g := &modelGrid{id: id, peer: peer, link: link, dir: federation.NewDirectory()}
	g.disk = newModelDisk(g)
	g.server = newModelServer(domain, other, []string{"u", "v"})
	g.server.gate = func() *Adapter {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.adapter
	}
	claim := func(d string) federation.Claim {
		return federation.Claim{Protocol: federation.XMPP, Domain: d, Grid: peer, Status: federation.ClaimActive}
	}
	g.dir.Publish(federation.NewSnapshot(
		[]*federation.Peer{{ID: peer, Name: string(peer), State: federation.StateActive, Policy: federation.Policy{Allow: map[federation.Protocol]bool{federation.XMPP: true}, Limits: federation.DefaultLimits()}}},
		[]federation.Claim{claim(other), claim("conference." + other)},
		map[federation.Protocol][]string{federation.XMPP: {domain, "conference." + domain}}))
	return g
}

// start starts the gateway in a new epoch.
func (g *modelGrid) start(t *testing.T) {
	a, err := New(Config{Directory: g.dir})
	if err != nil {
		t.Fatal(err)
	}
	m := lane.NewMemory(lane.MemoryConfig{Streams: g, Handlers: map[federation.Protocol]lane.Handler{federation.XMPP: a}, Directory: g.dir})
	a.Connect(m, g.disk, g.server)
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for _, run := range []func(context.Context) error{a.Run, m.Run} {
		work.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.adapter, g.lanes, g.up = a, m, false
	g.epoch++
	g.stop = func() {
		g.mu.Lock()
		g.adapter, g.lanes = nil, nil
		g.mu.Unlock()
		cancel()
		work.Wait()
	}
}

// OpenLane implements lane.Streams.
func (g *modelGrid) OpenLane(context.Context, federation.GridID, string) (io.ReadWriteCloser, error) {
	g.far.mu.Lock()
	m := g.far.lanes
	g.far.mu.Unlock()
	g.link.mu.Lock()
	defer g.link.mu.Unlock()
	if !g.link.up || m == nil {
		return nil, federation.ErrPeerDown
	}
	near, far := net.Pipe()
	g.link.conns = append(g.link.conns, near, far)
	go func() {
		// The stream ends with the link; what it ends with is the sender's.
		_ = m.ServeStream(context.Background(), g.far.dir.Now().Peer(g.id), string(lane.Eph), far)
	}()
	return near, nil
}

func (l *modelLink) set(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up = up
	if !up {
		for _, c := range l.conns {
			c.Close()
		}
		l.conns = nil
	}
}

// notice tells the grid's gateway what its link has found out.
func (g *modelGrid) notice(up bool, epoch uint64) {
	g.mu.Lock()
	a, m, was := g.adapter, g.lanes, g.up
	g.up = up
	g.mu.Unlock()
	switch {
	case a == nil || up == was:
	case up:
		m.PeerUp(g.peer)
		a.PeerUp(g.peer, epoch)
	default:
		m.PeerDown(g.peer)
		a.PeerDown(g.peer)
	}
}

type modelRun struct {
	t    *testing.T
	rng  *rand.Rand
	link modelLink
	grid [2]*modelGrid
	log  []string
	// mortal is whose gateway may die. When one does after the other, what both
	// knew is lost, and only the users' next presence tells it again.
	mortal int
}

func (r *modelRun) pause(most time.Duration) {
	time.Sleep(time.Duration(r.rng.Int64N(int64(most)) + 1)) // on the bubble's clock
}

func (r *modelRun) note(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

// users lets some users do something.
func (r *modelRun) users(n int) {
	for range n {
		s := r.grid[r.rng.IntN(2)].server
		user := []string{"u@", "v@"}[r.rng.IntN(2)] + s.domain
		resource := []string{"1", "2"}[r.rng.IntN(2)]
		do := r.rng.IntN(7)
		r.note("%s/%s %s", user, resource, []string{"login", "login", "logout", "enter", "leave", "write", "write"}[do])
		[]func(string, string){s.login, s.login, s.logout, s.enter, s.leave, s.write, s.write}[do](user, resource)
		r.pause(300 * time.Millisecond)
	}
}

// cut breaks the link for a while. Each side notices on its own, or not at all
// when it was too short.
func (r *modelRun) cut(most time.Duration) {
	r.note("cut")
	r.link.set(false)
	blind := r.rng.IntN(4) // 0 and 1: that side notices nothing
	for _, i := range r.rng.Perm(2) {
		r.users(r.rng.IntN(4))
		if i != blind {
			r.note("%s notices", r.grid[i].id)
			r.grid[i].notice(false, 0)
		}
	}
	r.users(r.rng.IntN(4))
	r.pause(most)
	r.note("back")
	r.link.set(true)
	r.settle()
}

// restart kills a gateway and starts it anew.
func (r *modelRun) restart(most time.Duration) {
	g, far := r.grid[r.mortal], r.grid[1-r.mortal]
	r.note("%s dies", g.id)
	// What is in the gateway's memory at that moment is lost, and nobody knows;
	// a client that waits for a room then would have to ask again.
	synctest.Wait()
	r.link.set(false)
	g.stop()
	r.users(r.rng.IntN(4))
	r.note("%s notices", far.id)
	far.notice(false, 0)
	r.users(r.rng.IntN(4))
	r.pause(most)
	r.note("%s is back", g.id)
	g.start(r.t)
	r.link.set(true)
	r.settle()
}

// settle lets both sides find the link up again.
func (r *modelRun) settle() {
	for _, i := range r.rng.Perm(2) {
		g := r.grid[i]
		g.notice(true, r.grid[1-i].epoch)
		signal(r.grid[0].disk.wake)
		signal(r.grid[1].disk.wake)
		r.users(r.rng.IntN(3))
	}
}

func (r *modelRun) differences() []string {
	a, b := r.grid[0].server, r.grid[1].server
	return slices.Concat(a.differences(b), b.differences(a), a.written.faults(&b.got), b.written.faults(&a.got))
}

func (r *modelRun) play(seed uint64, chaos func(*modelRun)) {
	r.rng = rand.New(rand.NewPCG(seed, 3))
	r.mortal = r.rng.IntN(2)
	r.grid[0], r.grid[1] = newModelGrid("a", "b", &r.link), newModelGrid("b", "a", &r.link)
	ctx, cancel := context.WithCancel(context.Background())
	var servers sync.WaitGroup
	for i, g := range r.grid {
		g.far = r.grid[1-i]
		g.start(r.t)
		servers.Go(func() { g.server.run(ctx) })
		servers.Go(func() { g.disk.run(ctx) })
	}
	r.link.set(true)
	r.settle()
	for range 6 {
		r.users(r.rng.IntN(8))
		chaos(r)
	}
	time.Sleep(2 * time.Minute)
	if d := r.differences(); d != nil {
		r.t.Errorf("seed %d: %q\nafter: %q", seed, d, r.log)
	}
	r.link.set(false)
	cancel()
	servers.Wait()
	for _, g := range r.grid {
		g.stop()
	}
}

// After any cuts of the link, noticed or not, contact lists and rooms on both
// sides show the truth, without a hand on them.
func TestTruthAfterCuts(t *testing.T) {
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			(&modelRun{t: t}).play(seed, func(r *modelRun) {
				r.cut([]time.Duration{2 * time.Second, 10 * time.Second, time.Minute}[r.rng.IntN(3)])
			})
		})
		if t.Failed() {
			return
		}
	}
}

// The same when gateways are killed; what a dead gateway could not pass on about
// rooms comes to light with the next message in them.
func TestTruthAfterRestarts(t *testing.T) {
	for seed := range uint64(100) {
		synctest.Test(t, func(t *testing.T) {
			(&modelRun{t: t}).play(seed, func(r *modelRun) {
				if r.rng.IntN(2) == 0 {
					r.cut(10 * time.Second)
				} else {
					r.restart([]time.Duration{2 * time.Second, time.Minute}[r.rng.IntN(2)])
				}
				time.Sleep(10 * time.Second)
				for _, g := range r.grid {
					g.server.talk()
				}
			})
		})
		if t.Failed() {
			return
		}
	}
}
