// Chaos shows that nothing acknowledged is lost. It runs two real gateways, linked
// over the embedded Yggdrasil on this machine, has a stand-in XMPP server before
// each send messages as fast as they go, and meanwhile kills the gateways, cuts
// and stalls the mesh between them, takes the servers away, or the lines to them,
// and fills the disks.
//
//	go run ./gateway/internal/chaos [-for 60s] [-seed N] [-kills 110] [-keep]
//
// `make chaos CHAOS_S=600` is the same. Full disks need root, because each gateway
// then has a small file system of its own; without, they are left out, and the
// output says so.
//
// # What is counted
//
// A stand-in speaks XEP-0198: what its gateway acknowledged goes into a ledger in
// this process, outside all databases. What was not acknowledged when a stream
// broke is not sent again, as Prosody does not; it may arrive or not. At the end
// everything is mended, and when nothing comes any more each acknowledged message
// must have arrived at the other side, or its sender must have been told by an
// error, and not both. The last line is
//
//		acked N lost N dup N reordered N
//
//	  - acked: messages that a gateway acknowledged to its server;
//	  - lost: of those, neither arrived nor told;
//	  - dup: arrived twice within one life of the receiving gateway, or told twice, or
//	    both arrived and told ("both" in the lines before counts the last);
//	  - reordered: arrived for the first time behind a later one of its conversation.
//
// The exit code is 0 only if lost, dup and reordered are 0, something was
// acknowledged, some fault happened, and every database was whole.
//
// The lines before the last say what was done and what is no fault:
//
//   - repeated: the last hop is at least once. A message may come again, unchanged,
//     in the next life of the receiving gateway after a kill, or after its server
//     or the line to it was away, and then in order and before anything new. "At
//     once" is the most of one way (a pair of domains) in one life;
//   - cuts and stalls of the mesh, outages of a server, broken lines between gateway
//     and server;
//   - unacked: sent and never acknowledged, most of them when a gateway was killed;
//   - exits: gateways that ended by themselves and were started again;
//   - checks: databases of killed gateways that passed SQLite's integrity check.
//
// When something is wrong, or with -keep, the folder with the logs of both
// gateways and chaos.log, which has every fault with its time, is kept and named.
// -seed repeats the course of the faults, though not to the microsecond.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are what the command line says.
type options struct {
	length        time.Duration
	seed          uint64
	kills         float64 // a minute
	conversations int     // of each way
	backlog       int     // messages of a way that may be under way
	program       string  // the yggate to run; empty builds it
	keep          bool
}

func main() {
	o := options{conversations: 4}
	flag.DurationVar(&o.length, "for", time.Minute, "how long there are faults")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano())%1e6, "the course of the faults")
	flag.Float64Var(&o.kills, "kills", 110, "kills a minute, about")
	flag.IntVar(&o.backlog, "backlog", 12000, "acknowledged messages of each way that may be under way")
	flag.StringVar(&o.program, "program", "", "the yggate to run (default: built from this tree)")
	flag.BoolVar(&o.keep, "keep", false, "keep the logs in any case")
	flag.Parse()
	if code, ran := inOwnMounts(); ran {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		os.Exit(1)
	}
}
