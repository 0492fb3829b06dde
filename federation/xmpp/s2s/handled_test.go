package s2s

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// ledger is a stream whose acknowledgements are written down.
type ledger struct {
	*handled
	t    *testing.T
	mu   sync.Mutex
	acks []string
}

func newLedger(t *testing.T, limit int) *ledger {
	l := &ledger{t: t}
	l.handled = newHandled(limit, func(b []byte) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.acks = append(l.acks, string(b))
		return nil
	}, func() { t.Error("broken") })
	return l
}

func (l *ledger) taking(n int) *batch {
	l.t.Helper()
	b, err := l.take(l.t.Context(), n, 10*n)
	if err != nil {
		l.t.Fatal(err)
	}
	return b
}

// toldOnly checks what the server has heard since the last call.
func (l *ledger) toldOnly(counts ...uint32) {
	l.t.Helper()
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	var want []string
	for _, h := range counts {
		want = append(want, string(smAck(h)))
	}
	if !slices.Equal(l.acks, want) {
		l.t.Errorf("the server heard %q, want %q", l.acks, want)
	}
	l.acks = nil
}

func (l *ledger) close() {
	l.t.Helper()
	if err := l.finish(0); err != nil {
		l.t.Error(err)
	}
}

// TestHandledInOrder settles batches in another order than they came.
func TestHandledInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		one, two, three := l.taking(1), l.taking(20), l.taking(300)
		three.settle()
		l.ask()
		l.toldOnly()
		one.settle()
		l.toldOnly()
		two.settle()
		l.toldOnly(321)
		one.settle() // a handler that says so again must not count it again
		time.Sleep(time.Hour)
		l.toldOnly()
	})
}

// TestHandledIsTold is when a server hears of what is settled: soon if it has
// asked, after many stanzas or a while if not.
func TestHandledIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		first, second := l.taking(1), l.taking(1)
		l.ask()
		first.settle()
		l.toldOnly()
		second.settle()
		l.toldOnly(2) // all that it asked about
		time.Sleep(time.Hour)
		l.toldOnly()

		l.taking(ackEvery - 1).settle()
		l.toldOnly()
		l.taking(1).settle()
		l.toldOnly(ackEvery + 2)

		l.taking(3).settle()
		time.Sleep(ackDelay - 1)
		l.toldOnly()
		time.Sleep(time.Nanosecond)
		l.toldOnly(ackEvery + 5)
		time.Sleep(time.Hour)
		l.toldOnly()
		l.ask() // though there is no news
		l.toldOnly(ackEvery + 5)
	})
}

// TestHandledAnswersOnce has a server that asks and asks while its stanzas are not
// settled, as Prosody does.
func TestHandledAnswersOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		first := l.taking(1)
		l.ask()
		l.ask()
		second := l.taking(1)
		l.ask()
		first.settle()
		l.toldOnly(1) // the first request; the last is about more
		second.settle()
		l.toldOnly()
		time.Sleep(ackSpace - time.Nanosecond)
		l.toldOnly()
		time.Sleep(time.Nanosecond)
		l.toldOnly(2)
		time.Sleep(time.Hour)
		l.toldOnly()
	})
}

// TestHandledAnswersInTime has a store that takes nothing: the server that asks
// hears so, at times.
func TestHandledAnswersInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		l.taking(1).settle()
		stuck := l.taking(1)
		l.ask()
		l.toldOnly()
		time.Sleep(ackDelay)
		l.toldOnly(1)
		time.Sleep(ackDelay)
		l.toldOnly(1) // its request is not answered in full
		stuck.settle()
		time.Sleep(ackSpace)
		l.toldOnly(2)
		time.Sleep(time.Hour)
		l.toldOnly()
	})
}

// TestHandledSpaces has a server whose every acknowledgement brings the next
// request.
func TestHandledSpaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		began := time.Now()
		for range 1000 {
			l.ask()
			l.taking(1).settle()
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		l.mu.Lock()
		defer l.mu.Unlock()
		if most := int(time.Since(began)/ackSpace) + 1; len(l.acks) > most || len(l.acks) < most/2 {
			t.Errorf("%d acknowledgements in %v, want %d", len(l.acks), time.Since(began), most)
		}
	})
}

