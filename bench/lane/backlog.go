package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
)

// benchSlow has one peer whose local server takes one item a second, with a full
// window before it, and measures what another peer of the same gateway notices.
func benchSlow(ctx context.Context, o *options, dir string) ([]goal, error) {
	a, b, err := linked(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer a.stop()
	defer b.stop()
	slow, err := newGateway(dir, "slow")
	if err != nil {
		return nil, err
	}
	slow.pace = time.Second
	meet(a, slow)
	if err := a.putAll(ctx, slow, 20_000, itemSize); err != nil {
		return nil, err
	}
	var alone, beside []float64
	for range o.rounds {
		_, p99, err := latency(ctx, a, b, 500, 5*time.Second)
		if err != nil {
			return nil, err
		}
		alone = append(alone, p99)
		if p99, err = latencyBeside(ctx, a, b, slow); err != nil {
			return nil, err
		}
		beside = append(beside, p99)
		fmt.Printf("p99 at 500 items/s: alone %.2f ms, beside a slow peer %.2f ms\n", alone[len(alone)-1], p99)
	}
	return []goal{{what: "p99 beside a slow peer to p99 alone", have: median(beside) / median(alone), want: 1.5, most: true, unit: "x"}}, nil
}

// latencyBeside measures while the slow peer is there and has taken its first item.
func latencyBeside(ctx context.Context, a, b, slow *gateway) (p99 float64, err error) {
	if err := slow.start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, slow.stop()) }()
	if err := slow.await(ctx, slow.count.Load()+1); err != nil {
		return 0, err
	}
	_, p99, err = latency(ctx, a, b, 500, 5*time.Second)
	return p99, err
}

// benchBacklog queues items for an absent peer, starts anew with them, and lets the
// peer come.
func benchBacklog(ctx context.Context, o *options, dir string) ([]goal, error) {
	a, b, err := linked(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { a.stop() }()
	defer b.stop()
	absent, err := newGateway(dir, "absent")
	if err != nil {
		return nil, err
	}
	meet(a, absent)
	if err := a.putAll(ctx, absent, 10_000, itemSize); err != nil { // what any use costs once
		return nil, err
	}
	before, err := resident()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := a.putAll(ctx, absent, o.queued, itemSize); err != nil {
		return nil, err
	}
	fmt.Printf("%d items of %d bytes queued in %v (%.0f/s)\n", o.queued, itemSize, time.Since(start).Round(time.Millisecond), float64(o.queued)/time.Since(start).Seconds())
	after, err := resident()
	if err != nil {
		return nil, err
	}
	disk, err := diskUse(a.path)
	if err != nil {
		return nil, err
	}
	fmt.Printf("disk: %.0f MiB, %.0f bytes an item; resident: %.1f MiB more\n", float64(disk)/(1<<20), float64(disk)/float64(o.queued), (after-before)/(1<<20))
	if err := a.stop(); err != nil {
		return nil, err
	}
	start = time.Now()
	if err := a.start(ctx); err != nil {
		return nil, err
	}
	startup := time.Since(start)
	if err := a.awaitPeer(ctx, b); err != nil {
		return nil, err
	}
	_, alone, err := latency(ctx, a, b, 100, 5*time.Second)
	if err != nil {
		return nil, err
	}
	drain, beside, err := drain(ctx, o, a, b, absent)
	if err != nil {
		return nil, err
	}
	peak, err := resident()
	if err != nil {
		return nil, err
	}
	fmt.Printf("started in %v; drained at %.0f items/s; p99 of another peer at 100/s: %.2f ms alone, %.2f ms meanwhile; resident with both ends %.1f MiB more\n",
		startup.Round(time.Millisecond), drain, alone, beside, (peak-before)/(1<<20))
	return []goal{
		{what: "backlog: resident memory more", have: (after - before) / (1 << 20), want: 64, most: true, unit: "MiB"},
		{what: "backlog: start-up", have: startup.Seconds(), want: 3, most: true, unit: "s"},
		{what: "backlog: drained", have: drain, want: 2000, unit: "items/s"},
	}, nil
}

// drain lets the absent peer come, and talks with another one meanwhile.
func drain(ctx context.Context, o *options, a, other, absent *gateway) (perSecond, p99 float64, err error) {
	start := time.Now()
	if err := absent.start(ctx); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, absent.stop()) }()
	if err := absent.await(ctx, 1); err != nil {
		return 0, 0, err
	}
	if _, p99, err = latency(ctx, a, other, 100, 5*time.Second); err != nil {
		return 0, 0, err
	}
	err = absent.await(ctx, int64(o.queued)+10_000)
	return float64(o.queued) / time.Since(start).Seconds(), p99, err
}

func (g *gateway) awaitPeer(ctx context.Context, peer *gateway) error {
	for {
		select {
		case id := <-g.up:
			if id == federation.GridID(peer.id.ID()) {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resident is the process's resident memory, in bytes.
func resident() (float64, error) {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0, fmt.Errorf("statm is %q", statm)
	}
	pages, err := strconv.Atoi(fields[1])
	return float64(pages * os.Getpagesize()), err
}

func diskUse(path string) (bytes int64, err error) {
	for _, suffix := range []string{"", "-wal"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			return 0, err
		}
		bytes += info.Size()
	}
	return bytes, nil
}
