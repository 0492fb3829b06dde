package xmpp

import (
	"context"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// modelDisk is the durable lanes of one model grid: what is put there outlives its
// gateway, and goes to the peer's, in order and once, whenever both live and the link
// is up.
type modelDisk struct {
	grid *modelGrid
	wake chan struct{}

	mu    sync.Mutex
	lanes map[lane.Name][]lane.Item
	ids   map[string]bool // taken before
	acts  []func()        // stored callbacks that are due
}

func newModelDisk(g *modelGrid) *modelDisk {
	return &modelDisk{grid: g, wake: make(chan struct{}, 1), lanes: map[lane.Name][]lane.Item{}, ids: map[string]bool{}}
}

// Put is lane.Outbox.
func (d *modelDisk) Put(_ context.Context, _ federation.GridID, name lane.Name, stored func(error), items ...lane.Item) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, it := range items {
		it.At = time.Now()
		if id := string(it.ID); id != "" {
			if d.ids[id] {
				continue
			}
			d.ids[id] = true
		}
		d.lanes[name] = append(d.lanes[name], it)
	}
	d.acts = append(d.acts, func() { stored(nil) })
	signal(d.wake)
	return nil
}

// run says what is stored, and hands over what it can, until ctx is done.
func (d *modelDisk) run(ctx context.Context) {
	for {
		d.mu.Lock()
		acts := d.acts
		d.acts = nil
		d.mu.Unlock()
		for _, act := range acts {
			act()
		}
		for _, name := range []lane.Name{lane.Chat, lane.Room} {
			d.carry(ctx, name)
		}
		select {
		case <-d.wake:
		case <-ctx.Done():
			return
		}
	}
}

// carry hands over what one lane holds.
func (d *modelDisk) carry(ctx context.Context, name lane.Name) {
	for ctx.Err() == nil {
		d.mu.Lock()
		items := d.lanes[name]
		d.mu.Unlock()
		d.grid.link.mu.Lock()
		up := d.grid.link.up
		d.grid.link.mu.Unlock()
		d.grid.far.mu.Lock()
		a := d.grid.far.adapter
		d.grid.far.mu.Unlock()
		n := 1
		for n < len(items) && items[n].Conv == items[0].Conv {
			n++
		}
		if len(items) == 0 || !up || a == nil {
			return
		}
		settled, err := a.hand(ctx, d.grid.far.dir.Now().Peer(d.grid.id), items[:n])
		d.mu.Lock()
		d.lanes[name] = d.lanes[name][settled:]
		d.mu.Unlock()
		if err != nil {
			return
		}
	}
}
