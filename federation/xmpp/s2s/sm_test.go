package s2s

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// holder keeps what a handler is to call when a batch is settled.
type holder chan func()

func (h holder) keep(settled func()) { h <- settled }

// managedServer is a gateway whose handler settles when the test says so.
func managedServer(t *testing.T, limits Limits) (*dialogue, *recorder, holder) {
	t.Helper()
	ca, h, held := openCA(t), newRecorder(), make(holder, 100)
	h.settle = held.keep
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}, Limits: limits})
	return dial(t, g, ca), h, held
}

const request = "> <r xmlns='urn:xmpp:sm:3'/>\n"

func acked(h int) string { return fmt.Sprintf("< <a xmlns='urn:xmpp:sm:3' h='%d'/>\n", h) }

// settle calls back for the next batches, which the gateway takes one at a time.
func (d *dialogue) settle(held holder, n int) {
	d.t.Helper()
	for range n {
		select {
		case settled := <-held:
			settled()
		case <-time.After(patience):
			d.t.Fatal("no batch was taken")
		}
	}
}

// TestManagedInbound acknowledges what is settled and nothing else.
func TestManagedInbound(t *testing.T) {
	d, h, held := managedServer(t, Limits{})
	d.play(authenticated + "> <message id='0'/>") // does not count
	h.received(t, "'0'")
	d.play("> <enable xmlns='urn:xmpp:sm:3' resume='true'/>\n< <enabled xmlns='urn:xmpp:sm:3'/>\n" + request + acked(0))
	d.play("> <message id='1'/><message id='2'/>")
	h.received(t, "'2'")
	d.settle(held, 1) // of the stanza that does not count
	d.play(request)
	d.settle(held, 1)
	for len(held) > 0 { // if they came as two batches
		d.settle(held, 1)
	}
	d.play(acked(2))
	d.play(request + acked(2) + "> </stream:stream>\n" + acked(2) + "< </stream:stream>\nend")
}

// TestSkippedInbound has a server send stanzas beyond each limit: the handler gets the
// first tag of each, in its place between the others, and they count like those.
func TestSkippedInbound(t *testing.T) {
	d, h, held := managedServer(t, Limits{Stanza: 20_000})
	end := "</body></message>"
	large := "<message id='2'><body>" // the largest that is read over
	large += strings.Repeat("x", maxSkipped-len(large)-len(end)) + end
	attrs := "<iq id='3' "
	for i := range 70 {
		attrs += fmt.Sprintf("a%d='' ", i)
	}
	d.play(enabled)
	d.send("<message id='1'/><message id='deep'>" + nested + "</message>" + large + attrs + "/><presence id='4'/>")
	h.received(t, "<presence id='4'/>")
	want := []string{
		"<message id='1'/>", "<message id='deep'>elements nested deeper than 64",
		"<message id='2'>an element is larger than 20000 bytes", attrs + "/>more than 64 attributes", "<presence id='4'/>",
	}
	h.mu.Lock()
	for i, s := range h.got {
		if i >= len(want) || s != "a.grid>b.grid "+want[i] {
			t.Errorf("stanza %d: %.200q", i, s)
		}
	}
	h.mu.Unlock()
	d.settle(held, 5)
	d.play(request + acked(5))
}

// TestSkippedInboundIsBounded has a server send what is larger than that.
func TestSkippedInboundIsBounded(t *testing.T) {
	d, h, _ := managedServer(t, Limits{Stanza: 20_000})
	d.play(authenticated)
	go func() {
		_, _ = d.conn.Write([]byte("<message id='1'/><message id='2'>" + strings.Repeat("x", maxSkipped+1))) // until it is refused
	}()
	d.play("< <policy-violation \n< larger than 20000 bytes\n< </stream:error></stream:stream>")
	if len(h.got) != 1 {
		t.Errorf("got %.200q", h.got)
	}
}

// TestManagedInboundCloses has a server that closes its stream while its stanza is
// not settled yet.
func TestManagedInboundCloses(t *testing.T) {
	d, h, held := managedServer(t, Limits{})
	d.play(enabled + "> <message id='1'/></stream:stream>")
	h.received(t, "'1'")
	d.settle(held, 1)
	d.play(acked(1) + "< </stream:stream>\nend")
}

