package s2s

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
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
	queue   []item
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

// item is one stanza in the queue.
type item struct {
	stanza []byte
	hand   *hand // who waits for it; nil for what Send took
}

// put queues all stanzas or none. When there is no room it returns a channel to
// wait on.
func (o *outbound) put(stanzas [][]byte, n int, h *hand) (room <-chan struct{}, err error) {
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
	for _, stanza := range stanzas {
		o.queue = append(o.queue, item{stanza, h})
	}
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
			o.fail(ctx, err)
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
func (o *outbound) fail(ctx context.Context, err error) {
	why := fmt.Errorf("%w: %w", ErrDown, err)
	if ctx.Err() != nil {
		why = ErrStopped
	}
	o.mu.Lock()
	for _, it := range o.queue {
		if it.hand != nil {
			it.hand.end(why)
		}
	}
	o.prune()
	lost := sentBy(o.queue)
	o.queue = nil
	o.grow(-size(lost))
	refused := errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(o.err, syscall.ECONNREFUSED) && ctx.Err() == nil
	o.running, o.err = false, err
	if ctx.Err() == nil { // else nobody may try again
		o.pause = min(max(2*o.pause, firstPause), o.s.limits.Backoff)
		o.retry = time.Now().Add(o.pause)
	}
	o.mu.Unlock()
	o.log.Warn("the local server cannot be reached", "returned", len(lost), "err", err)
	o.giveBack(lost, err)
	if refused { // nothing listens there: no session can be alive
		o.s.spawn(func(ctx context.Context) { o.s.serverLost(ctx, o.to) })
	}
}

// sentBy are the stanzas that nobody waits for.
func sentBy(items []item) (stanzas [][]byte) {
	for _, it := range items {
		if it.hand == nil {
			stanzas = append(stanzas, it.stanza)
		}
	}
	return stanzas
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
	defer context.AfterFunc(ctx, func() { st.hurry(st.conn) })()
	o.s.metrics.open(dirOut, 1)
	defer o.s.metrics.open(dirOut, -1)
	if afterFailure := o.setOpen(); afterFailure {
		o.s.handler.LocalBack(o.to)
	}
	defer o.setClosed()
	o.log.Debug("stream to the local server is open", "acknowledges", st.managed)

	f := &flight{managed: st.managed}
	ended := make(chan struct{})
	var why error
	go func() {
		defer close(ended)
		why = o.read(st, f)
	}()
	carried, err = o.carry(ctx, st, f, ended)
	if err == nil {
		st.sayGoodbye()
		select {
		case <-ended:
		case <-time.After(goodbye):
		}
	}
	var told toldError
	if errors.Is(err, errEnded) && errors.As(why, &told) {
		st.bidFarewell(told)
	}
	st.conn.Close()
	<-ended
	var remote *RemoteError
	if errors.Is(err, errEnded) || (err != nil && errors.As(why, &remote)) {
		err = why // the server's own words say more than a broken pipe
	}
	if err != nil {
		o.cut(f, err)
	}
	o.log.Debug("stream to the local server has ended", "err", err)
	return carried, err
}

// errEnded stands for the reason that the reading side knows.
var errEnded = errors.New("stream ended")

func (o *outbound) carry(ctx context.Context, st *stream, f *flight, ended <-chan struct{}) (carried bool, err error) {
	spoke := time.Now()
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	var batch []item
	for {
		select {
		case <-ended: // do not write into a stream that the server has closed
			return carried, errEnded
		default:
		}
		now, due := time.Now(), o.due(f)
		if !due.IsZero() && !now.Before(due) {
			return carried, fmt.Errorf("the local server has acknowledged nothing for %v", o.s.limits.Ack)
		}
		if batch = o.take(batch); len(batch) > 0 {
			n, err := o.write(st, f, batch)
			carried = carried || n > 0
			if err != nil {
				return carried, err
			}
			spoke = now
			continue
		}
		wait := spoke.Add(o.s.limits.Idle).Sub(now)
		if !due.IsZero() {
			wait = due.Sub(now)
		}
		alarm.Reset(wait)
		select {
		case <-o.wake:
		case <-ended:
			return carried, errEnded
		case <-alarm.C:
			if due.IsZero() {
				return carried, nil
			}
		case <-ctx.Done():
			st.sayGoodbye()
			return carried, ErrStopped
		}
	}
}

// take moves the whole queue to the caller and reuses the space of the batch
// that the caller has done with.
func (o *outbound) take(done []item) []item {
	o.mu.Lock()
	defer o.mu.Unlock()
	batch := o.queue
	clear(done)
	o.queue = done[:0]
	return batch
}

func (o *outbound) due(f *flight) time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return f.due()
}

var writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, writeSize+len(smRequest)); return &b }}

// write puts a batch on the wire in as few writes as writeSize allows and
// returns how many stanzas went out. Those of a write that failed are given back
// as lost, because the server may have them; the rest returns to the queue.
func (o *outbound) write(st *stream, f *flight, batch []item) (n int, err error) {
	buf := writeBuffers.Get().(*[]byte)
	defer writeBuffers.Put(buf)
	for n < len(batch) {
		count, bytes := fit(batch[n:])
		chunk, rest := batch[n:n+count], batch[n+count:]
		err := st.write(o.assemble((*buf)[:0], f, chunk))
		o.mu.Lock()
		o.grow(-bytes)
		if err != nil {
			o.queue = append(slices.Clone(rest), o.queue...)
		} else {
			f.written(o.s.limits.Ack)
		}
		o.mu.Unlock()
		if err != nil {
			o.giveBack(sentBy(chunk), err)
			return n, err
		}
		o.s.metrics.carried(dirOut, count, bytes)
		n += count
	}
	return n, nil
}

// fit counts the stanzas that one write takes: at least one.
func fit(batch []item) (n, bytes int) {
	for n < len(batch) && (n == 0 || bytes+len(batch[n].stanza) <= writeSize) {
		bytes += len(batch[n].stanza)
		n++
	}
	return n, bytes
}

// assemble returns the stanzas in one piece, with a request to acknowledge them
// behind the last one that somebody waits for.
func (o *outbound) assemble(buf []byte, f *flight, chunk []item) []byte {
	o.mu.Lock()
	ask := f.load(chunk)
	o.mu.Unlock()
	if len(chunk) == 1 && !ask {
		return chunk[0].stanza
	}
	for _, it := range chunk {
		buf = append(buf, it.stanza...)
	}
	if ask {
		buf = append(buf, smRequest...)
	}
	return buf
}

func size(stanzas [][]byte) (n int) {
	for _, b := range stanzas {
		n += len(b)
	}
	return n
}
