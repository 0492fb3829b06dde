package xmpp

import (
	"context"
	"errors"
	"time"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/s2s"
)

// trial is how the local server gets on with what one pair of domains has for it.
//
// A message that the server will never take must not hold up those behind it for
// ever. When a stream breaks while it carries several messages, they are handed one
// by one until the server has them all, so that it shows which one it is. That one
// goes back to its sender when
//   - the server has closed the stream over it, alone, verdictsToLeave times in a row
//     with a condition that speaks of what was sent (RFC 6120 §4.9.3);
//   - or it has failed brokenToLeave times, over brokenFor at least, although the
//     server was there: streams that carried it broke. Where the server refuses to
//     open one (host-unknown) all messages fail alike, and those behind the first do
//     not begin to count anew;
//   - or it could not be delivered in the time that it had.
//
// A server that is down, or going down, proves nothing.
type trial struct {
	turn chan struct{} // one token: one run at a time

	// With the token.
	singly int    // how many are to be handed one by one
	source string // the item that broke a stream last
	fails  int    // how often in a row, with the server there
	first  time.Time
}

const (
	verdictsToLeave = 2
	brokenToLeave   = 5
	brokenFor       = time.Minute
)

// trialOf is the trial of a pair of domains, of which there are as many as the
// peer's claims let pass.
func (p *peer) trialOf(of pair) *trial {
	p.trialMu.Lock()
	defer p.trialMu.Unlock()
	t := p.trials[of]
	if t == nil {
		t = &trial{turn: make(chan struct{}, 1)}
		p.trials[of] = t
	}
	return t
}

// begin waits for the turn.
func (t *trial) begin(ctx context.Context) error {
	select {
	case t.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *trial) end() { <-t.turn }

// most is how many of n may be handed at once.
func (t *trial) most(n int) int {
	if t.singly > 0 {
		return 1
	}
	return n
}

// passed notes that the server has taken n.
func (t *trial) passed(n int) {
	t.singly = max(t.singly-n, 0)
	if n > 0 {
		t.source, t.fails = "", 0
	}
}

// failed notes that an item was not taken, the first of those that were handed. If
// the server will never take it, the cause is for its sender.
func (t *trial) failed(it *lane.Item, handed int, life time.Time, domain string, err error) (c cause, never bool) {
	now := time.Now()
	if now.After(life) {
		return causeLocal(domain), true
	}
	var told *s2s.RemoteError
	condition := ""
	if errors.As(err, &told) {
		condition = told.Condition
	}
	carried := !errors.Is(err, s2s.ErrDown) && !errors.Is(err, s2s.ErrFull) && !errors.Is(err, s2s.ErrStopped) && !errors.Is(err, s2s.ErrNoServer)
	if passing[condition] || !carried && condition == "" {
		return c, false
	}
	if carried && handed > 1 {
		t.singly = handed
		return c, false
	}
	if carried && t.source != it.Source {
		t.source, t.fails = it.Source, 0
	}
	if t.fails++; t.fails == 1 {
		t.first = now
	}
	switch {
	case carried && verdicts[condition] && t.fails >= verdictsToLeave:
		return newCause(verdictFor(condition), "the XMPP server of "+domain+" closes the stream over this message: "+condition), true
	case t.fails >= brokenToLeave && now.Sub(t.first) >= brokenFor:
		return causeLocal(domain), true
	}
	return c, false
}

// verdicts are the stream errors that speak of what was sent.
var verdicts = map[string]bool{
	"bad-format": true, "bad-namespace-prefix": true, "improper-addressing": true, "invalid-from": true,
	"invalid-namespace": true, "invalid-xml": true, "not-well-formed": true, "policy-violation": true,
	"restricted-xml": true, "unsupported-encoding": true, "unsupported-feature": true, "unsupported-stanza-type": true,
}

// passing are those of a server that will be itself again.
var passing = map[string]bool{
	"conflict": true, "connection-timeout": true, "internal-server-error": true, "remote-connection-failed": true,
	"reset": true, "resource-constraint": true, "see-other-host": true, "system-shutdown": true,
}

// verdictFor is the stanza error that tells a sender of a stream error.
func verdictFor(condition string) string {
	if condition == "policy-violation" {
		return condition
	}
	return "not-acceptable"
}
