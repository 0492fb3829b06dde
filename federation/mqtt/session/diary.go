package session

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// diary writes changes to the Journal in the order in which they are made, as many
// as wait in one transaction.
type diary struct {
	journal Journal
	session string
	log     *slog.Logger

	mu    sync.Mutex
	queue []Change
	after []func()
	wake  chan struct{}
}

func newDiary(cfg *Config) *diary {
	return &diary{journal: cfg.Journal, session: cfg.ClientID, log: cfg.Log, wake: make(chan struct{}, 1)}
}

// add has changes written soon, and calls after once they are on disk. Calls are
// made one at a time, in order.
func (d *diary) add(after func(), changes ...Change) {
	d.mu.Lock()
	d.queue = append(d.queue, changes...)
	if after != nil {
		d.after = append(d.after, after)
	}
	d.mu.Unlock()
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// lazily has a change written with the next ones, for which nobody waits: what is
// lost of these by a crash is found out again.
func (d *diary) lazily(c Change) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = append(d.queue, c)
}

// run writes until ctx ends, and then what is there already, once.
func (d *diary) run(ctx context.Context) {
	tick := time.NewTicker(time.Second) // for what is lazy on a quiet session
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			d.flush(context.WithoutCancel(ctx), true)
			return
		case <-d.wake:
		case <-tick.C:
		}
		d.flush(ctx, false)
	}
}

// flush writes what is queued, again and again until it is written or ctx ends; at
// last, only once.
func (d *diary) flush(ctx context.Context, last bool) {
	d.mu.Lock()
	changes, after := d.queue, d.after
	d.queue, d.after = nil, nil
	d.mu.Unlock()
	if len(changes) == 0 && len(after) == 0 {
		return
	}
	for failed := false; ; failed = true {
		err := d.journal.Write(ctx, d.session, changes)
		if err == nil {
			break
		}
		if last || ctx.Err() != nil {
			d.mu.Lock() // for the last try of run
			d.queue, d.after = append(changes, d.queue...), append(after, d.after...)
			d.mu.Unlock()
			return
		}
		if !failed {
			d.log.Error("the MQTT session cannot be written; its messages wait", "err", err)
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
	for _, fn := range after {
		fn()
	}
}
