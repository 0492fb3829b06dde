//go:build integration

package sessiontest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/session/disk"
	"github.com/yggate/yggate/gateway/internal/peertest"
	"github.com/yggate/yggate/store"
)

// patience is how long a test waits for what must come.
const patience = 60 * time.Second

func broker(t testing.TB, cfg peertest.MosquittoConfig) *peertest.Mosquitto {
	t.Helper()
	peertest.Require(t, "mosquitto")
	cfg.Name, cfg.IP, cfg.Dir = t.Name(), peertest.Loopback(), t.TempDir()
	m, err := peertest.NewMosquitto(cfg)
	if err != nil {
		t.Fatal(err)
	}
	peertest.Run(t, m)
	return m
}

// client is a session with a broker, over any number of lives of its process.
type client struct {
	t     testing.TB
	cfg   session.Config
	store *store.Store

	mu      sync.Mutex
	changed chan struct{}
	got     []session.Message
	uids    map[string]bool // of what was got, for the next hop drops repeats by them
	repeats int
	ups     []session.Info
	downs   []error
	refused []map[string]error // of each time that all subscriptions were answered
	hold    bool               // acknowledgements are kept back
	held    []func(error)

	s    *session.Session
	life *life
}

// life is one of a client's process: after its end nothing reaches disk or wire.
type life struct {
	dead   atomic.Bool
	cancel context.CancelFunc
	ended  chan error
	mu     sync.Mutex
	conns  []net.Conn
}

func newClient(t testing.TB, m *peertest.Mosquitto, id string) *client {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return &client{t: t, store: st, changed: make(chan struct{}), uids: map[string]bool{},
		cfg: session.Config{Addr: m.MQTT.String(), ClientID: id, BackoffMax: 200 * time.Millisecond}}
}

// errDead is what a dead process gets from the disk.
var errDead = errors.New("this life has ended")

// journal is the disk as a life of the process sees it.
type journal struct {
	session.Journal
	l *life
}

func (j journal) Write(ctx context.Context, name string, changes []session.Change) error {
	if j.l.dead.Load() {
		return errDead
	}
	return j.Journal.Write(ctx, name, changes)
}

// start begins a life. cut, where it is set, sees each packet before it passes
// ('>' to the broker, '<' from it) and says whether the process dies of it.
func (c *client) start(cut func(dir byte, packet []byte) bool) {
	c.t.Helper()
	l := &life{ended: make(chan error, 1)}
	cfg := c.cfg
	cfg.Journal = journal{disk.Journal{Store: c.store}, l}
	cfg.Handler = &handler{c, l}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(c.t.Output(), nil)).With("client", cfg.ClientID)
	}
	cfg.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if l.dead.Load() {
			return nil, errDead
		}
		nc, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, nc)
		if cut == nil {
			return nc, nil
		}
		return &cutConn{Conn: nc, cut: cut, die: func() { c.die(l) }}, nil
	}
	s, err := session.New(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	c.mu.Lock()
	c.s, c.life = s, l
	c.mu.Unlock()
	go func() { l.ended <- s.Run(ctx) }()
	c.t.Cleanup(func() { c.stop(l) })
}

// die ends a life as kill -9 would: connections are reset, and nothing is written.
func (c *client) die(l *life) {
	l.dead.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, nc := range l.conns {
		_ = nc.(*net.TCPConn).SetLinger(0)
		_ = nc.Close()
	}
}

// kill ends the current life and waits for its end.
func (c *client) kill() {
	c.die(c.life)
	c.stop(c.life)
}

func (c *client) stop(l *life) {
	l.cancel()
	select {
	case err := <-l.ended:
		l.ended <- nil
		if err != nil {
			c.t.Error(err)
		}
	case <-time.After(patience):
		c.t.Fatal("Run does not end")
	}
}

type handler struct {
	c *client
	l *life
}

func (h *handler) Arrive(_ context.Context, m *session.Message, ack func(error)) {
	c := h.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.l.dead.Load() {
		return
	}
	if c.uids[string(m.UID)] {
		c.repeats++
	} else {
		c.uids[string(m.UID)] = true
		c.got = append(c.got, *m)
	}
	c.tell()
	if c.hold {
		c.held = append(c.held, ack)
		return
	}
	ack(nil)
}

func (h *handler) Up(i session.Info) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.ups = append(h.c.ups, i)
	h.c.tell()
}

func (h *handler) Down(err error) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.downs = append(h.c.downs, err)
	h.c.tell()
}

func (h *handler) Subscribed(refused map[string]error) {
	h.c.mu.Lock()
	defer h.c.mu.Unlock()
	h.c.refused = append(h.c.refused, refused)
	h.c.tell()
}

func (c *client) tell() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// await waits until what is said of the client holds.
func (c *client) await(what string, holds func() bool) {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		ok, changed := holds(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Fatalf("%s: waited in vain; status %+v, downs %v, got %d messages", what, c.s.Status(), c.downs, len(c.got))
		}
	}
}

// up starts a life and waits for its first connection.
func (c *client) up() {
	c.t.Helper()
	c.mu.Lock()
	n := len(c.ups)
	c.mu.Unlock()
	c.start(nil)
	c.await("connection", func() bool { return len(c.ups) > n })
}

// subscribe sets the filter and waits until the broker has it.
func (c *client) subscribe(filters ...string) {
	c.t.Helper()
	var subs []session.Subscription
	for _, f := range filters {
		subs = append(subs, session.Subscription{Filter: f, QoS: 2, RetainAsPublished: true})
	}
	if err := c.s.SetSubscriptions(subs); err != nil {
		c.t.Fatal(err)
	}
	// A message to itself that comes back shows that the subscription is there.
	for i := 0; ; i++ {
		probe := fmt.Sprintf("probe %d", i)
		if i > 100 {
			c.t.Fatalf("no subscription of %q", filters)
		}
		topic := bytes.NewBufferString(filters[0])
		for j, b := range topic.Bytes() {
			if b == '+' || b == '#' {
				topic.Bytes()[j] = 'p'
			}
		}
		c.publish("", &session.Message{Topic: topic.String(), Payload: []byte(probe)})
		c.publish("", &session.Message{Topic: topic.String(), Payload: []byte(probe), QoS: 1})
		c.mu.Lock()
		seen := slices.ContainsFunc(c.got, func(m session.Message) bool { return string(m.Payload[:min(5, len(m.Payload))]) == "probe" })
		changed := c.changed
		c.mu.Unlock()
		if seen {
			break
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		}
	}
	c.publish("", &session.Message{Topic: "probed/" + c.cfg.ClientID, QoS: 1})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.got = slices.DeleteFunc(c.got, isProbe)
}

func isProbe(m session.Message) bool { return bytes.HasPrefix(m.Payload, []byte("probe ")) }

// messages are those that were got, without probes.
func (c *client) messages() []session.Message {
	return slices.DeleteFunc(slices.Clone(c.got), isProbe)
}

func (c *client) publish(key string, m *session.Message) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	if err := c.s.Publish(ctx, key, m); err != nil {
		c.t.Fatal(err)
	}
}
