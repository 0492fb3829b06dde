package xmpp

import (
	"testing"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

func TestWorth(t *testing.T) {
	const (
		state   = "<composing xmlns='http://jabber.org/protocol/chatstates'/>"
		store   = "<store xmlns='urn:xmpp:hints'/>"
		noStore = "<no-store xmlns='urn:xmpp:hints'/>"
		noPerm  = "<no-permanent-store xmlns='urn:xmpp:hints'/>"
	)
	for _, c := range []struct {
		kind, children string
		want           worth
	}{
		{"chat", "<body>hi</body>", worthKeeping},
		{"", "<body/>", worthKeeping},
		{"groupchat", "<subject/>", worthKeeping},
		{"chat", "<body>hi</body>" + state, worthKeeping},
		{"chat", "<encrypted xmlns='eu.siacs.conversations.axolotl'/>" + store, worthKeeping},
		{"chat", "<encrypted xmlns='eu.siacs.conversations.axolotl'/>", worthKeeping},
		{"chat", "<encrypted xmlns='urn:xmpp:omemo:2'/>", worthKeeping},
		{"chat", "<openpgp xmlns='urn:xmpp:openpgp:0'>x</openpgp>", worthKeeping},
		{"chat", "<received xmlns='urn:xmpp:receipts' id='1'/>", worthKeeping},
		{"chat", "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>", worthKeeping},
		{"chat", "<replace xmlns='urn:xmpp:message-correct:0' id='1'/>", worthKeeping},
		{"chat", "<retract xmlns='urn:xmpp:message-retract:1' id='1'/>", worthKeeping},
		{"groupchat", "<reactions xmlns='urn:xmpp:reactions:0' id='1'/>", worthKeeping},
		{"", "<x xmlns='http://jabber.org/protocol/muc#user'><invite to='a'/></x>", worthKeeping},
		{"", "<x xmlns='jabber:x:conference' jid='room@a'/>", worthKeeping},
		{"chat", "<unheard-of xmlns='urn:example'/>", worthKeeping},
		{"chat", "<x:body xmlns:x='jabber:server'>hi</x:body>", worthKeeping},
		{"chat", state + "<body xmlns='urn:example'>hi</body>", worthKeeping},
		{"error", "", worthKeeping},
		{"error", state + noStore, worthKeeping},
		{"headline", "<body>hi</body>" + store, worthKeeping},
		{"chat", state + store, worthKeeping},
		{"chat", "<body>hi</body>" + noStore + store, worthKeeping},

		{"headline", "<body>hi</body>", worthAnError},
		{"chat", "<body>hi</body>" + noStore, worthAnError},
		{"chat", noPerm + "<body>hi</body>", worthAnError},
		{"chat", "<body>hi</body>" + noStore + state, worthAnError},
		{"chat", "", worthAnError},
		{"chat", "<thread>1</thread>", worthAnError},
		{"chat", "text", worthAnError},
		{"chat", "<origin-id xmlns='urn:xmpp:sid:0' id='1'/><private xmlns='urn:xmpp:carbons:2'/>", worthAnError},

		{"chat", state, worthNothing},
		{"groupchat", state, worthNothing},
		{"chat", state + "<thread>1</thread>" + noStore, worthNothing},
		{"chat", "<markable xmlns='urn:xmpp:chat-markers:0'/>" + state, worthNothing},
		{"chat", "<s:gone xmlns:s='http://jabber.org/protocol/chatstates'/>", worthNothing},
	} {
		stanza := []byte("<message type='" + c.kind + "' from='a@a.grid' to='b@b.grid'>" + c.children + "</message>")
		if err := frame.Check(stanza, frame.Limits{}); err != nil {
			t.Fatalf("%s: %v", stanza, err)
		}
		top, err := frame.ParseTop(stanza)
		if err != nil {
			t.Fatal(err)
		}
		if got := worthOf(&top, stanza); got != c.want {
			t.Errorf("%s is worth %d, want %d", stanza, got, c.want)
		}
		want := lane.Eph
		if c.want == worthKeeping {
			if want = lane.Chat; c.kind == "groupchat" {
				want = lane.Room
			}
		}
		if got := laneOf(&top, stanza); got != want {
			t.Errorf("%s goes to %s, want %s", stanza, got, want)
		}
	}
	for _, stanza := range []string{"<presence><body/></presence>", "<iq type='set'><body/></iq>", "<presence type='error'/>"} {
		if top, err := frame.ParseTop([]byte(stanza)); err != nil || laneOf(&top, []byte(stanza)) != lane.Eph {
			t.Errorf("%s is kept (%v)", stanza, err)
		}
	}
}
