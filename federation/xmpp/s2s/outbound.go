package s2s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// writeSize is the most that queued stanzas are put together to for one write.
const writeSize = 64 << 10

// firstPause follows the first failure of an outbound stream and doubles up to
// Limits.Backoff.
const firstPause = 250 * time.Millisecond

type pair struct{ from, to string }

// outbound is the queue of one pair of domains and, while there is something to
// say, the goroutine that owns the stream for it.
type outbound struct {
	s *Streams
	pair
	log *slog.Logger

	mu      sync.Mutex
	queue   [][]byte
	bytes   int           // in queue and in the batch being written
	running bool          // the goroutine is there and will see the queue
	wake    chan struct{} // tells it that the queue is no longer empty
	room    chan struct{} // closed when bytes shrinks; nil while nobody waits
	pause   time.Duration
	retry   time.Time // no attempt before
	err     error     // why
	open    time.Time // when the stream was opened; zero while there is none
	// forgotten ones are no longer in Streams.out; put must not revive them, or
	// a pair would have two streams and no order.
	forgotten bool
}

var errForgotten = errors.New("forgotten")

// put queues all stanzas or none. When there is no room it returns a channel to
// wait on.
func (o *outbound) put(stanzas [][]byte, n int) (room <-chan struct{}, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.forgotten {
		return nil, errForgotten
	}
	if !o.running && time.Now().Before(o.retry) {
		return nil, fmt.Errorf("%w: %w", ErrDown, o.err)
	}
	// A batch beyond the whole queue passes alone: it would never fit.
	if o.bytes > 0 && o.bytes+n > o.s.limits.Queue {
		if o.room == nil {
			o.room = make(chan struct{})
		}
		return o.room, nil
	}
	if !o.running {
		if !o.s.spawn(o.run) {
			return nil, ErrStopped
		}
		o.running = true
	}
	o.queue = append(o.queue, stanzas...)
	o.grow(n)
	select {
	case o.wake <- struct{}{}:
	default: // already told
	}
	return nil, nil
}

// grow accounts for bytes queued or, when negative, gone. It needs o.mu.
func (o *outbound) grow(n int) {
	o.bytes += n
	o.s.metrics.queued.Add(float64(n))
	if n < 0 && o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// run carries the queue over as many streams as it takes. A stream that carried
// something before it ended, because the server closed it for idleness or
// restarted, is followed by another at once if more is waiting. One that carried
// nothing is a failure.
func (o *outbound) run(ctx context.Context) {
	for {
		carried, err := o.stream(ctx)
		if err != nil && (!carried || ctx.Err() != nil) {
			o.fail(err)
			return
		}
		if o.rest() {
			return
		}
	}
}

// rest ends the goroutine unless something was queued meanwhile.
func (o *outbound) rest() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.queue) > 0 {
		return false
	}
	o.running, o.pause, o.err = false, 0, nil
	return true
}

// fail ends the goroutine, gives the queue back and keeps further attempts off
// for a while.
func (o *outbound) fail(err error) {
	o.mu.Lock()
	lost := o.queue
	o.queue = nil
	o.grow(-size(lost))
	o.running, o.err = false, err
	o.pause = min(max(2*o.pause, firstPause), o.s.limits.Backoff)
	o.retry = time.Now().Add(o.pause)
	o.mu.Unlock()
	o.log.Warn("the local server cannot be reached", "returned", len(lost), "err", err)
	o.giveBack(lost, err)
}

func (o *outbound) giveBack(lost [][]byte, err error) {
	if len(lost) > 0 {
		o.s.metrics.failed.Add(float64(len(lost)))
		o.s.handler.Failed(o.from, o.to, lost, err)
	}
}

// serverUp allows the next attempt at once.
func (o *outbound) serverUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pause, o.retry = 0, time.Time{}
}

// forget retires o if that loses nothing, and says whether it did.
func (o *outbound) forget() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgotten = !o.running && time.Now().After(o.retry)
	return o.forgotten
}

// stream opens one stream and carries the queue over it until it ends: by
// idleness (nil), by the server or by failure.
func (o *outbound) stream(ctx context.Context) (carried bool, err error) {
	st, err := o.s.connect(ctx, o.pair)
	if err != nil {
		return false, err
	}
	o.s.metrics.open(dirOut, 1)
	defer o.s.metrics.open(dirOut, -1)
	o.setOpen(true)
	defer o.setOpen(false)
	o.log.Debug("stream to the local server is open")

	ended := make(chan struct{})
	var why error
	go func() {
		defer close(ended)
		why = st.drain()
	}()
	carried, err = o.carry(ctx, st, ended)
	if err == nil {
		st.sayGoodbye()
		select {
		case <-ended:
		case <-time.After(goodbye):
		}
	}
	st.conn.Close()
	<-ended
	var remote *RemoteError
	if errors.Is(err, errEnded) || (err != nil && errors.As(why, &remote)) {
		err = why // the server's own words say more than a broken pipe
	}
	o.log.Debug("stream to the local server has ended", "err", err)
	return carried, err
}

// errEnded stands for the reason that the reading side knows.
var errEnded = errors.New("stream ended")

func (o *outbound) carry(ctx context.Context, st *stream, ended <-chan struct{}) (carried bool, err error) {
	idle := time.NewTimer(o.s.limits.Idle)
	defer idle.Stop()
	var batch [][]byte
	for {
		select {
		case <-ended: // do not write into a stream that the server has closed
			return carried, errEnded
		default:
		}
		if batch = o.take(batch); len(batch) > 0 {
			n, err := o.write(st, batch)
			carried = carried || n > 0
			if err != nil {
				return carried, err
			}
			idle.Reset(o.s.limits.Idle)
			continue
		}
		select {
		case <-o.wake:
		case <-ended:
			return carried, errEnded
		case <-idle.C:
			return carried, nil
		case <-ctx.Done():
			st.sayGoodbye()
			return carried, ErrStopped
		}
	}
}

// take moves the whole queue to the caller and reuses the space of the batch
// that the caller has done with.
func (o *outbound) take(done [][]byte) [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	batch := o.queue
	clear(done)
	o.queue = done[:0]
	return batch
}

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, writeSize); return &b }}

// write puts a batch on the wire in as few writes as writeSize allows and
// returns how many stanzas went out. Those of a write that failed are given back
// as lost, because the server may have them; the rest returns to the queue.
func (o *outbound) write(st *stream, batch [][]byte) (n int, err error) {
	buf := writeBuffers.Get().(*[]byte)
	defer writeBuffers.Put(buf)
	for n < len(batch) {
		end, chunk := n+1, batch[n]
		if end < len(batch) && len(chunk)+len(batch[end]) <= writeSize {
			chunk = append((*buf)[:0], chunk...)
			for end < len(batch) && len(chunk)+len(batch[end]) <= writeSize {
				chunk = append(chunk, batch[end]...)
				end++
			}
		}
		err := st.write(chunk)
		o.mu.Lock()
		o.grow(-len(chunk))
		if err != nil {
			o.queue = append(slices.Clone(batch[end:]), o.queue...)
		}
		o.mu.Unlock()
		if err != nil {
			o.giveBack(slices.Clone(batch[n:end]), err)
			return n, err
		}
		o.s.metrics.carried(dirOut, end-n, len(chunk))
		n = end
	}
	return n, nil
}

func size(stanzas [][]byte) (n int) {
	for _, b := range stanzas {
		n += len(b)
	}
	return n
}
