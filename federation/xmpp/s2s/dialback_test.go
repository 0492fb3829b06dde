package s2s

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"testing"
)

// TestDialbackKey is the example of XEP-0185 §3.
func TestDialbackKey(t *testing.T) {
	var s dialbackSecret
	sum := sha256.Sum256([]byte("s3cr3tf0rd14lb4ck"))
	hex.Encode(s[:], sum[:])
	const want = "37c69b1cf07a3f67c04a5ef5902fa5114f2c76fe4a2686482ba5b89323075643"
	if got := s.key("xmpp.example.com", "example.org", "D60000229F"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !s.valid("xmpp.example.com", "example.org", "D60000229F", want) || s.valid("xmpp.example.com", "example.org", "D60000229E", want) {
		t.Error("a key is valid for its stream and for no other")
	}
}

// TestInboundDialbackRefused has somebody at the server's address who is not the
// server: its certificate proves nothing, and the real server denies the key.
func TestInboundDialbackRefused(t *testing.T) {
	g, _, gh, _ := couple(t, Config{CA: openCA(t), Servers: []Server{{Dialback: true}}}, Config{CA: openCA(t), Servers: []Server{{Dialback: true}}})
	const secured = starttls + `
		tls a.grid
		> HEADER(a.grid,b.grid)
		< <stream:features><dialback xmlns='urn:xmpp:features:dialback'>
		`
	stranger := openCA(t)
	dial(t, g, stranger).play(secured + `
		> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>YS5ncmlk</auth>
		< <failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>
		> <db:result from='a.grid' to='b.grid'>made up</db:result><message/>
		< <db:result from='b.grid' to='a.grid' type='invalid'/>
		< <not-authorized
		< ` + refused)
	if len(gh.got) > 0 {
		t.Error("taken without proof:", gh.got)
	}
}

func TestInboundDialbackServerGone(t *testing.T) {
	g := start(t, Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: freeAddr(), Dialback: true}}})
	dial(t, g, openCA(t)).play(starttls + `
		tls a.grid
		> HEADER(a.grid,b.grid)
		< <dialback
		> <db:result from='a.grid' to='b.grid'>made up</db:result>
		< <db:result from='b.grid' to='a.grid' type='error'><error type='cancel'><remote-connection-failed
		< ` + refused)
}

// TestInboundDialbackCutAfterwards has a server that hangs up as soon as it has said
// that the key is its own: it has said so all the same.
func TestInboundDialbackCutAfterwards(t *testing.T) {
	f, h := newFake(t), newRecorder()
	g := start(t, Config{CA: f.ca, Handler: h, Servers: []Server{{Addr: f.l.Addr().String(), Dialback: true}}})
	stranger := dial(t, g, openCA(t))
	stranger.play(starttls + `
		tls a.grid
		> HEADER(a.grid,b.grid)
		< <dialback
		> <db:result from='a.grid' to='b.grid'>key</db:result>`)
	call := f.accept()
	call.play(serving + "> HEADER(a.grid,b.grid)<stream:features/>\n< <db:verify from='b.grid' to='a.grid' id='")
	id := call.expect("'>key</db:verify>")
	call.send("<db:verify from='a.grid' to='b.grid' id='" + id + "' type='valid'/>")
	tcp := call.conn.(*tls.Conn).NetConn().(*net.TCPConn)
	if err := errors.Join(tcp.SetLinger(0), tcp.Close()); err != nil { // resets the connection
		t.Fatal(err)
	}
	stranger.play("< <db:result from='b.grid' to='a.grid' type='valid'/>\n> <message id='1'/>")
	h.received(t, "a.grid>b.grid <message id='1'/>")
}
