package xmpp

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// What the adapter itself costs for one stanza, with both neighbours taken out.

func chat(from, to string) []byte {
	return fmt.Appendf(nil, "<message from='%s' to='%s' type='chat' id='3f9c6a52-7d7e-4d0a-9a53-2f1c5b0e5d11' xml:lang='en'>"+
		"<body>%s</body><active xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/></message>",
		from, to, strings.Repeat("some words ", 12))
}

func presenceOf(from, to string) []byte {
	return fmt.Appendf(nil, "<presence from='%s' to='%s' xml:lang='en'><show>away</show><status>lunch</status><priority>5</priority>"+
		"<c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='https://client.example' ver='q07IKJEyjvHSyhy//CH0CxmKi8w='/>"+
		"<x xmlns='vcard-temp:x:update'><photo>sha1-hash-of-image</photo></x></presence>", from, to)
}

func benchAdapter(b *testing.B) *Adapter {
	w := &world{dir: federation.NewDirectory()}
	w.publish(nil)
	a, err := New(Config{Directory: w.dir})
	if err != nil {
		b.Fatal(err)
	}
	sent := senderFunc(func(federation.GridID, []lane.Item) error { return nil })
	a.Connect(sent, sent, localFunc(func(context.Context, string, string, ...[]byte) error { return nil }))
	a.PeerUp("bob", 1)
	return a
}

func BenchmarkStanzas(b *testing.B) {
	for _, c := range []struct {
		name   string
		stanza []byte
		batch  int
	}{
		{"chat", chat("alice@a.grid/laptop", "bob@b.grid/phone"), 1},
		{"chat16", chat("alice@a.grid/laptop", "bob@b.grid/phone"), 16},
		{"presence", presenceOf("alice@a.grid/laptop", "bob@b.grid"), 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			a := benchAdapter(b)
			batch := make([][]byte, c.batch)
			for i := range batch {
				batch[i] = c.stanza
			}
			b.SetBytes(int64(len(c.stanza) * c.batch))
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Stanzas(b.Context(), "a.grid", "b.grid", batch, func() {}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.batch), "ns/stanza")
		})
	}
}

func BenchmarkDeliver(b *testing.B) {
	for _, c := range []struct {
		name   string
		stanza []byte
	}{
		{"chat", chat("bob@b.grid/phone", "alice@a.grid/laptop")},
		{"presence", presenceOf("bob@b.grid/phone", "alice@a.grid")},
	} {
		b.Run(c.name, func(b *testing.B) {
			a := benchAdapter(b)
			bob := a.cfg.Directory.Now().Peer("bob")
			b.SetBytes(int64(len(c.stanza)))
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Deliver(b.Context(), bob, lane.Item{Kind: federation.XMPP, Body: c.stanza}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
