package s2s

import (
	"context"
	"fmt"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// relay hands the stanzas of an authenticated stream to the handler until the
// stream ends, and says why it did.
func (in *inbound) relay(ctx context.Context) error {
	in.rd.SetLimits(frame.Limits{Stanza: in.s.limits.Stanza})
	var batch [][]byte
	for {
		clear(batch)
		var err error
		batch, err = in.rd.Batch(batch[:0])
		if err != nil {
			return err
		}
		for rest := batch; len(rest) > 0; {
			n := stanzas(rest)
			if n > 0 {
				in.s.metrics.carried(dirIn, n, size(rest[:n]))
				if err := in.s.handler.Stanzas(ctx, in.from, in.to, rest[:n], func() {}); err != nil {
					return fmt.Errorf("take stanzas: %w", err)
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
	case el.Is("urn:xmpp:sm:3", "enable"), el.Is("urn:xmpp:sm:2", "enable"):
		return in.send("<failed xmlns='%s'><feature-not-implemented xmlns='%s'/></failed>", el.XMLName.Space, nsStanzas)
	}
	return refuse(conditionUnknownStanza, "<%s/> is no stanza", el.XMLName.Local)
}