// TestManagedInboundStops has the gateway end while a stanza is not settled yet.
func TestManagedInboundStops(t *testing.T) {
	ca, h, held := openCA(t), newRecorder(), make(holder, 1)
	h.settle = held.keep
	stop, ended, g := runStoppable(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}})
	d := dial(t, g, ca)
	d.play(enabled + "> <message id='1'/>")
	h.received(t, "'1'")
	stop()
	d.settle(held, 1)
	d.play(acked(1) + "< <system-shutdown \n< " + refused)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestManagedInboundIsBounded has a handler that settles nothing: the gateway
// stops reading, and goes on when it does.
func TestManagedInboundIsBounded(t *testing.T) {
	d, h, held := managedServer(t, Limits{Unsettled: 200_000})
	d.play(enabled)
	sent := d.flood()
	if len(held) > 3 {
		t.Errorf("%d batches of 60 KB are unsettled, want at most 200 KB", len(held))
	}
	var settler sync.WaitGroup
	settler.Go(func() {
		for {
			select {
			case settled := <-held:
				settled()
			case <-t.Context().Done():
				return
			}
		}
	})
	t.Cleanup(settler.Wait)
	h.wait(t, func(got, _ []string) bool { return len(got) >= sent })
}

// TestMisuse is what XEP-0198 does not allow, and our answers.
func TestMisuse(t *testing.T) {
	ca := openCA(t)
	g := start(t, Config{CA: ca, Handler: newRecorder(), Servers: []Server{{Addr: freeAddr()}}})
	const failed = "< <failed xmlns='urn:xmpp:sm:3'>"
	for name, script := range map[string]string{
		"before authentication": secured + "> <enable xmlns='urn:xmpp:sm:3'/>\n< <not-authorized \n< " + refused,
		"r before enable":       authenticated + request + failed + "<unexpected-request ",
		"a before enable":       authenticated + "> <a xmlns='urn:xmpp:sm:3' h='0'/>\n" + failed + "<unexpected-request ",
		"enable twice":          enabled + "> <enable xmlns='urn:xmpp:sm:3'/>\n< <policy-violation \n< " + refused,
		"resume":                enabled + "> <resume xmlns='urn:xmpp:sm:3' previd='x' h='1'/>\n" + failed + "<feature-not-implemented ",
		"enabled":               authenticated + "> <enabled xmlns='urn:xmpp:sm:3'/>\n< <unsupported-stanza-type \n< " + refused,
		"nonsense":              enabled + "> <x xmlns='urn:xmpp:sm:3'/>\n< <unsupported-stanza-type \n< " + refused,
		"another version":       authenticated + "> <enable xmlns='urn:xmpp:sm:1'/>\n< <unsupported-stanza-type \n< " + refused,
		"a of nothing":          enabled + "> <a xmlns='urn:xmpp:sm:3' h='0'/>\n" + request + acked(0),
		"a without h":           enabled + "> <a xmlns='urn:xmpp:sm:3'/>\n< <invalid-xml \n< " + refused,
		"a with a negative h":   enabled + "> <a xmlns='urn:xmpp:sm:3' h='-1'/>\n< <invalid-xml \n< " + refused,
		"a with a huge h":       enabled + "> <a xmlns='urn:xmpp:sm:3' h='4294967296'/>\n< <invalid-xml \n< " + refused,
		"a of what was not sent": enabled + `
			> <a xmlns='urn:xmpp:sm:3' h='1'/>
			< <undefined-condition xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><handled-count-too-high xmlns='urn:xmpp:sm:3' h='1' send-count='0'/>
			< ` + refused,
	} {
		t.Run(name, func(t *testing.T) { dial(t, g, ca).play(script) })
	}
}

// TestManagedInboundGone has a server that vanishes while its stanzas are not
// settled; nobody waits for them then.
func TestManagedInboundGone(t *testing.T) {
	d, h, held := managedServer(t, Limits{Streams: 1})
	d.play(enabled + "> <message id='1'/>")
	h.received(t, "'1'")
	d.conn.Close()
	h.wait(t, func(_, failed []string) bool { return contains(failed, "has died") })
	(<-held)()
}
