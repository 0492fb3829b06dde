package gateway

import (
	"context"
	"errors"
	"fmt"
)

// roleSource decides when this node may run the edge.
type roleSource interface {
	// Primary waits until this node is the one that may federate, and returns
	// a context that lives as long as that holds; its cause then says why not.
	Primary(ctx context.Context) (context.Context, error)
}

// plainFile is the role of a database that only this node has: always primary.
type plainFile struct{}

func (plainFile) Primary(ctx context.Context) (context.Context, error) { return ctx, nil }

// runEdges runs the edge whenever this node is primary, until ctx is done.
func (g *gateway) runEdges(ctx context.Context) error {
	for {
		primary, err := g.role.Primary(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("become primary: %w", err)
		}
		err = g.runEdge(primary)
		switch {
		case ctx.Err() != nil:
			if err != nil && !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		case primary.Err() == nil:
			return err
		}
		g.log.Warn("no longer primary: on standby", "why", context.Cause(primary), "err", err)
	}
}

// runEdge runs one life of the edge, in an epoch of its own.
func (g *gateway) runEdge(ctx context.Context) error {
	var epoch uint64
	err := g.whenStored(ctx, func() (err error) {
		epoch, err = g.store.NextEpoch(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("new epoch: %w", err)
	}
	e, err := newEdge(ctx, g, epoch)
	if err != nil {
		return err
	}
	g.edge.Store(e)
	defer g.edge.Store(nil)
	return e.run(ctx)
}
