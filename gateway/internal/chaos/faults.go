package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// tally counts what was done to the world.
type tally struct {
	kills, cuts, stalls, outages, breaks, fills atomic.Int64
	exits                                       atomic.Int64 // of gateways, by themselves
}

// faults is how many there were.
func (t *tally) faults() int64 {
	return t.kills.Load() + t.cuts.Load() + t.stalls.Load() + t.outages.Load() + t.breaks.Load() + t.fills.Load()
}

// between is a duration of at least low and less than high.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}

// pause waits; false means that ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// killer kills gateways, about perMinute of them.
type killer struct {
	w         *world
	rand      *rand.Rand
	perMinute float64
	began     time.Time
}

// run kills and restarts until ctx ends; what it killed last runs again then.
func (k *killer) run(ctx context.Context) error {
	k.began = time.Now()
	for {
		hurry, ok := k.rest(ctx)
		if !ok {
			return nil
		}
		victims := k.choose(hurry)
		after := make([]time.Duration, len(victims))
		for i := range after {
			after[i] = between(k.rand, 0, 300*time.Millisecond)
		}
		if err := k.strike(victims, after); err != nil {
			return err
		}
	}
}

// choose picks one of the two gateways, or both.
func (k *killer) choose(hurry bool) []*site {
	both := 2 // of 10
	if hurry {
		both = 5
	}
	one := []*site{k.w.a, k.w.b}[k.rand.IntN(2):][:1]
	if k.rand.IntN(10) < both {
		return []*site{k.w.a, k.w.b}
	}
	return one
}

// strike kills the victims at once, and starts each again after its time.
func (k *killer) strike(victims []*site, after []time.Duration) error {
	// A kill that has begun is brought to its end, so that the gateway runs when
	// the world is to heal.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	errs := make([]error, len(victims))
	var all sync.WaitGroup
	for i, s := range victims {
		all.Go(func() {
			killed, err := s.kill(ctx)
			if killed {
				k.w.tally.kills.Add(1)
				s.log.Info("kill -9", "life", s.life.Load(), "back in", after[i])
			}
			if err == nil {
				pause(ctx, after[i])
				err = s.start()
			}
			errs[i] = err
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// rest waits for the next kill; false means that ctx has ended. While there were
// fewer kills than asked for (hurry) it comes soon: while the gateways start, take
// messages and look for each other. Else it comes when messages have flowed both
// ways for a moment, or do not for long.
func (k *killer) rest(ctx context.Context) (hurry, ok bool) {
	if float64(k.w.tally.kills.Load()) < time.Since(k.began).Minutes()*k.perMinute {
		return true, pause(ctx, between(k.rand, 0, 150*time.Millisecond))
	}
	a, b := k.w.ledger.arrivals(k.w.a), k.w.ledger.arrivals(k.w.b)
	flow, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = await(flow, 20*time.Millisecond, func() bool {
		return k.w.ledger.arrivals(k.w.a) > a+flowing && k.w.ledger.arrivals(k.w.b) > b+flowing
	})
	return false, pause(ctx, between(k.rand, 0, 500*time.Millisecond))
}

// flowing is how many messages have to arrive on either side for it to flow.
const flowing = 100

// disturb runs a fault now and then until ctx ends. strike must mend what it does.
func disturb(ctx context.Context, r *rand.Rand, low, high time.Duration, strike func(ctx context.Context, r *rand.Rand) error) error {
	for pause(ctx, between(r, low, high)) {
		if err := strike(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// cutMesh cuts or stalls the way between the gateways for a while.
func (w *world) cutMesh(ctx context.Context, r *rand.Rand) error {
	d := between(r, 50*time.Millisecond, 3*time.Second)
	if r.IntN(2) == 0 {
		w.log.Info("mesh cut", "for", d)
		w.tally.cuts.Add(1)
		w.cable.Cut()
	} else {
		w.log.Info("mesh stalled", "for", d)
		w.tally.stalls.Add(1)
		w.cable.Stall()
	}
	pause(ctx, d)
	w.cable.Mend()
	return nil
}

// takeServer takes an XMPP server away for a while, or the line to it.
func (w *world) takeServer(ctx context.Context, r *rand.Rand) error {
	s, d := w.either(r), between(r, 50*time.Millisecond, 2*time.Second)
	if r.IntN(2) == 0 {
		s.log.Info("line to the server cut", "for", d)
		w.tally.breaks.Add(1)
		bounded, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return s.unplug(bounded, func() { pause(ctx, d) })
	}
	s.log.Info("server away", "for", d)
	w.tally.outages.Add(1)
	return s.outage(func() { pause(ctx, d) })
}

// fillDisk fills the disk of a gateway for a while.
func (w *world) fillDisk(ctx context.Context, r *rand.Rand) error {
	s, d := w.either(r), between(r, 100*time.Millisecond, 2*time.Second)
	s.log.Info("disk full", "for", d)
	w.tally.fills.Add(1)
	if err := s.fill(ctx); err != nil {
		return err
	}
	pause(ctx, d)
	return s.disk.free()
}

func (w *world) either(r *rand.Rand) *site { return []*site{w.a, w.b}[r.IntN(2)] }