// TestHandledWraps counts beyond 2^32 (XEP-0198 §4).
func TestHandledWraps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		const near = math.MaxUint32 - 1
		l.handled.taken, l.handled.count, l.handled.told, l.handled.asked = near, near, near, 0 // last asked long ago
		l.ask()
		l.toldOnly(near)
		l.taking(5).settle()
		l.toldOnly()
		time.Sleep(ackDelay)
		l.toldOnly(3)
		b := l.taking(1)
		l.ask()
		time.Sleep(ackSpace)
		b.settle()
		l.toldOnly(4)
	})
}

// TestHandledAskedLongAgo: what the server asked about half a count ago does not
// seem to lie ahead.
func TestHandledAskedLongAgo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		defer l.close()
		l.ask()
		l.toldOnly(0)
		for n := uint32(1); n <= 3; n++ {
			time.Sleep(ackSpace)
			l.taking(1 << 30).settle()
			l.toldOnly(n << 30)
		}
		l.taking(1).settle()
		l.toldOnly()
	})
}

// TestHandledIsBounded has a handler that settles nothing.
func TestHandledIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 3*batchCost)
		defer l.close()
		first := l.taking(1000) // alone, it may be of any size
		more := make(chan *batch)
		go func() { more <- l.taking(1) }()
		synctest.Wait()
		select {
		case <-more:
			t.Fatal("a second batch is taken beyond the limit")
		default:
		}
		first.settle()
		second := <-more
		l.toldOnly(1000)
		third := l.taking(1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.take(ctx, 1, 10); !errors.Is(err, context.Canceled) {
			t.Errorf("take beyond the limit: %v", err)
		}
		third.settle() // is not counted before the second, so that it takes room still
		if _, err := l.take(ctx, 1, 10); !errors.Is(err, context.Canceled) {
			t.Errorf("take beyond the limit: %v", err)
		}
		second.settle()
		l.taking(1)
	})
}

// TestHandledFinish waits for what is settled a moment later, but not for ever.
func TestHandledFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		b := l.taking(7)
		time.AfterFunc(time.Second, b.settle)
		began := time.Now()
		if err := l.finish(time.Minute); err != nil || time.Since(began) != time.Second {
			t.Errorf("finish took %v: %v", time.Since(began), err)
		}
		if err := l.lastWord(); err != nil {
			t.Fatal(err)
		}
		l.toldOnly(7)
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(t, 1<<20)
		l.taking(7).refuse()
		never := l.taking(1)
		began := time.Now()
		if err := l.finish(time.Minute); err != nil || time.Since(began) != time.Minute {
			t.Errorf("finish took %v: %v", time.Since(began), err)
		}
		never.settle() // after the end of the stream, to no effect
		l.toldOnly()
	})
}

// TestHandledCannotTell has a connection that broke.
func TestHandledCannotTell(t *testing.T) {
	broken := make(chan struct{})
	c := newHandled(1<<20, func([]byte) error { return errBroken }, func() { close(broken) })
	b, err := c.take(t.Context(), ackEvery, 1)
	if err != nil {
		t.Fatal(err)
	}
	b.settle()
	<-broken
	if err := c.finish(0); !errors.Is(err, errBroken) {
		t.Errorf("finish: %v", err)
	}
}

// TestHandledNeverTakesBack settles from many goroutines while the server asks:
// what it hears never shrinks, and is all in the end.
func TestHandledNeverTakesBack(t *testing.T) {
	var heard []int // telling keeps it to one write at a time
	c := newHandled(1<<16, func(b []byte) error {
		var h int
		_, err := fmt.Sscanf(string(b), smAckHead+"%d", &h)
		heard = append(heard, h)
		return err
	}, func() { t.Error("broken") })
	var settlers sync.WaitGroup
	for range 500 {
		b, err := c.take(t.Context(), 1+rand.IntN(9), 100)
		if err != nil {
			t.Fatal(err)
		}
		settlers.Go(b.settle)
		if rand.IntN(4) == 0 {
			c.ask()
		}
	}
	settlers.Wait()
	if err := c.finish(patience); err != nil {
		t.Fatal(err)
	}
	if err := c.lastWord(); err != nil {
		t.Fatal(err)
	}
	if last := heard[len(heard)-1]; last != int(c.taken) || !slices.IsSorted(heard) {
		t.Errorf("the server sent %d and heard %v", c.taken, heard)
	}
}
