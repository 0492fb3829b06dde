// Package gateway composes yggate: it reads what the operator wrote, opens the
// state, and runs every part for as long as it may.
//
// Two layers run side by side. What always runs is the admin socket and the
// metrics. The edge (transports, links, lanes, adapters) runs only while this
// node is primary, within a context that ends with that role: on a plain database
// file always, on a replicated one while this node holds the lease. Every start of
// the edge takes a new epoch.
package gateway

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/pairing"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// Options is what a gateway runs with.
type Options struct {
	Config *config.Config
	Log    *slog.Logger
	// Reload is readable when the configuration shall be read anew.
	Reload <-chan os.Signal
}

// gateway is the running process.
type gateway struct {
	log     *slog.Logger
	started time.Time
	conf    atomic.Pointer[config.Config]
	// reloading keeps a reload that fails from undoing the one after it.
	reloading sync.Mutex

	identity *federation.Identity
	meshKey  ed25519.PrivateKey
	ca       *localca.CA
	store    *store.Store
	registry *federation.Registry
	pairing  *pairing.Pairing
	role     roleSource
	metrics  *metrics
	// edge is nil while this node is on standby.
	edge atomic.Pointer[edge]
}

// Run runs the gateway until ctx is done, and then returns nil with everything
// closed. Its errors name the part that failed.
func Run(ctx context.Context, o Options) error { return run(ctx, o, plainFile{}) }

func run(ctx context.Context, o Options, role roleSource) (err error) {
	g := &gateway{log: o.Log, started: time.Now(), role: role, metrics: newMetrics()}
	g.conf.Store(o.Config)
	for _, w := range o.Config.Warnings {
		g.log.Warn(w)
	}
	unlock, err := lock(o.Config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if err := g.open(ctx); err != nil {
		if ctx.Err() != nil { // whoever ends it while it starts has asked for that
			g.log.Warn("ended before it had started", "err", err)
			return nil
		}
		return err
	}
	defer func() { err = errors.Join(err, g.store.Close()) }()

	parts, ctx := errgroup.WithContext(ctx)
	part := func(name string, run func(context.Context) error) {
		parts.Go(func() error { return runPart(ctx, name, run) })
	}
	part("admin socket", g.serveAdmin)
	part("metrics", g.serveMetrics)
	part("reload", func(ctx context.Context) error { return g.reloadOn(ctx, o.Reload) })
	part("memory", g.trim)
	part("edge", g.runEdges)
	return parts.Wait()
}

// runPart runs one part of the process. A part that ends before its context is a
// fault even if it reports none.
func runPart(ctx context.Context, name string, run func(context.Context) error) error {
	err := run(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case ctx.Err() == nil:
		return fmt.Errorf("%s: ended by itself", name)
	}
	return nil
}

// lock keeps a second gateway away from the state.
func lock(c *config.Config) (unlock func() error, err error) {
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	f, err := os.OpenFile(c.Lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w; another gateway uses this state, stop it first", c.Lock(), err)
	}
	return f.Close, nil
}

// open reads keys and state.
func (g *gateway) open(ctx context.Context) error {
	c := g.conf.Load()
	var err error
	if g.identity, err = federation.LoadIdentity(c.State); err != nil {
		return err
	}
	if g.meshKey, err = federation.LoadKeyFile(c.MeshKey()); err != nil {
		return fmt.Errorf("load mesh key: %w", err)
	}
	if g.ca, err = localca.Open(c.LocalCA()); err != nil {
		return err
	}
	err = g.whenStored(ctx, func() (err error) {
		g.store, err = store.Open(ctx, store.Options{Path: c.Database()})
		return err
	})
	if err != nil {
		return err
	}
	maxStanza := 0
	if c.XMPP != nil {
		maxStanza = int(c.XMPP.MaxStanza)
	}
	node := federation.Node{ID: nodeID(), SPKI: g.identity.NodeSPKI(), Addrs: []string{g.meshAddr().ID()}}
	err = g.whenStored(ctx, func() (err error) {
		g.registry, err = federation.OpenRegistry(ctx, federation.RegistryConfig{
			Store: g.store, Identity: g.identity, Name: c.Name, Own: c.Own(), MaxStanza: maxStanza,
			Nodes: []federation.Node{node}, Log: g.log,
			Policy: func(petname string) federation.Policy { return g.conf.Load().Policy(petname) },
		})
		return err
	})
	if err != nil {
		return errors.Join(err, g.store.Close())
	}
	g.registerStore()
	g.pairing = pairing.New(pairing.Config{
		Registry: g.registry, Store: g.store, Key: g.identity.Key(), Log: g.log,
		Nodes:    func() []transports.Addr { return []transports.Addr{g.meshAddr()} },
		Peerings: func() []string { return g.conf.Load().Mesh.Advertise },
	})
	return nil
}

// CheckFiles says what is wrong with the files that a configuration names, as the start
// of the gateway would.
func CheckFiles(c *config.Config) (wrong []error) {
	if err := admin.CheckPath(admin.SocketPath(c.State)); err != nil {
		wrong = append(wrong, fmt.Errorf("state: %w", err))
	}
	if c.XMPP != nil && c.XMPP.ServerCA != "" {
		if _, err := readRoots(c.XMPP.ServerCA); err != nil {
			wrong = append(wrong, fmt.Errorf("xmpp.server_ca: %w", err))
		}
	}
	if c.MQTT != nil {
		if _, err := brokerOf(c.MQTT); err != nil {
			wrong = append(wrong, err)
		}
	}
	return wrong
}

// meshAddr is this node's address in the Yggdrasil network, Port zero.
func (g *gateway) meshAddr() transports.Addr {
	return transports.Addr{Net: ygg.Network, Node: fmt.Sprintf("%x", g.meshKey.Public())}
}

// nodeID names this machine among the grid's own.
func nodeID() string {
	if name, err := os.Hostname(); err == nil && federation.CheckPetname(name) == nil {
		return name
	}
	return "node"
}

// Version returns the version of this program, as the build recorded it.
func Version() string { return version }

// version is set by the Makefile; "devel" is what `go build` alone gives.
var version = "devel"

// storeRetry is how long a gateway that starts waits for a store that cannot write.
const storeRetry = 2 * time.Second

// passes says whether an error of the store is one that ends by itself, or by what
// an operator does beside the running gateway.
func passes(err error) bool {
	return errors.Is(err, store.ErrDiskFull) || errors.Is(err, store.ErrLocked)
}

// whenStored does what has to write before anything else can begin. While the disk
// is full or the database locked it is tried again, until ctx is done.
func (g *gateway) whenStored(ctx context.Context, write func() error) error {
	for {
		err := write()
		if !passes(err) {
			return err
		}
		g.log.Error("the gateway cannot start; it tries again until it can", "err", err)
		select {
		case <-time.After(storeRetry):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}
