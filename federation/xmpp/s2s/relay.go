package s2s

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// maxSkipped is how large a stanza may be that goes back to its sender for its size; it
// is not held in memory. Beyond it the server itself has no bound, and the stream ends.
const maxSkipped = 16 << 20

// relay hands the stanzas of an authenticated stream to the handler until the
// stream ends, and says why it did.
func (in *inbound) relay(ctx context.Context) error {
	in.rd.SetLimits(frame.Limits{Stanza: in.s.limits.Stanza, Skip: maxSkipped})
	in.rd.SetSource(&gathering{Reader: in.conn, below: in.arrivals})
	var batch [][]byte
	var pace pace
	for {
		if pace.busy(batch, time.Now()) {
			rest(ctx)
		}
		clear(batch)
		var err error
		batch, err = in.rd.Batch(batch[:0])
		var skipped *frame.Skipped
		if errors.As(err, &skipped) {
			err = in.passSkipped(ctx, skipped)
		}
		if err != nil {
			return err
		}
		for rest := batch; len(rest) > 0; {
			n := stanzas(rest)
			if n > 0 {
				if err := in.pass(ctx, rest[:n]); err != nil {
					return err
				}
			}
			if n < len(rest) {
				if err := in.other(rest[n]); err != nil {
					return err
				}
				n++
			}
			rest = rest[n:]
		}
	}
}

// pass gives stanzas to the handler, and counts them if the server wants to know
// what became of them.
func (in *inbound) pass(ctx context.Context, stanzas [][]byte) error {
	bytes := size(stanzas)
	in.s.metrics.carried(dirIn, len(stanzas), bytes)
	return in.hand(ctx, len(stanzas), bytes, func(settled func()) error {
		return in.s.handler.Stanzas(ctx, in.from, in.to, stanzas, settled)
	})
}

// passSkipped does the same for a stanza of which only the first tag was kept. What is
// no stanza ends the stream for the limit that it is beyond.
func (in *inbound) passSkipped(ctx context.Context, s *frame.Skipped) error {
	if !isStanza(s.Tag) {
		return s
	}
	in.s.metrics.carried(dirIn, 1, s.Size)
	return in.hand(ctx, 1, len(s.Tag), func(settled func()) error {
		return in.s.handler.Skipped(ctx, in.from, in.to, s, settled)
	})
}

// hand has the handler take n stanzas.
func (in *inbound) hand(ctx context.Context, n, bytes int, take func(settled func()) error) error {
	settled, refused := func() {}, func() {}
	if in.handled != nil {
		b, err := in.handled.take(ctx, n, bytes)
		if err != nil {
			return err
		}
		settled, refused = b.settle, b.refuse
	}
	if err := take(settled); err != nil {
		refused()
		return fmt.Errorf("take stanzas: %w", err)
	}
	return nil
}

// stanzas counts the stanzas at the front of a batch.
func stanzas(batch [][]byte) int {
	for i, b := range batch {
		if !isStanza(b) {
			return i
		}
	}
	return len(batch)
}

// isStanza tells stanzas by their names, RFC 6120 §8. Their namespace is the
// reader's matter.
func isStanza(b []byte) bool {
	return hasName(b, "message") || hasName(b, "presence") || hasName(b, "iq")
}

func hasName(b []byte, name string) bool {
	if len(b) < len(name)+2 || string(b[1:1+len(name)]) != name {
		return false
	}
	switch b[1+len(name)] {
	case ' ', '\t', '\n', '\r', '/', '>':
		return true
	}
	return false
}

// other answers what is no stanza. Prosody sends db:verify on whatever stream it
// has to the domain.
func (in *inbound) other(b []byte) error {
	if in.handled != nil && string(b) == smRequest { // as stock servers write it, after each stanza
		in.handled.ask()
		return nil
	}
	el, err := in.rd.Decode(b)
	if err != nil {
		return err
	}
	switch {
	case el.Is(frame.NSDialback, "verify"):
		return in.answerVerify(el)
	case el.Is(frame.NSDialback, "result"):
		return in.refuseOther(el)
	case el.Is(frame.NSStream, "error"):
		return streamError(el)
	case el.XMLName.Space == nsSM:
		return in.manage(el)
	}
	return refuse(conditionUnknownStanza, "<%s/> is no stanza", el.XMLName.Local)
}

// manage answers an element of stream management (XEP-0198 §3, §4 and §6).
func (in *inbound) manage(el *frame.Element) error {
	what := el.XMLName.Local
	switch {
	case what == "enable" && in.handled == nil:
		broken := func() { _ = in.conn.SetReadDeadline(past) } // relay ends, whatever this says
		in.managed.Store(true)
		in.handled = newHandled(in.s.limits.Unsettled, in.acknowledge, broken)
		return in.send(smEnabled)
	case what == "enable":
		return refuse(frame.PolicyViolation, "stream management is enabled already")
	case what == "resume":
		return in.send(smFailed, "feature-not-implemented")
	case what != "r" && what != "a":
		return refuse(conditionUnknownStanza, "<%s/> is not for a server to send", what)
	case in.handled == nil:
		return in.send(smFailed, "unexpected-request")
	case what == "r":
		in.handled.ask()
		return nil
	}
	h, err := handledCount(el)
	if err == nil && h > 0 { // no stanza goes this way on this stream
		err = &countError{h: h}
	}
	return err
}

// acknowledge writes an <a/>. Having sent something, the kernel takes the stream
// for a dialogue and keeps its own acknowledgement of what comes next for up to
// 40 ms, to put it into an answer; there is none, and Prosody, which leaves Nagle's
// algorithm on, does not send the next stanza until it has that (tcp(7),
// TCP_QUICKACK).
func (in *inbound) acknowledge(ack []byte) error {
	if err := in.write(ack); err != nil {
		return err
	}
	return in.arrivals.hurry()
}

// lastAck tells a server that is still there how many of its stanzas are settled,
// before the stream ends for the reason why.
func (in *inbound) lastAck(ctx context.Context, why error) error {
	if in.handled == nil {
		return why
	}
	wait := goodbye
	gone := in.isGone(ctx, why)
	if gone {
		wait = 0
	}
	if err := in.handled.finish(wait); err != nil {
		return fmt.Errorf("acknowledge stanzas: %w", err)
	}
	if !gone {
		// That it may be gone in the meantime is no matter: it has heard less.
		_ = in.handled.lastWord()
	}
	return why
}

// isGone says whether nobody is there to be told why the stream has ended.
func (in *inbound) isGone(ctx context.Context, why error) bool {
	var broken net.Error
	return errors.Is(why, io.EOF) || errors.Is(why, io.ErrUnexpectedEOF) || errors.As(why, &broken) && ctx.Err() == nil
}
