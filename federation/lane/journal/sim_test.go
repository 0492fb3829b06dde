package journal

import (
	"errors"
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
)

var seeds = flag.Uint64("seeds", 2000, "how many worlds TestSimulation runs")

// outcome is what one world came to.
type outcome struct{ promised, taken, lost, dup, reordered, wedged, repeats int }

// run lives one world: a time in which everything may fail, then one in which
// nothing does, at whose end everything promised must have been taken.
func (w *world) run() (outcome, error) {
	for w.steps = range 150 + w.rng.IntN(250) {
		if err := w.step(); err != nil {
			return outcome{}, fmt.Errorf("%v: %w", w, err)
		}
	}
	if err := w.notice(); err != nil {
		return outcome{}, err
	}
	cut(w.primary.stream) // the last frame may be missing, which nothing shows
	for range 40 + 8*len(w.primary.db.log) {
		for _, s := range []*sender{w.old, w.primary} { // the old one may live on
			if s != nil {
				w.transmit(s)
				w.arrive(s.stream)
				w.settle()
				w.replicate()
				w.rReplicate()
				w.heed(s)
			}
		}
	}
	return w.judge(), nil
}

// step lets one thing happen.
func (w *world) step() error {
	s := w.primary
	if w.old != nil && w.chance(40) {
		s = w.old
	}
	switch n := w.rng.IntN(1000); {
	case n < 150:
		return w.submit()
	case n < 400:
		w.transmit(s)
	case n < 600:
		w.arrive(s.stream)
	case n < 700:
		w.settle()
	case n < 820:
		w.heed(s)
	case n < 870:
		w.replicate()
	case n < 920:
		w.rReplicate()
	case n < 945:
		w.disturb(s.stream)
	case n < 960:
		cut(s.stream)
	case n < 970:
		return w.crash()
	case n < 980:
		w.rCrash()
	case n < 988:
		return w.failover()
	case n < 993:
		w.rFailover()
	case n < 996:
		return w.notice()
	default:
		return w.bury()
	}
	return nil
}

func (w *world) judge() outcome {
	taken := w.recv.db.taken
	o := outcome{promised: w.promised, taken: len(taken), repeats: w.repeats}
	have := map[int]bool{}
	last := 0
	for _, id := range taken {
		switch {
		case have[id]:
			o.dup++
		case id < last:
			o.reordered++
		}
		have[id], last = true, max(last, id)
	}
	for id := 1; id <= w.promised; id++ {
		if !have[id] {
			o.lost++
		}
	}
	if len(w.primary.db.log) > 0 || len(w.pending) > 0 {
		o.wedged++
	}
	return o
}

func (o *outcome) add(p outcome) {
	o.promised += p.promised
	o.taken += p.taken
	o.lost += p.lost
	o.dup += p.dup
	o.reordered += p.reordered
	o.wedged += p.wedged
	o.repeats += p.repeats
}

func (o outcome) bad() bool { return o.lost+o.dup+o.reordered+o.wedged > 0 }

func (o outcome) String() string {
	return fmt.Sprintf("%d promised, %d repeats submitted, %d taken; %d lost, %d duplicated, %d out of order, %d wedged",
		o.promised, o.repeats, o.taken, o.lost, o.dup, o.reordered, o.wedged)
}

// simulate runs n worlds on all cores and returns the sum and one seed that failed.
func simulate(n uint64, r rules) (total outcome, failed uint64, err error) {
	var (
		seed atomic.Uint64
		mu   sync.Mutex
		work sync.WaitGroup
	)
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for s := seed.Add(1); s <= n; s = seed.Add(1) {
				o, e := newWorld(s, r).run()
				mu.Lock()
				total.add(o)
				if o.bad() || e != nil {
					failed, err = s, errors.Join(err, e)
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	return total, failed, err
}

// TestSimulation runs as many worlds as -seeds says; make sim does so at length.
func TestSimulation(t *testing.T) {
	total, failed, err := simulate(*seeds, rules{})
	t.Logf("%d seeds: %v", *seeds, total)
	if total.bad() || err != nil {
		t.Errorf("seed %d fails: %v", failed, err)
	}
	if total.promised < int(*seeds)*10 || total.repeats == 0 {
		t.Errorf("%v: that was no test", total)
	}
}

// TestRulesAreNeeded breaks one rule at a time. Each must cost something, or
// either the rule is not needed or the simulator does not see.
func TestRulesAreNeeded(t *testing.T) {
	for name, r := range map[string]rules{
		"one epoch for all lives":                 {oneEpoch: true},
		"epoch from an old copy alone":            {storedEpoch: true},
		"frames need not follow":                  {noLink: true},
		"acknowledged before the commit":          {ackFirst: true},
		"deleted when taken":                      {deleteTaken: true},
		"old epochs may begin":                    {noFence: true},
		"taken ids forgotten":                     {forgetIDs: true},
		"promised before the replica has it":      {promiseEarly: true},
		"new streams do not resend what is taken": {neverResend: true},
	} {
		t.Run(name, func(t *testing.T) {
			total, _, err := simulate(2000, r)
			if t.Logf("%v (%v)", total, err); !total.bad() {
				t.Error("nothing went wrong")
			}
		})
	}
}
