package session

import (
	"container/list"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestReleasedAgain has brokers repeat what they have released, in the same life of
// the process and in others; and use ids again in their own ways.
func TestReleasedAgain(t *testing.T) {
	const (
		up      = "accept\n< 10*\n> 20 03 01 00 00\n"
		first   = "> 34 06 00 01 74 00 07 00\n< 50 02 00 07\n"
		again   = "> 3c 06 00 01 74 00 07 00\n< 50 02 00 07\n"
		other   = "> 3c 06 00 01 75 00 07 00\n< 50 02 00 07\n"
		release = "> 62 02 00 07\n< 70 02 00 07\n"
		unknown = "> 62 02 00 07\n< 70 03 00 07 92\n"
		qos1    = "> 32 06 00 01 74 00 08 00\n< 40 02 00 08\n"
	)
	for name, c := range map[string]struct {
		want  string // a letter for each UID, in the order of arrival at QoS 2
		lives []string
	}{
		"same life":               {"aa", []string{up + first + release + "close\n" + up + again + release}},
		"next life":               {"aa", []string{up + first + release, up + again + release}},
		"again and again":         {"aaaa", []string{up + first + release, up + again, up + again + release, up + again}},
		"released to a stranger":  {"aa", []string{up + first, up + unknown, up + release, up + again + release}},
		"another message":         {"ab", []string{up + first + release, up + other + release}},
		"the id after a repeat":   {"aab", []string{up + first + release, up + again + release, up + first}},
		"older state":             {"abb", []string{up + first + release, up + first, up + again + release}},
		"long ago":                {"ab", []string{up + first + release + strings.Repeat(qos1, recentMost) + "close\n" + up + again}},
		"long ago, next life":     {"ab", []string{up + first + release + strings.Repeat(qos1, recentMost+noteTurn), up + again}},
		"not so long ago":         {"aa", []string{up + first + release + strings.Repeat(qos1, recentMost-1) + "close\n" + up + again}},
		"ids not in turn":         {"abcd", []string{up + first + release + first + release + "close\n" + up + again + release, up + again}},
		"another, then a repeat":  {"abb", []string{up + first + "close\n" + up + other + release, up + other}},
		"not in turn, in flight":  {"abb", []string{up + first + release + first, up + again + release}},
		"not in turn, a stranger": {"abc", []string{up + first + release + first, up + unknown + first}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			journal, got, letters := newMemory(), "", map[string]string{}
			for i, script := range c.lives {
				t.Run(fmt.Sprint("life ", i), func(t *testing.T) {
					d := newDialogue(t, Config{Journal: journal})
					d.play(script)
					for len(d.got) > 0 {
						m := <-d.got
						if m.QoS != 2 {
							continue
						}
						if letters[string(m.UID)] == "" {
							letters[string(m.UID)] = string(rune('a' + len(letters)))
						}
						got += letters[string(m.UID)]
					}
				})
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// TestOverdue: acknowledgements that lay unread while a connection was not read are not
// the broker's fault.
func TestOverdue(t *testing.T) {
	now := time.Now()
	s, c := &Session{cfg: Config{AckTimeout: time.Minute}}, &conn{}
	s.out.flying = list.New()
	s.out.flying.PushBack(&flight{on: c, step: sent, at: now.Add(-time.Hour)})
	if !s.overdue(c, now) {
		t.Error("an hour without an acknowledgement is not too long")
	}
	c.resumed.Store(now.Add(-time.Second).UnixNano())
	if s.overdue(c, now) {
		t.Error("a connection that was not read until just now is given up")
	}
	if !s.overdue(c, now.Add(2*time.Minute)) {
		t.Error("it is never given up any more")
	}
}
