// Join measures how long after a peering of an embedded Yggdrasil node came up a
// stream to another node opens. docs/benchmarks.md says how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// giveUp is how long a trial may take; it counts as that long then.
const giveUp = 30 * time.Second

func main() {
	trials := flag.Int("trials", 30, "trials of each case")
	beside := flag.Int("beside", 6, "trials at a time")
	only := flag.String("only", "", "measure only the cases whose names contain this")
	verbose := flag.Bool("v", false, "print every trial")
	flag.Parse()
	if err := run(*trials, *beside, *only, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "join:", err)
		os.Exit(1)
	}
}

func run(trials, beside int, only string, verbose bool) error {
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "case\ttrials\tfailed\tp50\tp90\tmax\tover 2 s\t")
	for _, c := range cases {
		if !strings.Contains(c.name, only) {
			continue
		}
		took, failed := repeat(c, trials, beside, verbose)
		if len(took) == 0 {
			return fmt.Errorf("%s: no trial has succeeded", c.name)
		}
		slices.Sort(took)
		over := 0
		for _, d := range took {
			if d > 2*time.Second {
				over++
			}
		}
		at := func(q float64) string { return fmt.Sprintf("%.2f s", took[int(q*float64(len(took)-1))].Seconds()) }
		fmt.Fprintf(out, "%s\t%d\t%d\t%s\t%s\t%s\t%d\t\n", c.name, trials, failed, at(0.5), at(0.9), at(1), over)
		out.Flush()
	}
	return nil
}

// repeat runs a case's trials, a few at a time: they wait more than they work.
func repeat(c kind, trials, beside int, verbose bool) ([]time.Duration, int) {
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		took   []time.Duration
		failed int
		next   = make(chan dialers)
	)
	for range beside {
		wg.Go(func() {
			for who := range next {
				d, err := trial(c, who)
				mu.Lock()
				if err != nil {
					fmt.Fprintf(os.Stderr, "%s, %s: after %.2f s: %v\n", c.name, who, d.Seconds(), err)
					failed++
				} else {
					took = append(took, d)
				}
				if verbose {
					fmt.Printf("%s, %s: %.2f s\n", c.name, who, d.Seconds())
				}
				mu.Unlock()
			}
		})
	}
	for i := range trials {
		next <- dialers(i) % 3
	}
	close(next)
	wg.Wait()
	return took, failed
}

// trial is how long the slowest of the dials took.
func trial(c kind, who dialers) (time.Duration, error) {
	ctx, cancel := context.WithCancel(context.Background())
	w := &world{ctx: ctx}
	defer w.stop()
	defer cancel()
	joiner, other, up, err := c.build(w)
	if err != nil {
		return 0, err
	}
	ctx, cancel = context.WithTimeout(ctx, giveUp)
	defer cancel()
	type from struct{ a, b *node }
	var pairs []from
	if who != byOther {
		pairs = append(pairs, from{joiner, other})
	}
	if who != byJoiner {
		pairs = append(pairs, from{other, joiner})
	}
	opened := make(chan error, len(pairs))
	for _, p := range pairs {
		go func() { opened <- p.a.reach(ctx, p.b) }()
	}
	for range pairs {
		err = errors.Join(err, <-opened)
	}
	end := time.Now()
	select {
	case began := <-up:
		return end.Sub(began), err
	case <-ctx.Done():
		return giveUp, ctx.Err()
	}
}

// dialers says which of the two nodes dials.
type dialers int

const (
	byJoiner dialers = iota
	byOther
	byBoth // as two gateways do
)

func (d dialers) String() string {
	return [...]string{"the joining node dials", "the other node dials", "both dial"}[d]
}

// pause lets the phases of timers of nodes differ from trial to trial.
func pause() { time.Sleep(time.Duration(rand.Int64N(int64(time.Second)))) }

// rand2 is 0 or 1: which of two keys the lower node has is no matter of the case.
func rand2() int { return rand.IntN(2) }
