package main

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
)

// story is what happens to the messages of one conversation.
type story struct {
	l    *ledger
	a, b *site
	life uint64
}

func newStory(t *testing.T, messages uint32) *story {
	t.Helper()
	a, b := &site{name: "a", domain: "a.grid"}, &site{name: "b", domain: "b.grid"}
	s := &story{l: newLedger([]*way{{from: a, to: b, fromDomain: "a.grid", toDomain: "b.grid", kind: "chat"}}, 1), a: a, b: b}
	if _, ok := s.l.take(t.Context(), 0, 0, messages, 1); !ok {
		t.Fatal("no messages")
	}
	return s
}

func (s *story) ack(first uint32, n int) *story {
	s.l.ack(0, 0, first, n)
	return s
}

func (s *story) arrive(seqs ...uint32) *story {
	for _, seq := range seqs {
		s.l.note(received{name: name{seq: seq}}, s.b, s.life)
	}
	return s
}

func (s *story) tell(seqs ...uint32) *story {
	for _, seq := range seqs {
		s.l.note(received{name: name{seq: seq}, told: true}, s.a, s.life)
	}
	return s
}

func (s *story) restart() *story {
	s.life++
	return s
}

func TestLedger(t *testing.T) {
	for what, c := range map[string]struct {
		play func(*story)
		want counts
	}{
		"all well":                      {func(s *story) { s.ack(0, 4).arrive(0, 1, 2, 3) }, counts{arrived: 4}},
		"acknowledged after arrival":    {func(s *story) { s.arrive(0, 1, 2, 3).ack(0, 4) }, counts{arrived: 4}},
		"lost":                          {func(s *story) { s.ack(0, 4).arrive(0, 1, 3) }, counts{arrived: 3, pending: 1}},
		"lost, but never acknowledged":  {func(s *story) { s.ack(0, 2).arrive(0, 1, 3) }, counts{arrived: 3}},
		"told":                          {func(s *story) { s.ack(0, 4).arrive(0, 1).tell(2, 3) }, counts{arrived: 2, told: 2}},
		"told, never acknowledged":      {func(s *story) { s.ack(0, 2).arrive(0, 1).tell(2, 3) }, counts{arrived: 2, told: 2}},
		"twice in one life":             {func(s *story) { s.ack(0, 4).arrive(0, 1, 2, 2, 3) }, counts{arrived: 4, dup: 1}},
		"twice, the second time late":   {func(s *story) { s.ack(0, 4).arrive(0, 1, 2, 3, 0) }, counts{arrived: 4, dup: 1}},
		"handed again after a restart":  {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).restart().arrive(1, 2, 3) }, counts{arrived: 4, repeated: 2, most: 2}},
		"handed again two lives later":  {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).restart().restart().arrive(2, 3) }, counts{arrived: 4, repeated: 1, most: 1}},
		"handed again in two lives":     {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).restart().arrive(1, 2).restart().arrive(2, 3) }, counts{arrived: 4, repeated: 3, most: 2}},
		"again behind something new":    {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).restart().arrive(3, 2) }, counts{arrived: 4, dup: 1}},
		"again and again after restart": {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).restart().arrive(2, 2, 3) }, counts{arrived: 4, repeated: 1, most: 1, dup: 1}},
		"out of order":                  {func(s *story) { s.ack(0, 4).arrive(0, 2, 1, 3) }, counts{arrived: 4, reordered: 1}},
		"out of order over a restart":   {func(s *story) { s.ack(0, 4).arrive(0, 2).restart().arrive(1, 3) }, counts{arrived: 4, reordered: 1}},
		"a gap of what was not kept":    {func(s *story) { s.ack(0, 1).ack(3, 1).arrive(0, 3) }, counts{arrived: 2}},
		"told, then arrived":            {func(s *story) { s.ack(0, 4).tell(3).arrive(0, 1, 2, 3) }, counts{arrived: 4, told: 1, dup: 1, both: 1}},
		"arrived, then told":            {func(s *story) { s.ack(0, 4).arrive(0, 1, 2, 3).tell(3) }, counts{arrived: 4, told: 1, dup: 1, both: 1}},
		"told twice in one life":        {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).tell(3, 3) }, counts{arrived: 3, told: 1, dup: 1}},
		"told again after a restart":    {func(s *story) { s.ack(0, 4).arrive(0, 1, 2).tell(3).restart().tell(3) }, counts{arrived: 3, told: 1, repeated: 1}},
		"another text":                  {func(s *story) { s.l.note(received{wrong: true}, s.b, 0) }, counts{wrong: 1}},
		"at the wrong side":             {func(s *story) { s.l.note(received{}, s.a, 0) }, counts{wrong: 1}},
		"never sent":                    {func(s *story) { s.arrive(4) }, counts{wrong: 1}},
		"of no conversation":            {func(s *story) { s.l.note(received{name: name{conv: 7}}, s.b, 0) }, counts{wrong: 1}},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStory(t, 4)
			c.play(s)
			got, _ := s.l.now()
			got.sent, got.acked = 0, 0
			if got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if pending := s.l.ways[0].pending; pending != got.pending {
				t.Errorf("the way has %d under way, all ways have %d", pending, got.pending)
			}
		})
	}
}

func TestLedgerExplains(t *testing.T) {
	s := newStory(t, 100)
	s.ack(0, 90).arrive(0, 5, 6).tell(7)
	var out strings.Builder
	s.l.explain(&out)
	for _, want := range []string{"conversation 0, 1 to 4,", "conversation 0, 8 to 89,"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "lost:"); n != 2 {
		t.Errorf("%d runs are told, want 2:\n%s", n, out.String())
	}
}

func TestLedgerHoldsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStory(t, 10)
		s.ack(0, 10)
		got := make(chan bool, 1)
		take := func(ctx context.Context) {
			_, ok := s.l.take(ctx, 0, 0, 1, 10)
			got <- ok
		}
		go take(t.Context())
		synctest.Wait()
		if len(got) > 0 {
			t.Fatal("more messages were given out than may be under way")
		}
		s.arrive(0)
		synctest.Wait()
		if len(got) == 0 || !<-got {
			t.Fatal("no message was given out although there is room")
		}
		s.ack(10, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go take(ctx)
		synctest.Wait()
		cancel()
		synctest.Wait()
		if len(got) == 0 || <-got {
			t.Fatal("the wait for room does not end with its context")
		}
	})
}
