package peertest

import (
	"context"
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"mellium.im/xmlstream"
)

// inboxSize is how many received stanzas a client remembers.
const inboxSize = 4096

// Stanza is a received message or presence.
type Stanza struct {
	// Seq counts the stanzas of a session from 1. Time is when it was read.
	Seq  uint64
	Time time.Time

	Kind     string // "message" or "presence"
	From, To string
	ID, Type string
	Body     string
	Subject  *string
	// Status are the codes of XEP-0045 §15.6.
	Status []int
	// Delayed says that the stanza carries a delay (XEP-0203).
	Delayed bool
	// Error is set on stanzas of type error.
	Error *StanzaError
}

// HasStatus says whether a MUC status code is on the stanza.
func (s *Stanza) HasStatus(code int) bool { return slices.Contains(s.Status, code) }

func (s *Stanza) String() string {
	text := fmt.Sprintf("<%s from=%q type=%q id=%q>", s.Kind, s.From, s.Type, s.ID)
	if len(s.Status) > 0 {
		text += fmt.Sprintf(" status %d", s.Status)
	}
	if s.Body != "" {
		text += fmt.Sprintf(" body %.60q", s.Body)
	}
	if s.Error != nil {
		text += " error " + s.Error.Error()
	}
	return text
}

// StanzaError is the error of a stanza (RFC 6120 §8.3).
type StanzaError struct {
	Type, Condition, Text, By string
}

func (e *StanzaError) Error() string {
	s := e.Type + ": " + e.Condition
	if e.Text != "" {
		s += ": " + e.Text
	}
	return s
}

// incoming is what is read of a stanza.
type incoming struct {
	From    string  `xml:"from,attr"`
	To      string  `xml:"to,attr"`
	ID      string  `xml:"id,attr"`
	Type    string  `xml:"type,attr"`
	Body    string  `xml:"body"`
	Subject *string `xml:"subject"`
	MUC     struct {
		Status []struct {
			Code int `xml:"code,attr"`
		} `xml:"status"`
	} `xml:"http://jabber.org/protocol/muc#user x"`
	Delay *struct{} `xml:"urn:xmpp:delay delay"`
	Error *struct {
		Type  string `xml:"type,attr"`
		By    string `xml:"by,attr"`
		Parts []struct {
			XMLName xml.Name
			Text    string `xml:",chardata"`
		} `xml:",any"`
	} `xml:"error"`
}

func readStanza(r xmlstream.TokenReadEncoder, start *xml.StartElement) (Stanza, error) {
	var in incoming
	// The reader has the rest of the element only.
	if err := xml.NewTokenDecoder(xmlstream.MultiReader(xmlstream.Token(*start), r)).Decode(&in); err != nil {
		return Stanza{}, fmt.Errorf("read %s: %w", start.Name.Local, err)
	}
	s := Stanza{
		Time: time.Now(), Kind: start.Name.Local, From: in.From, To: in.To, ID: in.ID, Type: in.Type,
		Body: in.Body, Subject: in.Subject, Delayed: in.Delay != nil,
	}
	for _, st := range in.MUC.Status {
		s.Status = append(s.Status, st.Code)
	}
	if in.Error != nil {
		s.Error = &StanzaError{Type: in.Error.Type, By: in.Error.By}
		for _, p := range in.Error.Parts {
			switch {
			case p.XMLName.Space != "urn:ietf:params:xml:ns:xmpp-stanzas":
			case p.XMLName.Local == "text":
				s.Error.Text = p.Text
			default:
				s.Error.Condition = p.XMLName.Local
			}
		}
	}
	return s, nil
}

// Inbox holds the messages and presences that an XMPP session has received.
type Inbox = inbox[Stanza, *Stanza]

func newInbox() *Inbox { return &Inbox{waiters: map[*waiter[Stanza]]struct{}{}} }

func (s *Stanza) place() *uint64 { return &s.Seq }

// item is what an inbox holds. It keeps its place, counted from 1, and says in
// errors what it is.
type item[T any] interface {
	*T
	place() *uint64
	String() string
}

// inbox is what a session has received, the last inboxSize items of it.
type inbox[T any, P item[T]] struct {
	mu      sync.Mutex
	seq     uint64
	ring    []T
	waiters map[*waiter[T]]struct{}
	ended   error
}

type waiter[T any] struct {
	match func(*T) bool
	found chan T     // buffered
	ended chan error // buffered
}

// Mark returns the place after the item received last.
func (in *inbox[T, P]) Mark() uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.seq
}

// Await returns the first item, already received or yet to come, for which
// match is true. match must not call the client. what names it in the error when
// ctx or the session ends.
func (in *inbox[T, P]) Await(ctx context.Context, what string, match func(*T) bool) (item T, err error) {
	return in.AwaitAfter(ctx, 0, what, match)
}

// AwaitAfter is Await for what came after a Mark.
func (in *inbox[T, P]) AwaitAfter(ctx context.Context, mark uint64, what string, match func(*T) bool) (item T, err error) {
	w := &waiter[T]{match: match, found: make(chan T, 1), ended: make(chan error, 1)}
	in.mu.Lock()
	for i := range in.ring {
		if s := &in.ring[(int(in.seq)+i)%len(in.ring)]; *P(s).place() > mark && match(s) {
			in.mu.Unlock()
			return *s, nil
		}
	}
	ended := in.ended
	if ended == nil {
		// New items are shown to the waiter as they are added, so that none
		// is missed however many come.
		in.waiters[w] = struct{}{}
	}
	in.mu.Unlock()
	if ended != nil {
		return item, fmt.Errorf("await %s: %w", what, ended)
	}
	defer func() {
		in.mu.Lock()
		delete(in.waiters, w)
		in.mu.Unlock()
	}()
	select {
	case s := <-w.found:
		return s, nil
	case err := <-w.ended:
		return item, fmt.Errorf("await %s: %w", what, err)
	case <-ctx.Done():
		return item, fmt.Errorf("await %s: %w; received last:\n%s", what, context.Cause(ctx), in.last(8))
	}
}

// Received returns the remembered items, oldest first.
func (in *inbox[T, P]) Received() []T {
	in.mu.Lock()
	defer in.mu.Unlock()
	out := make([]T, 0, len(in.ring))
	for i := range in.ring {
		out = append(out, in.ring[(int(in.seq)+i)%len(in.ring)])
	}
	return out
}

func (in *inbox[T, P]) last(n int) string {
	all := in.Received()
	if len(all) == 0 {
		return "  nothing"
	}
	var b strings.Builder
	for _, s := range all[max(0, len(all)-n):] {
		fmt.Fprintf(&b, "  %s\n", P(&s).String())
	}
	return b.String()
}

func (in *inbox[T, P]) add(s T) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.seq++
	*P(&s).place() = in.seq
	if len(in.ring) < inboxSize {
		in.ring = append(in.ring, s)
	} else {
		in.ring[(in.seq-1)%inboxSize] = s
	}
	for w := range in.waiters {
		if w.match(&s) {
			w.found <- s
			delete(in.waiters, w)
		}
	}
}

func (in *inbox[T, P]) end(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = err
	for w := range in.waiters {
		w.ended <- err
		delete(in.waiters, w)
	}
}
