package peertest

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Load is a stream of chat messages from one user to another.
type Load struct {
	// Messages is how many are sent, Window how many of them may be under way
	// at once: 1 measures latency, some hundreds throughput.
	Messages, Window int
	// Body is the size of each message's text in bytes.
	Body int
	// NoStore marks the messages as not worth keeping (XEP-0334 §4.2), which sends
	// them over the memory-only lane.
	NoStore bool
}

// Measured is what became of a Load.
type Measured struct {
	Messages int
	Elapsed  time.Duration
	// P50 and P99 are from before the write to the sender's server until the
	// message was read from the receiver's.
	P50, P99 time.Duration
}

// Rate is in messages a second.
func (m Measured) Rate() float64 { return float64(m.Messages) / m.Elapsed.Seconds() }

func (m Measured) String() string {
	return fmt.Sprintf("%d messages, %.0f/s, latency p50 %v p99 %v", m.Messages, m.Rate(), round(m.P50), round(m.P99))
}

// Run sends the messages and waits until all have arrived, each once and in the
// order sent. An error stanza, a repeat or a message out of order is an error.
func (l Load) Run(ctx context.Context, from, to Party) (Measured, error) {
	m, err := l.run(ctx, from, to)
	if err != nil {
		return m, fmt.Errorf("load from %s to %s: %w", from.JID, to.JID, err)
	}
	return m, nil
}

func (l Load) run(ctx context.Context, from, to Party) (Measured, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	prefix := "load-" + strconv.FormatInt(time.Now().UnixNano(), 36) + "-"
	sent := make([]atomic.Int64, l.Messages) // time of each since start
	took := make([]time.Duration, 0, l.Messages)
	window := make(chan struct{}, l.Window) // holds one for each under way
	arrived := make(chan struct{})
	start := time.Now()

	to.Observe(func(s *Stanza) bool {
		number, ours := strings.CutPrefix(s.ID, prefix)
		if !ours {
			return true
		}
		if want := strconv.Itoa(len(took)); number != want || s.Type == "error" {
			cancel(fmt.Errorf("message %s is expected, %s came", want, s))
			return false
		}
		took = append(took, s.Time.Sub(start)-time.Duration(sent[len(took)].Load()))
		<-window
		if len(took) == l.Messages {
			close(arrived)
		}
		return false
	})
	defer to.Observe(nil)
	from.Observe(func(s *Stanza) bool {
		if s.Type == "error" && strings.HasPrefix(s.ID, prefix) {
			cancel(fmt.Errorf("a message came back: %s", s))
		}
		return true
	})
	defer from.Observe(nil)

	if err := l.send(ctx, from, to.JID, prefix, start, sent, window); err != nil {
		return Measured{}, err
	}
	select {
	case <-arrived:
	case <-ctx.Done():
		return Measured{}, context.Cause(ctx)
	case <-to.Done():
		return Measured{}, to.Err()
	}
	m := Measured{Messages: l.Messages, Elapsed: time.Since(start)}
	slices.Sort(took)
	m.P50, m.P99 = took[len(took)/2], took[len(took)*99/100]
	return m, nil
}

// send writes as many messages at once as the window has room for.
func (l Load) send(ctx context.Context, from Party, to, prefix string, start time.Time, sent []atomic.Int64, window chan<- struct{}) error {
	var addr bytes.Buffer
	if err := xml.EscapeText(&addr, []byte(to)); err != nil {
		return err
	}
	head := "<message type='chat' to='" + addr.String() + "' id='" + prefix
	tail := "'><body>" + strings.Repeat("x", l.Body) + "</body>"
	if l.NoStore {
		tail += "<no-store xmlns='urn:xmpp:hints'/>"
	}
	tail += "</message>"
	var batch []byte
	for i := 0; i < l.Messages; {
		batch = batch[:0]
		for free := true; free && i < l.Messages && len(batch) < 16<<10; {
			if len(batch) == 0 {
				select {
				case window <- struct{}{}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			} else {
				select {
				case window <- struct{}{}:
				default:
					free = false
					continue
				}
			}
			batch = append(strconv.AppendInt(append(batch, head...), int64(i), 10), tail...)
			sent[i].Store(int64(time.Since(start)))
			i++
		}
		if err := from.Send(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}
