//go:build integration

package gateway_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// fate is what became of how many messages.
type fate struct {
	sent, arrived, back int
	neither             int // neither arrived nor came back
	newest              int // of those that have arrived; -1 before the first
	undelayed           int // arrived without a delay (XEP-0203)
}

func (f fate) String() string {
	return fmt.Sprintf("%d sent: %d arrived, %d came back, %d did neither", f.sent, f.arrived, f.back, f.neither)
}

// mail is numbered messages from one user to another and what becomes of them.
type mail struct {
	prefix string

	mu      sync.Mutex
	change  chan struct{} // closed at the next change
	arrived []bool
	back    []bool // as an error
	loose   []bool // sent while the server opened a stream
	opening int    // the first message of those, or -1
	ordered int    // the newest that has arrived, but for loose ones
	count   fate
	faults  []string
}

func newMail(name string, n int) *mail {
	return &mail{
		prefix: "mail-" + name + "-", change: make(chan struct{}), opening: -1, ordered: -1, count: fate{newest: -1},
		arrived: make([]bool, n), back: make([]bool, n), loose: make([]bool, n),
	}
}

// reopens says that the sender's server has lost its stream, as of now. What is sent
// until something of it arrives may come in any order: Prosody 0.12.3 (mod_s2s)
// sends what comes between the end of its authentication and the features that
// follow ahead of the queue that it has kept until then.
func (m *mail) reopens() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.opening = m.count.sent
}

// watch has the mail see what the two users receive. A party without a session is
// left out.
func (m *mail) watch(from, to peertest.Party) {
	observe := func(s *peertest.Stanza) bool { return !m.note(s) }
	for _, p := range []peertest.Party{from, to} {
		if p.Client != nil {
			p.Observe(observe)
		}
	}
}

// note keeps a stanza that is part of the mail.
func (m *mail) note(s *peertest.Stanza) (ours bool) {
	number, ok := strings.CutPrefix(s.ID, m.prefix)
	n, err := strconv.Atoi(number)
	if !ok || err != nil || n >= len(m.arrived) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case s.Type == "error" && m.back[n]:
		m.fault("%d came back twice", n)
	case s.Type == "error":
		m.back[n] = true
		m.count.back++
	case m.arrived[n]:
		m.fault("%d arrived twice", n)
	default:
		m.order(n)
		if !s.Delayed {
			m.count.undelayed++
		}
		m.arrived[n], m.count.newest = true, max(n, m.count.newest)
		m.count.arrived++
	}
	m.changed()
	return true
}

// order checks that a message comes behind those that were sent before it. It needs
// m.mu.
func (m *mail) order(n int) {
	if m.opening >= 0 && n >= m.opening {
		m.opening = -1 // the stream is open
	}
	if m.loose[n] {
		return
	}
	if n < m.ordered {
		m.fault("%d arrived after %d", n, m.ordered)
	}
	m.ordered = max(n, m.ordered)
}

// changed wakes who waits. It needs m.mu.
func (m *mail) changed() {
	close(m.change)
	m.change = make(chan struct{})
}

func (m *mail) fault(format string, args ...any) {
	if len(m.faults) < 20 {
		m.faults = append(m.faults, fmt.Sprintf(format, args...))
	}
}

// send sends the next n messages. The user is addressed without a resource, so
// that a server keeps them for a user who is away.
func (m *mail) send(ctx context.Context, from, to peertest.Party, n int) error {
	for range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.mu.Lock()
		i := m.count.sent
		if i >= len(m.arrived) {
			m.mu.Unlock()
			return fmt.Errorf("more than %d messages", len(m.arrived))
		}
		m.count.sent++
		m.loose[i] = m.opening >= 0
		m.changed()
		m.mu.Unlock()
		if err := from.SendMessage(ctx, peertest.Bare(to.JID), fmt.Sprintf("message %d", i), m.prefix+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return nil
}

// breathe waits before more is sent, for longer while the last of it has neither
// arrived nor come back: some hundreds a second, but no more than the servers take. An
// ejabberd that is given more than that while it bounces goes on bouncing for good
// (the end of it is a timeout of a process that must have nothing else to do).
func (m *mail) breathe(ctx context.Context) {
	wait(ctx, 20*time.Millisecond)
	ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	for ctx.Err() == nil {
		m.mu.Lock()
		last, change := m.count.sent-1, m.change
		done := m.arrived[last] || m.back[last]
		m.mu.Unlock()
		if done {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
		}
	}
}

// sendOver sends all messages evenly within a time, but for the end of it: the
// last of them, too, are then old enough for a delay stamp when it is over.
func (m *mail) sendOver(t *testing.T, from, to peertest.Party, length time.Duration) {
	t.Helper()
	const steps, rest = 20, 7 * time.Second
	for range steps {
		if err := m.send(t.Context(), from, to, len(m.arrived)/steps); err != nil {
			t.Fatal(err)
		}
		wait(t.Context(), (length-rest)/steps)
	}
	wait(t.Context(), rest)
}

// fate is how it stands.
func (m *mail) fate() fate {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.count
	for i := range f.sent {
		if !m.arrived[i] && !m.back[i] {
			f.neither++
		}
	}
	return f
}

// missing are the first of those that neither arrived nor came back.
func (m *mail) missing() (numbers []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.count.sent {
		if !m.arrived[i] && !m.back[i] && len(numbers) < 40 {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// until waits for a fate.
func (m *mail) until(t *testing.T, done func(fate) bool) error {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		m.mu.Lock()
		ok, change := done(m.count), m.change
		m.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-change:
		case <-late.C:
			return fmt.Errorf("waited in vain: %v", m.fate())
		case <-t.Context().Done():
			return t.Context().Err()
		}
	}
}

// flush sends one message after the other until one arrives: it comes behind all
// that was sent before.
func (m *mail) flush(t *testing.T, from, to peertest.Party) {
	t.Helper()
	for {
		if err := m.send(t.Context(), from, to, 1); err != nil {
			t.Fatal(err)
		}
		n := m.fate().sent - 1
		if err := m.until(t, func(fate) bool { return m.arrived[n] || m.back[n] }); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		arrived := m.arrived[n]
		m.mu.Unlock()
		if arrived {
			return
		}
		wait(t.Context(), 100*time.Millisecond)
	}
}

// allArrive waits until every message has arrived, and logs how long that took
// since the receiver was back. delayed says that each must bear a delay.
func (m *mail) allArrive(t *testing.T, back time.Time, delayed bool) {
	t.Helper()
	if err := m.until(t, func(f fate) bool { return f.arrived == f.sent || f.back > 0 }); err != nil {
		t.Fatal(err)
	}
	took := time.Since(back)
	verdict := "within"
	if took > promised {
		verdict = "LATER THAN"
	}
	f := m.fate()
	t.Logf("%v; the last %v after the return, %s the promised %v", f, took.Round(10*time.Millisecond), verdict, promised)
	if f.back > 0 {
		t.Errorf("%d messages came back", f.back)
	}
	if delayed && f.undelayed > 0 {
		t.Errorf("%d of %d messages do not say when they were sent", f.undelayed, f.sent)
	}
	m.mustBeOrderly(t)
}

// mustBeOrderly fails the test for what arrived twice or out of order.
func (m *mail) mustBeOrderly(t *testing.T) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, f := range m.faults {
		t.Error(f)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
