// Bench measures yggate on real servers beside what an operator would run
// without it, in one run and in alternating rounds, and prints ratios: this
// machine's own speed, and whatever else it does, cancel out.
//
//	go run ./gateway/internal/bench [flags] [xmpp] [matrix] [bare] [mqtt] [idle]
//
// docs/benchmarks.md says how to read the figures.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
)

// options are what the command line says.
type options struct {
	rounds, messages int    // of XMPP
	pairs, events    int    // of Matrix
	media            int64  // MiB
	version          string // of MQTT between gateways and brokers
	dir              string
	out              io.Writer
	goals            []goal
}

// goal is a figure that docs/benchmarks.md promises.
type goal struct {
	what   string
	have   float64
	want   float64
	atMost bool
	unit   string
}

func (g goal) met() bool {
	if g.atMost {
		return g.have <= g.want
	}
	return g.have >= g.want
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{out: os.Stdout}
	strict := flag.Bool("strict", false, "exit with an error if a goal is missed")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each measurement; the median counts")
	flag.IntVar(&o.messages, "messages", 10000, "messages of a throughput round")
	flag.IntVar(&o.pairs, "pairs", 300, "Matrix messages, one at a time, of a round on each system")
	flag.IntVar(&o.events, "events", 300, "Matrix events of a throughput block; a round has four on each system")
	flag.Int64Var(&o.media, "media", 100, "size of Matrix media in MiB")
	flag.StringVar(&o.version, "version", "5", "which MQTT the gateways speak with their brokers, 5 or 3.1.1")
	flag.StringVar(&o.dir, "dir", "", "where the servers keep their data (default: a new directory below the system's)")
	flag.Parse()
	err := run(ctx, &o, flag.Args())
	if err == nil && *strict && slices.ContainsFunc(o.goals, func(g goal) bool { return !g.met() }) {
		err = fmt.Errorf("a goal was missed")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options, which []string) error {
	parts := map[string]func(context.Context, *options, string) error{
		"xmpp": benchXMPP, "matrix": benchMatrix, "bare": benchBare, "mqtt": benchMQTT, "idle": benchIdle,
	}
	all := []string{"xmpp", "matrix", "bare", "mqtt", "idle"}
	for _, name := range which { // before the first runs for minutes
		if parts[name] == nil {
			return fmt.Errorf("%q is no benchmark; flags stand before these: %s", name, strings.Join(all, ", "))
		}
	}
	if len(which) == 0 {
		which = all
	}
	for _, name := range which {
		dir, err := os.MkdirTemp(o.dir, "yggate-bench-")
		if err != nil {
			return err
		}
		err = parts[name](ctx, o, dir)
		if err != nil {
			return fmt.Errorf("%s: %w (logs are in %s)", name, err, dir)
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return o.report()
}

// report prints every goal with what was reached.
func (o *options) report() error {
	w := tabwriter.NewWriter(o.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nfigure\treached\tgoal\t")
	for _, g := range o.goals {
		sign, verdict := ">=", "met"
		if g.atMost {
			sign = "<="
		}
		if !g.met() {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s\t%.2f %s\t%s %.2f\t%s\n", g.what, g.have, g.unit, sign, g.want, verdict)
	}
	return w.Flush()
}

// median of an odd or even number of figures.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	if n == 0 {
		return 0
	}
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}
