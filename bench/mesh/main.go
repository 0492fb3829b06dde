// Mesh measures one stream between two embedded Yggdrasil nodes against what
// one would use in its place, in one run, and prints the ratios that yggate
// holds itself to. docs/benchmarks.md says how to read it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const (
	// port is the service that the subjects' servers listen on.
	port = 5000
	// setupTime is how long a path may take to come up.
	setupTime = 20 * time.Second
)

// entry is a row of the table.
type entry struct {
	name string
	open func() (subject, error)

	subject subject
	samples []sample
	err     error
}

// goal is a ratio of ours to another's.
type goal struct {
	to   string
	what string
	want float64
	most bool // want is the most, not the least
	of   func(sample) float64
}

func speed(s sample) float64 { return s.MBps }

var goals = []goal{
	{"loopback TCP", "throughput", 0.06, false, speed},
	{"loopback TLS 1.3", "throughput", 0.30, false, speed},
	{"TUN, stock node", "throughput", 1.8, false, speed},
	{"embedded, MTU 1280", "throughput", 8, false, speed},
	{"wireguard-go netstack", "throughput", 3, false, speed},
	{"yggate, through TLS", "throughput", 1.25, true, speed},
	{"TUN, stock node", "round trip p50", 0.6, true, func(s sample) float64 { return float64(s.P50) }},
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == helperFlag {
		number, err := strconv.Atoi(os.Args[2])
		if err == nil {
			err = runHelper(number)
		}
		exit(err)
	}
	rounds := flag.Int("rounds", 5, "rounds over all subjects; figures are medians")
	bytes := flag.Int64("bytes", 256<<20, "most bytes of one throughput sample")
	seconds := flag.Float64("seconds", 2.5, "longest throughput sample")
	only := flag.String("only", "", "measure only the subjects whose names contain this")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the rounds to this file")
	strict := flag.Bool("strict", false, "exit with an error when a goal is missed")
	flag.Parse()
	entries := []*entry{
		{name: "yggate", open: newOurs},
		{name: "yggate, through TLS", open: newOursTLS},
		{name: "loopback TCP", open: newTCP},
		{name: "loopback TLS 1.3", open: newTLS},
		{name: "TUN, stock node", open: newTUN},
		{name: "embedded, MTU 1280", open: newEmbedder},
		{name: "wireguard-go netstack", open: newWireGuard},
	}
	stop, err := startProfile(*profile)
	if err != nil {
		exit(err)
	}
	missed := run(entries, *only, *rounds, limits{Bytes: *bytes, Seconds: *seconds})
	if err := stop(); err != nil {
		exit(err)
	}
	if *strict && missed > 0 {
		exit(fmt.Errorf("%d goals missed", missed))
	}
}

// startProfile profiles this process, not the helpers, until stop is called.
func startProfile(path string) (stop func() error, err error) {
	if path == "" {
		return func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error { pprof.StopCPUProfile(); return f.Close() }, nil
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "mesh:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(entries []*entry, only string, rounds int, lim limits) (missed int) {
	var chosen []*entry
	for _, e := range entries {
		if !strings.Contains(e.name, only) {
			continue
		}
		chosen = append(chosen, e)
		if e.subject, e.err = e.open(); e.err == nil {
			// The first stream waits for the path and is no sample.
			_, e.err = e.subject.measure(limits{Bytes: 4 << 20, Seconds: 0.5})
		}
	}
	for r := range rounds {
		for i := range chosen {
			// Each round starts with another subject.
			e := chosen[(r+i)%len(chosen)]
			if e.err != nil {
				continue
			}
			var s sample
			if s, e.err = e.subject.measure(lim); e.err == nil {
				e.samples = append(e.samples, s)
			}
		}
	}
	for _, e := range chosen {
		if e.subject != nil {
			e.err = errors.Join(e.err, e.subject.Close())
		}
	}
	return show(chosen)
}

// show prints the table and the goals and counts those that are missed.
func show(entries []*entry) (missed int) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tMB/s\tmin\tmax\tCPU s/GB\tRTT p50 µs\tp99 µs\t")
	figures := map[string]sample{}
	for _, e := range entries {
		if e.err != nil || len(e.samples) == 0 {
			fmt.Fprintf(w, "%s\tfailed: %v\t\t\t\t\t\t\n", e.name, e.err)
			continue
		}
		m := median(e.samples)
		figures[e.name] = m
		least, most := m.MBps, m.MBps
		for _, s := range e.samples {
			least, most = min(least, s.MBps), max(most, s.MBps)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.0f\t%.2f\t%d\t%d\t\n", e.name, m.MBps, least, most, m.CPUPerGB, m.P50.Microseconds(), m.P99.Microseconds())
	}
	w.Flush()
	ours, ok := figures[entries[0].name]
	if !ok {
		return len(goals)
	}
	fmt.Println()
	for _, g := range goals {
		other, ok := figures[g.to]
		if !ok {
			fmt.Printf("  ????  %s to %s: not measured\n", g.what, g.to)
			missed++
			continue
		}
		ratio := g.of(ours) / g.of(other)
		verdict, sense := "met", "at least"
		if g.most {
			sense = "at most"
		}
		if (ratio < g.want) != g.most {
			verdict = "MISSED"
			missed++
		}
		fmt.Printf("%8s  %s to %s: %.3f, want %s %g\n", verdict, g.what, g.to, ratio, sense, g.want)
	}
	return missed
}
