// Lane measures the durable lanes between two gateways on this machine: the
// stores, the lanes, and the link over loopback TCP, against a bare loop of group
// commits on the same disk, in one run. docs/benchmarks.md says how to read it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"text/tabwriter"
	"time"
)

// goal is one figure and what it should be.
type goal struct {
	what string
	have float64
	want float64
	most bool // want is the most, not the least
	unit string
}

func (g goal) met() bool { return g.have >= g.want != g.most || g.have == g.want }

// options are those of the command line.
type options struct {
	dir    string
	rounds int
	queued int
}

// benches are the parts, in the order in which they run.
var benches = []struct {
	name string
	run  func(ctx context.Context, o *options, dir string) ([]goal, error)
}{
	{"rate", benchRate},
	{"slow", benchSlow},
	{"backlog", benchBacklog},
}

func main() {
	var (
		o    options
		code int
	)
	defer func() { os.Exit(code) }()
	strict := flag.Bool("strict", false, "exit with an error if a goal is missed")
	flag.StringVar(&o.dir, "dir", "", "where the databases are (default: a new directory below the system's)")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each measurement; the median counts")
	flag.IntVar(&o.queued, "queued", 1_000_000, "items of the backlog")
	profile := flag.String("cpuprofile", "", "write a CPU profile of both ends here")
	flag.Parse()
	if *profile != "" {
		stop, err := startProfile(*profile)
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			code = 1
			return
		}
		defer stop()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if met, err := run(ctx, &o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	} else if *strict && !met {
		code = 1
	}
}

func startProfile(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() {
		pprof.StopCPUProfile()
		if err := f.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "bench: profile:", err)
		}
	}, nil
}

// run runs the named parts, or all.
func run(ctx context.Context, o *options, names []string) (met bool, err error) {
	dir, err := os.MkdirTemp(o.dir, "yggate-lane-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var goals []goal
	for _, b := range benches {
		if len(names) > 0 && !slices.Contains(names, b.name) {
			continue
		}
		fmt.Printf("# %s\n", b.name)
		part, err := b.run(ctx, o, dir+"/"+b.name)
		if err != nil {
			return false, fmt.Errorf("%s: %w", b.name, err)
		}
		goals = append(goals, part...)
	}
	if len(goals) == 0 {
		return false, fmt.Errorf("%q is no benchmark: rate, slow, backlog", names)
	}
	return report(goals), nil
}

func report(goals []goal) (met bool) {
	met = true
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nfigure\treached\tgoal\t")
	for _, g := range goals {
		verdict, sign := "met", ">="
		if g.most {
			sign = "<="
		}
		if !g.met() {
			met, verdict = false, "MISSED"
		}
		fmt.Fprintf(w, "%s\t%.2f %s\t%s %.2f\t%s\n", g.what, g.have, g.unit, sign, g.want, verdict)
	}
	w.Flush()
	return met
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}

// percentile of durations, in milliseconds.
func percentile(v []time.Duration, p float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return float64(s[min(int(p*float64(len(s))), len(s)-1)].Microseconds()) / 1000
}
