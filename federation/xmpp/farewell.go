package xmpp

import (
	"context"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/yggate/yggate/federation/lane"
)

// Who says goodbye in a room and leaves it must not be gone before the goodbye is
// there, or the room refuses it: the message goes by way of two disks, presence
// overtakes it. So "unavailable" that follows durable messages on its stream within
// farewellSpan names the last of them in Item.Conv, one for each durable lane, and
// the peer's gateway holds it until it has handed these to its server.
//
// It is held for farewellWait at most. When that has passed in vain for a pair of
// domains (the server is slow, or the gateway has restarted in between), nothing of
// the pair is held again before a message of it has been handed: a backlog does not
// hold up presence. What is promised is thus the order of a goodbye in normal
// traffic. A message that waits, because the peer or its server is away, is
// overtaken by presence: then the room has lost that occupant anyway, and the
// sender is told that the room refused the message.
//
// A held presence holds up what the same peer sends behind it on lane.Eph, so that
// presence keeps its own order and the memory for this is fixed.
const (
	farewellSpan = 10 * time.Second
	farewellWait = time.Second
	afterPrefix  = "after"
)

// mark tells messages apart well enough for this. It must be the same on both
// sides.
type mark [8]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func markOf(stanza []byte) (m mark) {
	sum, n := crc32.Checksum(stanza, castagnoli), uint32(len(stanza))
	for i := range 4 {
		m[i], m[4+i] = byte(sum>>(8*i)), byte(n>>(8*i))
	}
	return m
}

// said knows the last durable message of each stream.
type said struct {
	mu   sync.Mutex
	last map[pair]map[lane.Name]lastSaid
}

type lastSaid struct {
	mark mark
	at   time.Time
}

// note remembers a message that is about to be put on a durable lane.
func (s *said) note(p pair, on lane.Name, stanza []byte, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == nil {
		s.last = map[pair]map[lane.Name]lastSaid{}
	}
	if s.last[p] == nil { // as many as there are pairs of domains with streams
		s.last[p] = map[lane.Name]lastSaid{}
	}
	s.last[p][on] = lastSaid{markOf(stanza), now}
}

// after is what Item.Conv says for a presence that must not overtake what was
// said on its stream; empty where there is nothing.
func (s *said) after(p pair, now time.Time) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	conv := ""
	for _, on := range []lane.Name{lane.Chat, lane.Room} {
		if l, ok := s.last[p][on]; ok && now.Sub(l.at) < farewellSpan {
			conv += " " + hex.EncodeToString(l.mark[:])
		}
	}
	if conv == "" {
		return ""
	}
	return afterPrefix + conv
}

// marksAfter reads what after wrote. Of anything else it makes nothing.
func marksAfter(conv string) (marks []mark) {
	words := strings.Fields(conv[:min(len(conv), 64)])
	if len(words) == 0 || words[0] != afterPrefix {
		return nil
	}
	for _, w := range words[1:] {
		var m mark
		if b, err := hex.DecodeString(w); err == nil && len(b) == len(m) {
			marks = append(marks, mark(b))
		}
	}
	return marks
}

// handedMarks are how many of the newest messages from a peer are remembered,
// some seconds' worth.
const handedMarks = 4096

// handed knows which durable messages of the peer its server has.
type handed struct {
	mu    sync.Mutex
	known map[mark]struct{}
	ring  []mark // of known, for forgetting the oldest
	next  int
	slow  map[pair]bool // a presence has waited in vain
	more  chan struct{} // closed when something is added; nil while nobody waits
}

// add remembers messages that the local server has, or that were answered.
func (h *handed) add(p pair, items []lane.Item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.known == nil {
		h.known = map[mark]struct{}{}
	}
	for i := range items {
		m := markOf(items[i].Body)
		if len(h.ring) < handedMarks {
			h.ring = append(h.ring, m)
		} else {
			delete(h.known, h.ring[h.next])
			h.ring[h.next] = m
			h.next = (h.next + 1) % handedMarks
		}
		h.known[m] = struct{}{}
	}
	delete(h.slow, p)
	if h.more != nil {
		close(h.more)
		h.more = nil
	}
}

// await returns when all of these messages were handed, or it is no use to wait
// any longer.
func (h *handed) await(ctx context.Context, p pair, marks []mark) {
	timer := time.NewTimer(farewellWait)
	defer timer.Stop()
	for {
		more := h.missing(p, marks)
		if more == nil {
			return
		}
		select {
		case <-more:
		case <-timer.C:
			h.mu.Lock()
			if h.slow == nil {
				h.slow = map[pair]bool{}
			}
			h.slow[p] = true // as many as there are pairs of domains
			h.mu.Unlock()
			return
		case <-ctx.Done():
			return
		}
	}
}

// missing returns what to wait on, or nil.
func (h *handed) missing(p pair, marks []mark) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := func(m mark) bool { _, ok := h.known[m]; return ok }
	if h.slow[p] || !slices.ContainsFunc(marks, func(m mark) bool { return !known(m) }) {
		return nil
	}
	if h.more == nil {
		h.more = make(chan struct{})
	}
	return h.more
}
