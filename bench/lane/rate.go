package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the bare loop uses the driver itself

	"github.com/yggate/yggate/federation/lane"
)

const (
	itemSize  = 200
	rateItems = 40_000
	bareBatch = 256
)

// benchRate compares the lane with a bare loop of group commits, in turns, and
// measures how long an item takes at 500 a second.
func benchRate(ctx context.Context, o *options, dir string) ([]goal, error) {
	a, b, err := linked(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	defer b.stop()
	var bare, through []float64
	for range o.rounds {
		n, err := bareLoop(ctx, dir)
		if err != nil {
			return nil, err
		}
		bare = append(bare, n)
		start, before := time.Now(), b.count.Load()
		if err := a.putAll(ctx, b, rateItems, itemSize); err != nil {
			return nil, err
		}
		if err := b.await(ctx, before+rateItems); err != nil {
			return nil, err
		}
		through = append(through, rateItems/time.Since(start).Seconds())
		fmt.Printf("bare loop %.0f items/s, through the lane %.0f items/s\n", n, through[len(through)-1])
	}
	p50, p99, err := latency(ctx, a, b, 500, 5*time.Second)
	if err != nil {
		return nil, err
	}
	fmt.Printf("at 500 items/s: p50 %.2f ms, p99 %.2f ms\n", p50, p99)
	return []goal{
		{what: "lane to a bare loop of group commits", have: median(through) / median(bare), want: 0.4, unit: "x"},
		{what: "p50 at 500 items/s", have: p50, want: 5, most: true, unit: "ms"},
	}, nil
}

// linked starts two gateways with a link between them.
func linked(ctx context.Context, dir string) (a, b *gateway, err error) {
	if a, err = newGateway(dir, "a"); err != nil {
		return nil, nil, err
	}
	if b, err = newGateway(dir, "b"); err != nil {
		return nil, nil, err
	}
	meet(a, b)
	if err := b.start(ctx); err != nil {
		return nil, nil, err
	}
	if err := a.start(ctx); err != nil {
		return nil, nil, err
	}
	return a, b, a.awaitUp(ctx)
}

// awaitUp waits until the link to a peer is up.
func (g *gateway) awaitUp(ctx context.Context) error {
	select {
	case <-g.up:
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("the link does not come up")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bareLoop inserts rows in group commits of one connection, synchronous=FULL and
// in WAL mode, and returns how many a second.
func bareLoop(ctx context.Context, dir string) (perSecond float64, err error) {
	path := filepath.Join(dir, "bare.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, db.Close())
		for _, suffix := range []string{"", "-wal", "-shm"} {
			if rm := os.Remove(path + suffix); rm != nil && !errors.Is(rm, os.ErrNotExist) {
				err = errors.Join(err, rm)
			}
		}
	}()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(ctx, `CREATE TABLE log (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT`); err != nil {
		return 0, err
	}
	body := make([]byte, itemSize)
	start := time.Now()
	for done := 0; done < rateItems; done += bareBatch {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return 0, err
		}
		insert, err := tx.PrepareContext(ctx, `INSERT INTO log (body) VALUES (?)`)
		if err != nil {
			return 0, errors.Join(err, tx.Rollback())
		}
		for range bareBatch {
			if _, err := insert.ExecContext(ctx, body); err != nil {
				return 0, errors.Join(err, tx.Rollback())
			}
		}
		if err := tx.Commit(); err != nil {
			return 0, err
		}
	}
	return rateItems / time.Since(start).Seconds(), nil
}

// latency puts items at a steady rate and returns how long they take, in
// milliseconds.
func latency(ctx context.Context, from, to *gateway, perSecond int, during time.Duration) (p50, p99 float64, err error) {
	var (
		mu   sync.Mutex
		ages []time.Duration
	)
	to.got = func(it *lane.Item) {
		mu.Lock()
		ages = append(ages, age(it))
		mu.Unlock()
	}
	before := to.count.Load()
	n := int(during.Seconds() * float64(perSecond))
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for range n {
		<-tick.C
		if err := from.put(ctx, to, itemSize, func(error) {}); err != nil {
			return 0, 0, err
		}
	}
	if err := to.await(ctx, before+int64(n)); err != nil {
		return 0, 0, err
	}
	mu.Lock()
	defer mu.Unlock()
	to.got = nil
	return percentile(ages, 0.5), percentile(ages, 0.99), nil
}
