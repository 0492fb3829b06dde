package xmpp

import (
	"time"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// delayAfter is how old a message must be to say so. Less than that is how long
// messages take, and clocks differ.
const delayAfter = 5 * time.Second

const nsDelay = "urn:xmpp:delay"

// stamped is what the local server is given of an item: a message that has waited
// says since when, in the name of the sender's domain, whose gateway took it
// (XEP-0203). What others have said of delays stays. A message that would grow
// beyond the limits is given as it is.
func (a *Adapter) stamped(it *lane.Item, top *frame.Top, domain string, now time.Time) []byte {
	if top.Kind != frame.Message || it.At.IsZero() || now.Sub(it.At) < delayAfter {
		return it.Body
	}
	for c := range frame.Children(it.Body) {
		if string(c.Name) == "delay" && string(c.Space) == nsDelay && string(c.Attr("from")) == domain {
			return it.Body // the sender's server has said so itself
		}
	}
	delay := make([]byte, 0, 96+len(domain))
	delay = append(delay, "<delay xmlns='"+nsDelay+"' from='"...)
	delay = frame.AppendEscaped(delay, []byte(domain))
	delay = append(delay, "' stamp='"...)
	delay = it.At.UTC().AppendFormat(delay, "2006-01-02T15:04:05.000Z") // XEP-0082 §3.2
	delay = append(delay, "'/>"...)
	out, err := frame.AppendChild(it.Body, delay)
	if err != nil || len(out) > a.cfg.Limits.Stanza {
		return it.Body
	}
	return out
}
