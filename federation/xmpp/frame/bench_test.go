package frame_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Stanzas of the shapes and sizes that servers exchange.
var (
	chat = []byte(`<message from='alice@a.grid.test/gajim.4F2K' to='bob@b.grid.test/conversations.x1' id='7d1f1b46-8a3b-4a8e-9d3e-3b1f1c2d4e5f' type='chat' xml:lang='en'><body>See you at the station at eight, and bring the map &amp; the lamp.</body><active xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/><origin-id xmlns='urn:xmpp:sid:0' id='7d1f1b46'/></message>`)

	presence = []byte(`<presence from='alice@a.grid.test/gajim.4F2K' to='bob@b.grid.test' xml:lang='en'><show>away</show><status>at lunch</status><priority>5</priority><c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://gajim.org' ver='QgayPKawpkPSDYmwT/WM94uAlu0='/><x xmlns='vcard-temp:x:update'><photo>01b87fcd030b72895ff8e88d</photo></x></presence>`)

	bigIQ = []byte(`<iq from='conference.a.grid.test' to='bob@b.grid.test/x' id='disco1' type='result'><query xmlns='http://jabber.org/protocol/disco#items'>` +
		strings.Repeat(`<item jid='room-of-many-people@conference.a.grid.test' name='A room with a longer name (12)'/>`, 220) + `</query></iq>`)
)

// endless repeats one piece of a stream for ever.
type endless struct {
	piece []byte
	at    int
}

func (e *endless) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c := copy(p[n:], e.piece[e.at:])
		e.at = (e.at + c) % len(e.piece)
		n += c
	}
	return n, nil
}

func benchmarkReader(b *testing.B, stanza []byte) {
	r := frame.NewReader(&endless{piece: bytes.Repeat(stanza, 64<<10/len(stanza)+1)}, frame.DefaultLimits())
	b.SetBytes(int64(len(stanza)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReaderChat(b *testing.B)     { benchmarkReader(b, chat) }
func BenchmarkReaderPresence(b *testing.B) { benchmarkReader(b, presence) }
func BenchmarkReaderBigIQ(b *testing.B)    { benchmarkReader(b, bigIQ) }

func BenchmarkBatchChat(b *testing.B) {
	r := frame.NewReader(&endless{piece: chat}, frame.DefaultLimits())
	var batch [][]byte
	b.SetBytes(int64(len(chat)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n-- {
		if n > 0 {
			continue
		}
		var err error
		if batch, err = r.Batch(batch[:0]); err != nil {
			b.Fatal(err)
		}
		n = len(batch)
	}
}

func BenchmarkCheckChat(b *testing.B) {
	b.SetBytes(int64(len(chat)))
	b.ReportAllocs()
	for b.Loop() {
		if err := frame.Check(chat, frame.DefaultLimits()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTopChat(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := frame.ParseTop(chat); err != nil {
			b.Fatal(err)
		}
	}
}
