package main

import (
	"strings"
	"testing"
)

func TestMessage(t *testing.T) {
	w := &way{fromDomain: "a.grid", toDomain: "b.grid", kind: "chat"}
	n := name{way: 2, conv: 3, seq: 4567}
	sent := string(w.message(n))
	change := func(old, new string) string {
		if !strings.Contains(sent, old) {
			t.Fatalf("%q is not in %s", old, sent)
		}
		return strings.Replace(sent, old, new, 1)
	}
	for what, c := range map[string]struct {
		stanza string
		want   received
		not    bool
	}{
		"as sent":         {stanza: sent, want: received{name: n}},
		"delayed":         {stanza: change("</message>", "<delay xmlns='urn:xmpp:delay' stamp='2026-01-01T00:00:00Z'/></message>"), want: received{name: n}},
		"other quotes":    {stanza: change("id='2-3-4567'", `id="2-3-4567"`), want: received{name: n}},
		"another text":    {stanza: change("<body>2-3-4567", "<body>2-3-4568"), want: received{name: n, wrong: true}},
		"a shorter text":  {stanza: change("x</body>", "</body>"), want: received{name: n, wrong: true}},
		"an error":        {stanza: "<message from='u3@b.grid' to='u3@a.grid/desk' id='2-3-4567' type='error'><error type='wait'/></message>", want: received{name: n, told: true}},
		"presence":        {stanza: "<presence id='2-3-4567'/>", not: true},
		"of someone else": {stanza: "<message id='pt-1'><body>hello</body></message>", not: true},
		"without an id":   {stanza: "<message type='chat'><body>hello</body></message>", not: true},
	} {
		t.Run(what, func(t *testing.T) {
			got, ok := read([]byte(c.stanza))
			if ok == c.not || ok && got != c.want {
				t.Errorf("got %+v %v, want %+v %v", got, ok, c.want, !c.not)
			}
		})
	}
}
