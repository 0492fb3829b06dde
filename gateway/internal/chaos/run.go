package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// progressEvery is how often a long run says how it stands.
	progressEvery = 5 * time.Second
	// settleWithin bounds the wait for the last messages. It ends earlier when
	// nothing is missing, the gateways hold nothing and nothing has come for quiet,
	// or when nothing has come for stuck.
	settleWithin = 3 * time.Minute
	quiet        = 3 * time.Second
	stuck        = 30 * time.Second
)

// run is one run from the first gateway's start to the verdict, which it prints.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "yggate-chaos-")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	fmt.Fprintf(out, "chaos: %v of faults, about %.0f kills a minute, seed %d\n", o.length, o.kills, o.seed)
	if !mayMount() {
		fmt.Fprintln(out, "chaos: LEFT OUT: full disks, which take root")
	}
	w, err := runIn(ctx, o, dir, out)
	if err == nil && !o.keep {
		err = os.RemoveAll(dir)
	} else {
		fmt.Fprintln(out, "chaos: logs are kept in", dir)
	}
	if err != nil {
		fmt.Fprintln(out, "chaos:", err)
	}
	w.report(out)
	return err
}

// runIn plays in dir.
func runIn(ctx context.Context, o options, dir string, out io.Writer) (w *world, err error) {
	file, err := os.Create(filepath.Join(dir, "chaos.log"))
	if err != nil {
		return &world{}, fmt.Errorf("make a log: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w, err = newWorld(ctx, o, dir, slog.New(slog.NewTextHandler(file, nil)))
	if err != nil {
		return w, err
	}
	if err := errors.Join(w.play(ctx, o, out), w.stop()); err != nil {
		return w, err
	}
	return w, w.verdict()
}

// play sends and strikes for the time asked for, then mends everything and waits
// until nothing comes any more.
func (w *world) play(ctx context.Context, o options, out io.Writer) error {
	aside, stop := context.WithCancel(ctx)
	defer stop()
	var watch errgroup.Group
	watch.Go(func() error { w.progress(aside, out); return nil })
	for _, s := range []*site{w.a, w.b} {
		watch.Go(func() error { return s.supervise(aside) })
	}
	err := w.ride(ctx, o)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = w.settle(ctx, out)
	}
	stop()
	return errors.Join(err, watch.Wait())
}

// ride sends and strikes for the time asked for.
func (w *world) ride(ctx context.Context, o options) error {
	parts, ctx := errgroup.WithContext(ctx)
	load, endLoad := context.WithCancel(ctx)
	defer endLoad()
	w.send(load, ctx, parts, o)
	parts.Go(func() error {
		defer endLoad()
		return w.strike(ctx, o)
	})
	return parts.Wait()
}

// strike has every kind of fault happen for the time asked for. Each has a source
// of random numbers of its own, so that a seed gives each the same course.
func (w *world) strike(ctx context.Context, o options) error {
	ctx, cancel := context.WithTimeout(ctx, o.length)
	defer cancel()
	source := func(stream uint64) *rand.Rand { return rand.New(rand.NewPCG(o.seed, stream)) }
	kinds, ctx := errgroup.WithContext(ctx)
	kinds.Go(func() error { return (&killer{w: w, rand: source(1), perMinute: o.kills}).run(ctx) })
	kinds.Go(func() error { return disturb(ctx, source(2), 2*time.Second, 10*time.Second, w.cutMesh) })
	kinds.Go(func() error { return disturb(ctx, source(3), 2*time.Second, 8*time.Second, w.takeServer) })
	if w.a.disk != nil {
		kinds.Go(func() error { return disturb(ctx, source(4), 3*time.Second, 12*time.Second, w.fillDisk) })
	}
	return kinds.Wait()
}

// settle waits, with everything mended, until every message is accounted for and
// nothing comes any more, or nothing comes although some are missing.
func (w *world) settle(ctx context.Context, out io.Writer) error {
	for _, s := range []*site{w.a, w.b} {
		if err := s.start(); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "chaos: all is mended, waiting for the rest")
	if err := w.linked(ctx, time.Minute); err != nil {
		return err
	}
	mended := time.Now()
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	var left error
	// That time runs out is no error of its own: what is missing is lost.
	_ = await(ctx, 100*time.Millisecond, func() bool {
		c, last := w.ledger.now()
		if last.Before(mended) {
			last = mended
		}
		still := time.Since(last)
		if still < quiet {
			return false
		}
		left = errors.Join(w.a.empty(ctx), w.b.empty(ctx))
		return c.pending == 0 && left == nil || still > stuck
	})
	return left
}

// progress says now and then how it stands.
func (w *world) progress(ctx context.Context, out io.Writer) {
	began := time.Now()
	for pause(ctx, progressEvery) {
		c, _ := w.ledger.now()
		fmt.Fprintf(out, "%5.0fs  acked %d, arrived %d, under way %d, told %d, repeated %d; %s\n",
			time.Since(began).Seconds(), c.acked, c.arrived, c.pending, c.told, c.repeated, &w.tally)
	}
}

func (t *tally) String() string {
	return fmt.Sprintf("kills %d, cuts %d, stalls %d, outages %d, broken lines %d, full disks %d, exits %d",
		t.kills.Load(), t.cuts.Load(), t.stalls.Load(), t.outages.Load(), t.breaks.Load(), t.fills.Load(), t.exits.Load())
}

// report prints what there is to say, the line that counts last.
func (w *world) report(out io.Writer) {
	var c counts
	if w.ledger != nil {
		w.ledger.explain(out)
		c, _ = w.ledger.now()
	}
	checked := 0
	for _, s := range []*site{w.a, w.b} {
		if s != nil && s.checks != nil {
			checked += s.checks.number()
		}
	}
	fmt.Fprintf(out, "%s, checks %d\n", &w.tally, checked)
	fmt.Fprintf(out, "sent %d, unacked %d, arrived %d, told %d, both %d, wrong %d, repeated %d (at most %d of a way at once)\n",
		c.sent, c.sent-c.acked, c.arrived, c.told, c.both, c.wrong, c.repeated, c.most)
	fmt.Fprintf(out, "acked %d lost %d dup %d reordered %d\n", c.acked, c.pending, c.dup, c.reordered)
}

// verdict is an error if a promise was broken, or nothing was tried.
func (w *world) verdict() error {
	c, _ := w.ledger.now()
	switch {
	case c.pending+c.dup+c.reordered > 0:
		return errors.New("a promise was broken")
	case c.wrong > 0:
		return errors.New("something arrived that was not sent")
	case c.acked == 0:
		return errors.New("nothing was acknowledged")
	case w.tally.faults() == 0:
		return errors.New("no fault happened")
	}
	return nil
}
