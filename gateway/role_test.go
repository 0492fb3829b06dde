package gateway

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/store"
)

// lease is a role that the test gives and takes.
type lease struct {
	grants chan context.Context
	asked  chan struct{}
}

func (l *lease) Primary(ctx context.Context) (context.Context, error) {
	l.asked <- struct{}{}
	select {
	case granted := <-l.grants:
		return granted, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A part that ends by itself is a fault even without an error; one that ends with
// its context is none.
func TestRunPart(t *testing.T) {
	quiet := func(context.Context) error { return nil }
	if err := runPart(t.Context(), "clock", quiet); err == nil || !strings.Contains(err.Error(), "clock") {
		t.Errorf("a part that ended by itself: %v", err)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runPart(done, "clock", quiet); err != nil {
		t.Errorf("a part that ended with its context: %v", err)
	}
	broken := errors.New("broken")
	if err := runPart(done, "clock", func(context.Context) error { return broken }); !errors.Is(err, broken) || !strings.HasPrefix(err.Error(), "clock: ") {
		t.Errorf("a part that failed: %v", err)
	}
}

// lonelyConfig is of a grid whose keys are there, and which has nothing else.
func lonelyConfig(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := federation.CreateIdentity(dir); err != nil {
		t.Fatal(err)
	}
	src := fmt.Sprintf("name: a\nstate: %s\nxmpp: {domains: [a.grid], server: 127.0.0.1:5269, listen: %s}\n", dir, freeAddr(t))
	conf, err := config.Parse(filepath.Join(dir, "yggate.yaml"), []byte(src), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := federation.CreateKeyFile(conf.MeshKey()); err != nil {
		t.Fatal(err)
	}
	return conf
}

// Admin answers with the role and without it; each time the role comes the edge
// starts in a higher epoch, and it is gone when the role is.
func TestEdgeFollowsRole(t *testing.T) {
	conf := lonelyConfig(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	role := &lease{grants: make(chan context.Context), asked: make(chan struct{}, 1)}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, Options{Config: conf, Log: slog.New(slog.DiscardHandler)}, role) }()

	client := admin.NewClient(admin.SocketPath(conf.State))
	await := func(what string, want func(admin.Status) bool) (st admin.Status) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			st, err := client.Status(ctx)
			if err == nil && want(st) {
				return st
			}
			if time.Now().After(deadline) {
				t.Fatalf("not %s; last: %+v, %v", what, st, err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	standby := func(st admin.Status) bool { return st.Role == "standby" && !st.Edge }
	primary := func(st admin.Status) bool { return st.Role == "primary" && st.Edge }
	asked := func() {
		t.Helper()
		select {
		case <-role.asked:
		case err := <-ended:
			t.Fatalf("ended: %v", err)
		}
	}
	var before uint64
	for range 2 {
		asked()
		await("on standby", standby)
		if _, err := client.Route(ctx, admin.RouteRequest{Address: "a.grid"}); err == nil || !strings.Contains(err.Error(), "standby") {
			t.Errorf("route on standby: %v", err)
		}
		for what, ask := range outboxRequests {
			if err := ask(ctx, client); err == nil || !strings.Contains(err.Error(), "standby") {
				t.Errorf("%s on standby: %v", what, err)
			}
		}
		primaryCtx, lose := context.WithCancelCause(ctx)
		role.grants <- primaryCtx
		st := await("primary", primary)
		if st.Epoch <= before {
			t.Errorf("epoch %d after %d", st.Epoch, before)
		}
		before = st.Epoch
		lose(errors.New("another node has the lease"))
	}
	asked()
	await("on standby again", standby)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("after the end: %v", err)
	}
	if _, err := os.Stat(admin.SocketPath(conf.State)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the admin socket is still there: %v", err)
	}
}

// outboxRequests are all that is asked about what waits: the primary's to answer.
var outboxRequests = map[string]func(context.Context, *admin.Client) error{
	"outbox": func(ctx context.Context, c *admin.Client) error { _, err := c.Outbox(ctx, "", 0); return err },
	"show": func(ctx context.Context, c *admin.Client) error {
		_, err := c.Queued(ctx, "bob", "chat", 1, false)
		return err
	},
	"drop": func(ctx context.Context, c *admin.Client) error {
		_, err := c.DropQueued(ctx, "bob", "chat", 1)
		return err
	},
	"drop all":     func(ctx context.Context, c *admin.Client) error { _, err := c.DropAll(ctx, "bob"); return err },
	"retry":        func(ctx context.Context, c *admin.Client) error { _, err := c.RetryPeer(ctx, ""); return err },
	"retry a peer": func(ctx context.Context, c *admin.Client) error { _, err := c.RetryPeer(ctx, "bob"); return err },
	"dead":         func(ctx context.Context, c *admin.Client) error { _, err := c.DeadLetters(ctx, "", 0); return err },
	"show dead":    func(ctx context.Context, c *admin.Client) error { _, err := c.DeadLetter(ctx, 1, false); return err },
	"retry dead":   func(ctx context.Context, c *admin.Client) error { _, err := c.RetryDead(ctx, 1); return err },
	"drop dead":    func(ctx context.Context, c *admin.Client) error { _, err := c.DropDead(ctx, 1); return err },
}

// freeAddr returns an address of 127/8 whose port nobody uses now.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.1:0", 64+rand.IntN(64), rand.IntN(256)))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// TestStartWaitsForTheDisk has the disk be full at first: the gateway waits; any
// other error ends it.
func TestStartWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	g := &gateway{log: slog.New(slog.DiscardHandler)}
	tries := 0
	err := g.whenStored(t.Context(), func() error {
		if tries++; tries == 1 {
			return fmt.Errorf("take epoch: %w", store.ErrDiskFull)
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("after %d tries: %v, want success at the second", tries, err)
	}
	broken := errors.New("broken")
	if err := g.whenStored(t.Context(), func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the error", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.whenStored(ctx, func() error { return store.ErrLocked }); !errors.Is(err, store.ErrLocked) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want why it could not start, and that it was ended", err)
	}
}

// logged passes on what a gateway logs.
type logged struct {
	slog.Handler
	messages chan string
}

func (l logged) Enabled(context.Context, slog.Level) bool { return true }

func (l logged) Handle(_ context.Context, r slog.Record) error {
	select {
	case l.messages <- r.Message:
	default: // nobody looks any more
	}
	return nil
}

// holdDatabase keeps all others from writing to the database, by that statement.
func holdDatabase(t *testing.T, path, begin string) (release func()) {
	t.Helper()
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	other.SetMaxOpenConns(1)
	if _, err := other.Exec(begin); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStartWaitsForTheDatabase has another program hold the database when the gateway
// starts, which waits for it as it does for a full disk.
func TestStartWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	conf := lonelyConfig(t)
	if err := os.WriteFile(conf.Database(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	release := holdDatabase(t, conf.Database(), "BEGIN EXCLUSIVE")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	log := logged{slog.DiscardHandler, make(chan string, 100)}
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, Options{Config: conf, Log: slog.New(log)}) }()
	await := func(message string) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case got := <-log.messages:
				if got == message {
					return
				}
			case err := <-ended:
				t.Fatalf("ended: %v", err)
			case <-deadline:
				t.Fatalf("no %q", message)
			}
		}
	}
	await("the gateway cannot start; it tries again until it can")
	release()
	await("edge starts")
	stop()
	if err := <-ended; err != nil {
		t.Errorf("after the end: %v", err)
	}
	// One that is ended while it waits has not failed, whatever it waits for.
	for _, begin := range []string{"BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"} {
		release = holdDatabase(t, conf.Database(), begin)
		ctx, stop = context.WithCancel(t.Context())
		go func() { ended <- Run(ctx, Options{Config: conf, Log: slog.New(log)}) }()
		await("the gateway cannot start; it tries again until it can")
		stop()
		if err := <-ended; err != nil {
			t.Errorf("ended while it waits: %v", err)
		}
		release()
	}
}

// TestStoreIsWellAgain: an edge that has nothing to write sees by itself that it could.
func TestStoreIsWellAgain(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "yggate.db")
	db, err := store.Open(t.Context(), store.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	release := holdDatabase(t, path, "BEGIN IMMEDIATE")
	if err := db.Probe(t.Context()); !errors.Is(err, store.ErrLocked) || db.Health().State != store.HealthLocked {
		t.Fatalf("a write while the database is locked: %v", err)
	}
	release()
	ctx, stop := context.WithCancel(t.Context())
	e := &edge{g: &gateway{store: db, log: slog.New(slog.DiscardHandler)}}
	ended := make(chan error, 1)
	go func() { ended <- e.probeStore(ctx) }()
	for deadline := time.Now().Add(time.Minute); db.Health().State != store.HealthOK; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the store is still %+v", db.Health())
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// TestBrokenStoreEndsNothing: a gateway whose store fails goes on, and shows it.
func TestBrokenStoreEndsNothing(t *testing.T) {
	t.Parallel()
	conf := lonelyConfig(t)
	log := logged{slog.DiscardHandler, make(chan string, 100)}
	g := &gateway{log: slog.New(log), metrics: newMetrics()}
	g.conf.Store(conf)
	if err := g.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := g.store.Close(); err != nil { // it reads and writes nothing from here on
		t.Fatal(err)
	}
	await := func(message string) {
		t.Helper()
		for deadline := time.After(time.Minute); ; {
			select {
			case got := <-log.messages:
				if got == message {
					return
				}
			case <-deadline:
				t.Fatalf("no %q", message)
			}
		}
	}
	e, stored := &edge{g: g}, map[federation.GridID]time.Time{}
	e.noteHeard(t.Context(), []link.PeerStatus{{Peer: "bob", LastHeard: time.Now()}}, stored)
	await("when a peer was last heard is not stored")
	if len(stored) > 0 {
		t.Error("what was not stored is not tried again")
	}
	m, err := newMesh(g, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.run(ctx) }()
	await("peerings that invites brought stay as they are for now")
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the mesh ended: %v", err)
	}
}
