package peertest

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"mellium.im/xmlstream"
)

// within bounds a test that would wait for ever where the code is broken.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func withID(id string) func(*Stanza) bool { return func(s *Stanza) bool { return s.ID == id } }

func TestInboxFindsPastAndFuture(t *testing.T) {
	in := newInbox()
	in.add(Stanza{ID: "past"})
	if s, err := in.Await(within(t), "past", withID("past")); err != nil || s.Seq != 1 {
		t.Fatalf("past: %+v, %v", s, err)
	}
	found := make(chan error)
	go func() {
		s, err := in.Await(within(t), "future", withID("future"))
		if err == nil && s.Seq != 2 {
			err = fmt.Errorf("future has number %d", s.Seq)
		}
		found <- err
	}()
	awaitWaiters(t, in, 1)
	in.add(Stanza{ID: "future"})
	if err := <-found; err != nil {
		t.Fatal(err)
	}
	awaitWaiters(t, in, 0)

	ctx, cancel := context.WithTimeout(within(t), time.Millisecond)
	defer cancel()
	_, err := in.AwaitAfter(ctx, in.Mark(), "the past again", withID("past"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the past again") || !strings.Contains(err.Error(), `id="future"`) {
		t.Errorf("what came before the mark is found, or the error does not tell: %v", err)
	}
	awaitWaiters(t, in, 0)
}

func awaitWaiters(t *testing.T, in *Inbox, n int) {
	t.Helper()
	err := poll(within(t), nil, func(context.Context) error {
		in.mu.Lock()
		defer in.mu.Unlock()
		if len(in.waiters) != n {
			return fmt.Errorf("%d waiters, want %d", len(in.waiters), n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// However many stanzas come, memory stays bounded and a waiter misses none.
func TestInboxFlood(t *testing.T) {
	in := newInbox()
	const flood = 5 * inboxSize
	ids := []string{"0", "77", fmt.Sprint(inboxSize + 1), fmt.Sprint(flood - 1)}
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			if s, err := in.Await(within(t), id, withID(id)); err != nil || s.ID != id {
				t.Errorf("await %s: %+v, %v", id, s, err)
			}
		})
	}
	awaitWaiters(t, in, len(ids))
	for i := range flood {
		in.add(Stanza{ID: fmt.Sprint(i)})
	}
	wg.Wait()
	got := in.Received()
	if len(got) != inboxSize || cap(in.ring) > 2*inboxSize {
		t.Fatalf("%d stanzas kept, room for %d", len(got), cap(in.ring))
	}
	for i, s := range got {
		if want := flood - inboxSize + i; s.ID != fmt.Sprint(want) || s.Seq != uint64(want+1) {
			t.Fatalf("kept stanza %d is %s, number %d; want %d", i, s.ID, s.Seq, want)
		}
	}
}

func TestInboxEnds(t *testing.T) {
	in := newInbox()
	why := errors.New("killed")
	got := make(chan error)
	go func() {
		_, err := in.Await(within(t), "never", withID("never"))
		got <- err
	}()
	awaitWaiters(t, in, 1)
	in.end(why)
	if err := <-got; !errors.Is(err, why) {
		t.Errorf("waiter at the end: %v", err)
	}
	if _, err := in.Await(within(t), "never", withID("never")); !errors.Is(err, why) {
		t.Errorf("waiter after the end: %v", err)
	}
}

// tokens is what mellium gives a handler: the element without its start.
type tokens struct {
	xml.TokenReader
	xmlstream.Encoder
}

func (tokens) EncodeToken(xml.Token) error { return errors.New("not for writing") }

func TestReadStanza(t *testing.T) {
	const text = `<message from='bob@b.grid' to='alice@a.grid/x' id='m1' type='error'><body>Hi &amp; bye</body>` +
		`<x xmlns='http://jabber.org/protocol/muc#user'><status code='110'/><status code='201'/></x><delay xmlns='urn:xmpp:delay'/>` +
		`<error type='wait' by='a.grid'><remote-server-timeout xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>` +
		`<text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>no link</text><other xmlns='x'/></error></message>`
	d := xml.NewDecoder(strings.NewReader(text))
	tok, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	start := tok.(xml.StartElement)
	s, err := readStanza(tokens{TokenReader: d}, &start)
	if err != nil {
		t.Fatal(err)
	}
	if s.Kind != "message" || s.From != "bob@b.grid" || s.To != "alice@a.grid/x" || s.ID != "m1" || s.Body != "Hi & bye" || !s.Delayed {
		t.Errorf("read %+v", s)
	}
	if !s.HasStatus(110) || !s.HasStatus(201) || s.HasStatus(100) {
		t.Errorf("status %v", s.Status)
	}
	if s.Error == nil || *s.Error != (StanzaError{"wait", "remote-server-timeout", "no link", "a.grid"}) {
		t.Errorf("error %+v", s.Error)
	}
}
