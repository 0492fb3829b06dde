package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/tcp"
)

const port = 9001

// gateway is what of a gateway a lane passes: the store, the lanes and the link.
type gateway struct {
	name, ip, path string
	id             *federation.Identity
	dir            *federation.Directory
	peers          []*federation.Peer

	store   *store.Store
	durable *lane.Durable
	links   *link.Links
	stop    func() error

	// got is told of each item that the local server would get.
	got   func(it *lane.Item)
	pace  time.Duration // how long the local server takes for each
	count atomic.Int64
	up    chan federation.GridID
}

var nextIP atomic.Int32

func newGateway(dir, name string) (*gateway, error) {
	g := &gateway{
		name: name, ip: fmt.Sprintf("127.93.0.%d", nextIP.Add(1)), path: filepath.Join(dir, name, "db"),
		dir: federation.NewDirectory(), up: make(chan federation.GridID, 64),
	}
	var err error
	g.id, _, err = federation.CreateIdentity(filepath.Join(dir, name, "keys"))
	return g, err
}

// meet makes two gateways peers with quotas that hold what is queued here.
func meet(a, b *gateway) {
	a.know(b)
	b.know(a)
}

func (g *gateway) know(other *gateway) {
	limits := federation.DefaultLimits()
	limits.MessagesPerSecond, limits.Burst, limits.BytesPerSecond = 1e6, 1e6, 1<<30
	limits.QueueItems, limits.QueueBytes = 2_000_000, 4<<30
	g.peers = append(g.peers, &federation.Peer{
		ID: other.id.ID(), Key: other.id.Key(), Name: other.name, State: federation.StateActive,
		Descriptor: &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{tcp.Network + ":" + other.ip}}}},
		Policy:     federation.Policy{Allow: map[federation.Protocol]bool{federation.XMPP: true}, Limits: limits},
	})
	g.dir.Publish(federation.NewSnapshot(g.peers, nil, nil))
}

// start begins a life of the gateway.
func (g *gateway) start(ctx context.Context) (err error) {
	if g.store, err = store.Open(ctx, store.Options{Path: g.path}); err != nil {
		return err
	}
	epoch, err := g.store.NextEpoch(ctx)
	if err != nil {
		return err
	}
	transport, err := tcp.New(tcp.Config{IP: g.ip})
	if err != nil {
		return err
	}
	if g.links, err = link.New(link.Config{
		Directory: g.dir, Leaf: g.id.Leaf, Transports: map[string]transports.Transport{tcp.Network: transport},
		Port: port, Epoch: epoch, Software: "bench", Lanes: []string{string(lane.Chat)},
		ServeLane: g.serve, OnState: g.linkChanged,
	}); err != nil {
		return err
	}
	if g.durable, err = lane.NewDurable(ctx, lane.DurableConfig{
		Store: g.store, Streams: g.links, Directory: g.dir, Epoch: epoch,
		Recipients: map[federation.Protocol]lane.Recipient{federation.XMPP: g},
	}); err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	for _, run := range []func(context.Context) error{transport.Run, g.links.Run, g.durable.Run} {
		parts.Go(func() error { return run(ctx) })
	}
	g.stop = func() error {
		cancel()
		return errors.Join(parts.Wait(), g.store.Close())
	}
	return nil
}

func (g *gateway) serve(ctx context.Context, peer *federation.Peer, name string, stream io.ReadWriteCloser) error {
	return g.durable.ServeStream(ctx, peer, name, stream)
}

func (g *gateway) linkChanged(e link.Event) {
	if !e.Up {
		g.durable.PeerDown(e.Peer)
		return
	}
	g.durable.PeerUp(e.Peer)
	select {
	case g.up <- e.Peer:
	default: // nobody waits for so many
	}
}

// Hand implements lane.Recipient: the local server takes everything, at its pace.
func (g *gateway) Hand(ctx context.Context, _ *federation.Peer, items []lane.Item, done func(int, error)) {
	for i := range items {
		if g.pace > 0 {
			select {
			case <-time.After(g.pace):
			case <-ctx.Done():
				done(i, ctx.Err())
				return
			}
		}
		if g.got != nil {
			g.got(&items[i])
		}
		g.count.Add(1)
	}
	done(len(items), nil)
}

// GiveBack implements lane.Recipient. Nothing comes back in a benchmark.
func (g *gateway) GiveBack(_ context.Context, _ *federation.Peer, _ lane.Item, why error) error {
	return fmt.Errorf("an item came back: %w", why)
}

// put puts one item of size bytes that begins with the time, and returns when it
// waits for the disk.
func (g *gateway) put(ctx context.Context, to *gateway, size int, stored func(error)) error {
	body := make([]byte, size)
	binary.BigEndian.PutUint64(body, uint64(time.Now().UnixNano()))
	return g.durable.Put(ctx, to.id.ID(), lane.Chat, stored, lane.Item{Kind: federation.XMPP, Conv: "a b", Body: body})
}

// age is how long ago an item of put was put.
func age(it *lane.Item) time.Duration {
	return time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(it.Body))))
}

// putAll puts n items as fast as the disk takes them, and returns when the last is
// on disk.
func (g *gateway) putAll(ctx context.Context, to *gateway, n, size int) error {
	var (
		left sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	left.Add(n)
	for range n {
		err := g.put(ctx, to, size, func(err error) {
			if err != nil {
				mu.Lock()
				errs = errors.Join(errs, err)
				mu.Unlock()
			}
			left.Done()
		})
		if err != nil {
			return err
		}
	}
	left.Wait()
	return errs
}

// await waits until the gateway's local server has had n items.
func (g *gateway) await(ctx context.Context, n int64) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for g.count.Load() < n {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d items came: %w", g.count.Load(), n, context.Cause(ctx))
		}
	}
	return nil
}
