package s2s

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/localca"
)

// fake is a local server that plays scripts.
type fake struct {
	t  testing.TB
	l  net.Listener
	ca *localca.CA
}

func newFake(t testing.TB) *fake {
	t.Helper()
	f := &fake{t: t, ca: openCA(t)}
	f.listen(freeAddr())
	return f
}

func (f *fake) listen(addr string) {
	f.t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	f.l = l
}

func (f *fake) streams(limits Limits) (*Streams, *recorder) {
	h := newRecorder()
	return start(f.t, Config{CA: f.ca, Handler: h, Servers: []Server{{Addr: f.l.Addr().String()}}, Limits: limits}), h
}

// accept waits for the gateway to connect.
func (f *fake) accept() *dialogue {
	f.t.Helper()
	_ = f.l.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := f.l.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { conn.Close() })
	return &dialogue{t: f.t, conn: conn, ca: f.ca}
}

func send(t testing.TB, s *Streams, ids ...string) {
	t.Helper()
	var stanzas [][]byte
	for _, id := range ids {
		stanzas = append(stanzas, []byte("<message id='"+id+"'/>"))
	}
	if err := s.Send(t.Context(), "b.grid", "a.grid", stanzas...); err != nil {
		t.Fatal(err)
	}
}

const (
	proceed = `
		< from='b.grid' to='a.grid' version='1.0'>
		> HEADER(a.grid,b.grid)<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:features>
		< <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>
		> <proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>
		`
	serving = proceed + `
		serve a.grid
		< from='b.grid' to='a.grid' version='1.0'>
		`
	offered = serving + `
		> HEADER(a.grid,b.grid)<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms><dialback xmlns='urn:xmpp:features:dialback'/><bidi xmlns='urn:xmpp:features:bidi'/></stream:features>
		< <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>Yi5ncmlk</auth>
		`
	succeeded = offered + `
		> <success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>
		< from='b.grid' to='a.grid' version='1.0'>
		`
	accepted = succeeded + `
		> HEADER(a.grid,b.grid)<stream:features/>
		`
	managed = succeeded + `
		> HEADER(a.grid,b.grid)<stream:features><sm xmlns='urn:xmpp:sm:2'/><sm xmlns='urn:xmpp:sm:3'><optional/></sm></stream:features>
		< <enable xmlns='urn:xmpp:sm:3'/>
		> <enabled xmlns='urn:xmpp:sm:3'/>
		`
)

// TestOutboundRefused is how a server can turn us away. The stanza comes back
// with a reason that an operator can act on.
func TestOutboundRefused(t *testing.T) {
	for name, c := range map[string]struct{ script, why string }{
		"stream error":      {"< <stream:stream\n> HEADER(a.grid,b.grid)<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>who?</text></stream:error></stream:stream>", "host-unknown: who?"},
		"no STARTTLS":       {"< <stream:stream\n> HEADER(a.grid,b.grid)<stream:features/>", "STARTTLS"},
		"STARTTLS failure":  {strings.Replace(proceed, "> <proceed", "> <failure", 1), "<failure/>"},
		"injection":         {strings.TrimSpace(proceed) + "<stream:features/>", "data between two streams"},
		"wrong certificate": {proceed + "serve-refused c.grid", "not a.grid"},
		"no id":             {"< <stream:stream\n> <stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'><stream:features/>", "no id"},
		"no mechanism":      {serving + "> HEADER(a.grid,b.grid)<stream:features/>", "it offers no SASL EXTERNAL: it offers no dialback"},
		"comment":           {"< <stream:stream\n> HEADER(a.grid,b.grid)<!-- -->", "restricted-xml"},
		"endless handshake": {"< <stream:stream\n> HEADER(a.grid,b.grid)<stream:features>" + strings.Repeat("<x/>", 30_000), "policy-violation"},
		"closed":            {"< <stream:stream\n> HEADER(a.grid,b.grid)</stream:stream>", "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g, h := f.streams(Limits{Backoff: time.Hour})
			g.failsForLong(t, "b.grid", "a.grid")
			send(t, g, "1", "2")
			d := f.accept()
			d.play(c.script)
			d.conn.Close()
			h.wait(t, func(_, failed []string) bool { return len(failed) == 2 })
			if got := h.why[0].Error(); !strings.Contains(got, c.why) || !strings.Contains(got, "b.grid -> a.grid") {
				t.Errorf("got %q, want it to say %q", got, c.why)
			}
			if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<iq/>")); !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), c.why) {
				t.Errorf("send again: %v, want ErrDown and why", err)
			}
		})
	}
}

// TestOutboundBatches sends while the handshake goes on and finds all of it in
// one piece and in order behind it.
func TestOutboundBatches(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	var want strings.Builder
	for i := range 1000 {
		id := fmt.Sprint(i)
		send(t, g, id)
		want.WriteString("<message id='" + id + "'/>")
	}
	d := f.accept()
	d.play(accepted)
	d.expect(want.String())
	big := "<message>" + strings.Repeat("x", 3*writeSize) + "</message>"
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte(big), []byte("<iq/>")); err != nil {
		t.Fatal(err)
	}
	d.expect(big + "<iq/>")
	if len(h.failed) > 0 {
		t.Error(h.failed)
	}
}

