package peertest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// StockNode is a stock Yggdrasil 0.5 node in a process of its own, which routes
// for others and is no gateway.
type StockNode struct {
	*Process
	// URI is the peering URI of the node.
	URI string

	netns  *Netns
	listen netip.AddrPort
}

// NewStockNode prepares a node that listens on an address and keeps its key in
// dir, so that it comes back as the same node.
func NewStockNode(ctx context.Context, dir string, ns *Netns, listen netip.AddrPort, peers ...string) (*StockNode, error) {
	program, err := Build(ctx, "gateway/internal/peertest/yggrouter")
	if err != nil {
		return nil, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("prepare stock node: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("prepare stock node: %w", err)
	}
	n := &StockNode{URI: "tcp://" + listen.String(), netns: ns, listen: listen}
	argv := []string{program, "-key", filepath.Join(dir, "node.key"), "-listen", n.URI}
	for _, uri := range peers {
		argv = append(argv, "-peer", uri)
	}
	n.Process = &Process{Name: "stock Yggdrasil node", Argv: ns.wrap(argv), Dir: dir, Log: filepath.Join(dir, "yggrouter.log")}
	return n, nil
}

// Start starts the node and returns when it takes connections.
func (n *StockNode) Start(ctx context.Context) error {
	if err := n.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	return n.await(ctx, func(ctx context.Context) error {
		conn, err := n.netns.Dial(ctx, "tcp", n.listen.String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
