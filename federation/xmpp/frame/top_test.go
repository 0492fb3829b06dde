package frame_test

import (
	"fmt"
	"testing"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

func TestParseTop(t *testing.T) {
	for in, want := range map[string]string{
		string(chat):     "message from=alice@a.grid.test/gajim.4F2K to=bob@b.grid.test/conversations.x1 type=chat id=7d1f1b46-8a3b-4a8e-9d3e-3b1f1c2d4e5f",
		string(presence): "presence from=alice@a.grid.test/gajim.4F2K to=bob@b.grid.test type=- id=-",
		"<iq/>":          "iq from=- to=- type=- id=- empty",
		"<message\n to = \"d'artagnan&amp;co@b/x&#x20;y\"\tfrom=''/>": "message from= to=d'artagnan&co@b/x y type=- id=- empty",
		"<message xmlns='jabber:server' id='>'>":                      "message from=- to=- type=- id=>",
		"<message xmlns='jabber&#58;server'/>":                        "message from=- to=- type=- id=- empty",
		"<iq to='a\r\nb\tc'/>":                                        "iq from=- to=a b c type=- id=- empty",
		"<message xmlns:x='u' x:from='evil' from='good'></message>":   "message from=good to=- type=- id=-",
		"<db:result from='a' to='b'>k</db:result>":                    "other from=a to=b type=- id=-",
		"<x:message xmlns:x='jabber:server' from='a'/>":               "other from=a to=- type=- id=- empty",
		"<messages xmlns='urn:other'/>":                               "other from=- to=- type=- id=- empty",
	} {
		top, err := frame.ParseTop([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		got := fmt.Sprintf("%v from=%s to=%s type=%s id=%s", top.Kind, show(top.From), show(top.To), show(top.Type), show(top.ID))
		if top.Empty {
			got += " empty"
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", in, got, want)
		}
		if end := in[top.Len-1]; end != '>' {
			t.Errorf("%s: the first tag ends in %q", in, end)
		}
	}
}

func show(b []byte) string {
	if b == nil {
		return "-"
	}
	return string(b)
}

func TestParseTopRefuses(t *testing.T) {
	for in, want := range map[string]frame.Condition{
		"<message xmlns='jabber:client'/>": frame.InvalidNamespace,
		"<iq xmlns=''/>":                   frame.InvalidNamespace,
		"<message to='a' to='b'/>":         frame.NotWellFormed,
		"<message to='a' from='' from=''>": frame.NotWellFormed,
		"<message to='a":                   frame.NotWellFormed,
		"<message to":                      frame.NotWellFormed,
		"<message to='a' /":                frame.NotWellFormed,
		"<":                                frame.NotWellFormed,
		"":                                 frame.NotWellFormed,
		"message":                          frame.NotWellFormed,
	} {
		_, err := frame.ParseTop([]byte(in))
		wantCondition(t, err, want)
	}
}

func TestParseTopAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if _, err := frame.ParseTop(chat); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestJID(t *testing.T) {
	for jid, want := range map[string][4]string{
		"b.grid.test":                {"-", "b.grid.test", "-", "b.grid.test"},
		"bob@b.grid.test":            {"bob", "b.grid.test", "-", "bob@b.grid.test"},
		"bob@b.grid.test/x":          {"bob", "b.grid.test", "x", "bob@b.grid.test"},
		"b.grid.test/evil@a.test/ä":  {"-", "b.grid.test", "evil@a.test/ä", "b.grid.test"},
		"bob@b.grid.test/x@evil.net": {"bob", "b.grid.test", "x@evil.net", "bob@b.grid.test"},
		"a@b@c":                      {"a", "b@c", "-", "a@b@c"},
		"":                           {"-", "", "-", ""},
		"@/":                         {"", "", "", "@"},
	} {
		j := []byte(jid)
		if got := [4]string{show(frame.Local(j)), string(frame.Domain(j)), show(frame.Resource(j)), string(frame.Bare(j))}; got != want {
			t.Errorf("%s: %q, want %q", jid, got, want)
		}
	}
}

func TestErrorReply(t *testing.T) {
	for in, want := range map[string]string{
		"<message from='a@x' to='b@y' id='1' type='chat'><body>hi</body></message>":                    "<message from='b@y' to='a@x' id='1' type='error'><error by='gw' type='wait'><remote-server-timeout xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'>a &lt; b</text></error></message>",
		"<message from='a@x' to='b@y'/>":                                                               "message",
		"<message from='a@x' to='b@y' type='groupchat'/>":                                              "message",
		"<iq from='a@x' to='b@y' id='1' type='get'/>":                                                  "iq",
		"<iq from='a@x' to='b@y' id='1' type='set'/>":                                                  "iq",
		"<presence from='a@x' to='room@y/nick'><x xmlns='http://jabber.org/protocol/muc'/></presence>": "presence",
		"<presence from='a@x' to='b@y' type='subscribe'/>":                                             "presence",
		"<message from='a@x' to='b@y' type='error'/>":                                                  "",
		"<message from='a@x' to='b@y' type='&#101;rror'/>":                                             "",
		"<iq from='a@x' to='b@y' id='1' type='result'/>":                                               "",
		"<iq from='a@x' to='b@y' id='1' type='error'/>":                                                "",
		"<iq from='a@x' to='b@y' id='1'/>":                                                             "",
		"<presence from='a@x' to='b@y' type='error'/>":                                                 "",
		"<presence from='a@x' to='b@y' type='unavailable'/>":                                           "",
		"<message to='b@y'/>":                                                                          "",
		"<message from='a@x'/>":                                                                        "",
		"<db:result from='x' to='y'>k</db:result>":                                                     "",
		"<message xmlns='jabber:client' from='a@x' to='b@y'/>":                                         "",
		"not xml": "",
	} {
		got, ok := frame.ErrorReply([]byte(in), "remote-server-timeout", "wait", "a < b", "gw")
		switch {
		case ok != (want != ""):
			t.Errorf("%s: answered is %v", in, ok)
		case len(want) > 20 && string(got) != want:
			t.Errorf("%s:\n got %s\nwant %s", in, got, want)
		case ok:
			checkReply(t, in, got)
		}
	}
}

// checkReply: an error is itself a good stanza, swapped, and never answered.
func checkReply(t *testing.T, in string, reply []byte) {
	t.Helper()
	if err := frame.Check(reply, frame.Limits{}); err != nil {
		t.Errorf("%s: the reply is %v: %s", in, err, reply)
	}
	a, _ := frame.ParseTop([]byte(in))
	b, err := frame.ParseTop(reply)
	if err != nil || a.Kind != b.Kind || string(a.From) != string(b.To) || string(a.To) != string(b.From) || string(a.ID) != string(b.ID) || string(b.Type) != "error" {
		t.Errorf("%s: reply %s, %v", in, reply, err)
	}
	if again, ok := frame.ErrorReply(reply, "gone", "cancel", "", ""); ok {
		t.Errorf("a bounce is bounced: %s", again)
	}
}

func TestErrorReplyEscapes(t *testing.T) {
	in := `<iq type="get" id="'&lt;&#10;" from="o'neil@x/&quot;&gt;&amp;" to='b"@y'/>`
	got, ok := frame.ErrorReply([]byte(in), "gone", "cancel", "\x00'\xff\uffff<", `'"`)
	if !ok {
		t.Fatal("no answer")
	}
	checkReply(t, in, got)
}
