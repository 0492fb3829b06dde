// Package ygg is the Yggdrasil transport: a whole node in this process, with a
// TCP stack of its own on top, and neither a TUN device nor privileges.
//
// The node's Ed25519 key is its identity. Sessions between nodes are end to
// end, and what the transport calls Remote is the full key that the session
// has proven; neither the IPv6 address, which holds a part of it, nor anything
// that a peering says is believed.
//
// Upstream keeps one goroutine for each ws and quic listener after a node has
// ended; all others end with Run.
package ygg

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"golang.org/x/sync/errgroup"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/yggate/yggate/transports"
)

// Node is an embedded Yggdrasil node.
type Node struct {
	cfg    Config
	log    *slog.Logger
	public publicKey
	table  *table

	ready chan struct{} // closed when dials may start
	ended chan struct{} // closed when the node is going down
	links *links        // peerings that are up

	joined  chan struct{} // holds a token when one of them has come up
	sought  *sought
	stirred chan struct{} // holds a token when an unknown node looks for this one

	peered atomic.Int64 // when one of them last came up, Unix nanoseconds

	// Set before ready is closed, not changed after.
	core   *core.Core
	tree   *time.Timer // see treeTimer
	bridge *bridge
	stack  *stack.Stack

	mu        sync.Mutex
	state     state
	listeners map[uint16]*listener

	peerMu sync.Mutex
	peers  map[string]*url.URL // configured peerings, by peeringID
	opened bool                // peers are given to core, and further ones too
}

type state int

const (
	stateNew state = iota
	stateRunning
	stateEnded
)

var _ transports.Transport = (*Node)(nil)

// New checks the configuration; Run starts the node. A Node runs once.
func New(cfg Config) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("configure %s: %w", Network, err)
	}
	n := &Node{
		cfg:       cfg,
		log:       cfg.Log,
		public:    publicKey(cfg.Key.Public().(ed25519.PublicKey)),
		table:     newTable(),
		links:     newLinks(),
		joined:    make(chan struct{}, 1),
		sought:    newSought(),
		stirred:   make(chan struct{}, 1),
		ready:     make(chan struct{}),
		ended:     make(chan struct{}),
		listeners: map[uint16]*listener{},
		peers:     map[string]*url.URL{},
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.log = n.log.With("transport", Network)
	for _, uri := range cfg.Peers {
		u, err := parsePeer(uri)
		if err != nil {
			return nil, err
		}
		n.peers[peeringID(u)] = u
	}
	return n, nil
}

// Self is this node's address, Port zero.
func (n *Node) Self() transports.Addr { return n.public.addr(0) }

// PublicKey is this node's full key.
func (n *Node) PublicKey() ed25519.PublicKey { return append(ed25519.PublicKey(nil), n.public[:]...) }

// accept asks the configuration about a key.
func (n *Node) accept(k publicKey) bool {
	return n.cfg.Accept != nil && n.cfg.Accept(k.addr(0))
}

// Run starts the node and works until ctx is done; then every stream, listener
// and peering is closed. A Listen URI that cannot be had is an error.
func (n *Node) Run(ctx context.Context) error {
	n.mu.Lock()
	if n.state != stateNew {
		n.mu.Unlock()
		return fmt.Errorf("run %s: a node runs once; make a new one", Network)
	}
	n.state = stateRunning
	n.mu.Unlock()
	err := n.run(ctx)
	if err != nil {
		return fmt.Errorf("run %s: %w", Network, err)
	}
	return nil
}

func (n *Node) run(ctx context.Context) error {
	defer n.end()
	c, err := newCore(n.cfg.Key, coreLog{n.log, n.links}, n.found)
	if err != nil {
		return err
	}
	n.core = c
	if n.tree, err = treeTimer(c.PacketConn); err != nil {
		c.Stop()
		return err
	}
	c.PacketConn.PacketConn.Debug.SetDebugLookupLogger(n.looked)
	n.bridge = newBridge(c.PacketConn, n.public, n.table, n.accept, n.log)
	if n.stack, err = newStack(n.bridge); err != nil {
		c.Stop()
		return err
	}
	fwd := tcp.NewForwarder(n.stack, defaultBuffer, maxHandshakes, func(r *tcp.ForwarderRequest) { n.takeSYN(n.stack, r) })
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, fwd.HandlePacket)

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := n.bridge.read(); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error {
		if err := n.bridge.handle(); err != nil && ctx.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		n.end()
		// Resets go out while the packet connection is still there.
		n.stack.Destroy()
		c.Stop()
		return nil
	})
	g.Go(func() error { return n.serve(ctx) })
	return g.Wait()
}

// serve opens the peerings and watches over them.
func (n *Node) serve(ctx context.Context) error {
	if err := n.open(); err != nil {
		return err
	}
	if n.cfg.Multicast {
		m, err := startMulticast(n.core, coreLog{n.log, n.links})
		if err != nil {
			return err
		}
		defer func() {
			if err := m.Stop(); err != nil {
				n.log.Warn("stop multicast discovery", "err", err)
			}
		}()
	}
	close(n.ready)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.watch(ctx) })
	g.Go(func() error { return n.settle(ctx) })
	return g.Wait()
}

// end refuses new dials and listeners and ends the waiting ones.
func (n *Node) end() {
	n.mu.Lock()
	if n.state == stateEnded {
		n.mu.Unlock()
		return
	}
	n.state = stateEnded
	listeners := n.listeners
	n.listeners = map[uint16]*listener{}
	n.mu.Unlock()
	close(n.ended)
	for _, l := range listeners {
		l.shut()
	}
}

var errNotRunning = errors.New("node is not running")
