// Package peertest runs the real programs that yggate stands between, for tests,
// for benchmarks and for the demo: ejabberd, Prosody, Dendrite, mosquitto, a
// stock Yggdrasil node, yggate itself, each as an ordinary process that can be stopped, killed
// and restarted on the same data, on an address of 127/8 or in a network
// namespace.
//
// The servers run on the very lines that `yggate setup` prints. Readiness is
// found by asking the servers, never by waiting a while. Nothing here needs a
// *testing.T; T in testing.go is the thin helper for tests.
package peertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// SkipVar names the environment variable that holds the names of the programs
// that tests are to do without, comma separated: YGGATE_SKIP=prosody,netns.
const SkipVar = "YGGATE_SKIP"

// ErrSkipped is what Need returns for a name in SkipVar.
var ErrSkipped = errors.New("skipped by " + SkipVar)

type needed struct{ program, get string }

// needs says how to find and get what fixtures stand on. Programs in .cache are
// of this checkout.
var needs = map[string]needed{
	"ejabberd":  {"ejabberdctl", "apt-get install ejabberd"},
	"erlang":    {"erl", "apt-get install ejabberd"},
	"prosody":   {"prosody", "apt-get install prosody lua-unbound"},
	"mosquitto": {"mosquitto", "apt-get install mosquitto mosquitto-clients"},
	"netns":     {"ip", "apt-get install iproute2"},
	"dendrite":  {".cache/dendrite", "make deps"},
}

// Need says whether the named programs can be used here. It wraps ErrSkipped for
// one that the environment excludes, and otherwise tells how to get one that is
// missing.
func Need(names ...string) error {
	skip := strings.Split(os.Getenv(SkipVar), ",")
	for _, name := range names {
		if slices.Contains(skip, name) {
			return fmt.Errorf("%s: %w", name, ErrSkipped)
		}
		n, ok := needs[name]
		if !ok {
			return fmt.Errorf("need %q: no such fixture", name)
		}
		program := n.program
		if built, ok := strings.CutPrefix(program, ".cache/"); ok {
			var err error
			if program, err = tool(built); err != nil {
				return fmt.Errorf("need %s: %w", name, err)
			}
		}
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is not installed (%w): run `%s`, or set %s=%s to do without", name, err, n.get, SkipVar, name)
		}
	}
	return nil
}

// Loopback returns an address of 127/8 that most likely nobody uses, so that
// tests can run side by side on the usual ports.
func Loopback() netip.Addr {
	n := rand.Uint32()
	return netip.AddrFrom4([4]byte{127, byte(64 | n>>16&0x3f), byte(n >> 8), byte(1 + n%253)})
}

// poll calls ready until it returns nil, and gives up when ctx ends or gone is
// closed. It then returns ready's last error as well.
func poll(ctx context.Context, gone <-chan struct{}, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-gone:
			return fmt.Errorf("the process has ended; last: %w", err)
		case <-tick.C:
		}
	}
}