func TestOutboundFallsBackToDialback(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	send(t, g, "1")
	f.accept().play(offered + "> <failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure></stream:stream>")
	d := f.accept()
	d.play(serving + `
		> HEADER(a.grid,b.grid)<stream:features><dialback xmlns='urn:xmpp:features:dialback'/></stream:features>
		< <db:result from='b.grid' to='a.grid'>` + g.secret.key("a.grid", "b.grid", "x1") + `</db:result>
		> <db:result from='a.grid' to='b.grid' type='valid'/>
		< <message id='1'/>`)
	if len(h.failed) > 0 {
		t.Error(h.failed, h.why)
	}
}

func TestOutboundDialbackRefused(t *testing.T) {
	for answer, why := range map[string]string{
		"type='invalid'/>": "invalid",
		"type='error'><error type='cancel'><remote-server-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></db:result>": "remote-server-not-found",
	} {
		f := newFake(t)
		g, h := f.streams(Limits{})
		send(t, g, "1")
		f.accept().play(serving + "> HEADER(a.grid,b.grid)<stream:features><dialback xmlns='urn:xmpp:features:dialback'/></stream:features>\n" +
			"< <db:result \n> <db:result from='a.grid' to='b.grid' " + answer)
		h.wait(t, func(_, failed []string) bool { return len(failed) == 1 })
		if got := h.why[0].Error(); !strings.Contains(got, why) {
			t.Errorf("got %q, want it to say %q", got, why)
		}
	}
}

// TestOutboundReconnects closes the stream in every way a server does; what was
// queued meanwhile goes over the next one.
func TestOutboundReconnects(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	send(t, g, "0")
	for i, bye := range []string{
		"> </stream:stream>\nend",
		"> <stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>\nend",
		"> <message>not for us</message> \n> </stream:stream>\nend",
		"> <!-- -->\nend",
	} {
		d := f.accept()
		d.play(fmt.Sprintf(accepted+"< <message id='%d'/>\n"+bye, i))
		d.conn.Close()
		send(t, g, fmt.Sprint(i+1))
	}
	f.accept().play(accepted + "< <message id='4'/>")
	if len(h.failed) > 0 {
		t.Error(h.failed, h.why)
	}
}

func TestOutboundIdle(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{Idle: 20 * time.Millisecond})
	for _, id := range []string{"1", "2"} {
		send(t, g, id)
		f.accept().play(accepted + "< <message id='" + id + "'/>\n< </stream:stream>\n> </stream:stream>\nend")
	}
	if len(h.failed) > 0 {
		t.Error(h.failed, h.why)
	}
}

func TestOutboundQueueIsBounded(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{Queue: 1000, Wait: 50 * time.Millisecond})
	stanza := []byte("<message>" + strings.Repeat("x", 400) + "</message>")
	for range 2 {
		if err := g.Send(t.Context(), "b.grid", "a.grid", stanza); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Send(t.Context(), "b.grid", "a.grid", stanza); !errors.Is(err, ErrFull) {
		t.Errorf("third stanza: %v, want ErrFull", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Send(ctx, "b.grid", "a.grid", stanza); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	sent := make(chan error, 1)
	g.limits.Wait = time.Hour // nothing else reads it now
	go func() { sent <- g.Send(t.Context(), "b.grid", "a.grid", stanza) }()
	d := f.accept()
	d.play(accepted)
	d.expect(strings.Repeat(string(stanza), 3))
	if err := <-sent; err != nil {
		t.Error("send when room was made:", err)
	}
	if len(h.failed) > 0 {
		t.Error(h.failed)
	}
}

func TestSendToNobody(t *testing.T) {
	g := start(t, Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: freeAddr(), Domains: []string{"a.grid"}}}})
	if err := g.Send(t.Context(), "b.grid", "c.grid", []byte("<iq/>")); !errors.Is(err, ErrNoServer) {
		t.Errorf("got %v, want ErrNoServer", err)
	}
}

// TestNothingTwice has a server that breaks its streams anyhow while many send.
// A stanza may be lost in a socket, and one of a write that failed may have
// arrived, but none arrives twice or is given back twice.
func TestNothingTwice(t *testing.T) {
	ca := openCA(t)
	g, _, gh, sh := couple(t, Config{CA: ca, Servers: []Server{{}}, Limits: Limits{Backoff: time.Millisecond, Queue: 2000}}, Config{CA: ca, Servers: []Server{{}}})
	var batches atomic.Int64
	sh.take = func(context.Context) error {
		if batches.Add(1)%5 == 0 {
			return errors.New("on purpose")
		}
		return nil
	}
	insist := func(id string) {
		for g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='"+id+"'/>")) != nil {
			time.Sleep(time.Millisecond) // in backoff
		}
	}
	var senders sync.WaitGroup
	for w := range 4 {
		senders.Go(func() {
			for i := range 500 {
				insist(fmt.Sprintf("%d-%d", w, i))
			}
		})
	}
	senders.Wait()
	for i := 0; batches.Load() < 20; i++ {
		insist(fmt.Sprintf("more-%d", i))
	}
	for _, h := range []*recorder{gh, sh} {
		h.mu.Lock()
		for _, list := range [][]string{h.got, h.failed} {
			seen := map[string]bool{}
			for _, s := range list {
				if seen[s] {
					t.Errorf("%s came twice", s)
				}
				seen[s] = true
			}
		}
		h.mu.Unlock()
	}
}
