package s2s

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/localca"
)

// dialogue plays the other end of a stream from a script. Each line says
//
//	> TEXT    send TEXT
//	< TEXT    read until TEXT appears
//	tls NAME  start TLS, as client, with a certificate for NAME ("-": none)
//	serve NAME  the same as server
//	serve-refused NAME  the same, to be refused
//	end       the other side closes the connection
//
// HEADER(from,to) in TEXT is a stream header.
type dialogue struct {
	t    testing.TB
	conn net.Conn
	ca   *localca.CA
	seen string // read and not matched
}

func (d *dialogue) play(script string) {
	d.t.Helper()
	for line := range strings.Lines(script) {
		verb, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch text = headers(text); verb {
		case "":
		case ">":
			d.send(text)
		case "<":
			d.expect(text)
		case "tls":
			d.tls(text, tls.Client, "")
		case "serve":
			d.tls(text, tls.Server, "")
		case "serve-refused":
			d.tls(text, tls.Server, "bad certificate")
		case "end":
			d.ended()
		default:
			d.t.Fatalf("script: %q", line)
		}
	}
}

// headers spells out HEADER(from,to).
func headers(text string) string {
	before, rest, found := strings.Cut(text, "HEADER(")
	if !found {
		return text
	}
	args, after, _ := strings.Cut(rest, ")")
	from, to, _ := strings.Cut(args, ",")
	return fmt.Sprintf("%s<stream:stream xmlns='jabber:server' xmlns:db='jabber:server:dialback' xmlns:stream='http://etherx.jabber.org/streams' from='%s' to='%s' id='x1' version='1.0'>%s",
		before, from, to, after)
}

func (d *dialogue) send(text string) {
	d.t.Helper()
	_ = d.conn.SetWriteDeadline(time.Now().Add(patience))
	if _, err := d.conn.Write([]byte(text)); err != nil {
		d.t.Fatalf("send %.200q: %v", text, err)
	}
}

// expect reads until text appears, and returns what came before it.
func (d *dialogue) expect(text string) string {
	d.t.Helper()
	_ = d.conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		if before, after, found := strings.Cut(d.seen, text); found {
			d.seen = after
			return before
		}
		n, err := d.conn.Read(buf)
		d.seen += string(buf[:n])
		if err != nil && !strings.Contains(d.seen, text) {
			d.t.Fatalf("want %q, got %q and %v", text, d.seen, err)
		}
	}
}

func (d *dialogue) ended() {
	d.t.Helper()
	_ = d.conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for {
		n, err := d.conn.Read(buf)
		d.seen += string(buf[:n])
		if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
			d.t.Fatalf("the connection stays open; last was %q", d.seen)
		}
		if err != nil {
			return
		}
	}
}

func (d *dialogue) tls(name string, wrap func(net.Conn, *tls.Config) *tls.Conn, refusal string) {
	d.t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
	if name != "-" {
		leaf, err := d.ca.Mint(name)
		if err != nil {
			d.t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{*leaf}
	}
	conn := wrap(d.conn, config)
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	if (err != nil) != (refusal != "") || !strings.Contains(fmt.Sprint(err), refusal) {
		d.t.Fatalf("tls: got %v, want %q", err, refusal)
	}
	d.conn, d.seen = conn, ""
}

// dial connects to streams as the local server would.
func dial(t testing.TB, s *Streams, ca *localca.CA) *dialogue {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &dialogue{t: t, conn: conn, ca: ca}
}

const (
	starttls = `
		> <?xml version='1.0'?>HEADER(a.grid,b.grid)
		< from='b.grid' to='a.grid'
		< <stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls></stream:features>
		> <starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>
		< <proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>
		`
	secured = starttls + `
		tls a.grid
		> HEADER(a.grid,b.grid)
		< <mechanism>EXTERNAL</mechanism></mechanisms><dialback xmlns='urn:xmpp:features:dialback'>
		`
	authenticated = secured + `
		> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>YS5ncmlk</auth>
		< <success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>
		> HEADER(a.grid,b.grid)
		< <stream:features><sm xmlns='urn:xmpp:sm:3'/></stream:features>
		`
	enabled = authenticated + `
		> <enable xmlns='urn:xmpp:sm:3'/>
		< <enabled xmlns='urn:xmpp:sm:3'/>
		`
	refused = "</stream:error></stream:stream>\nend"
)

// nested is deeper than may be.
var nested = strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100)

// TestInboundDialogues is what a local server can say to us, and our answers.
// After each the gateway must still take a stanza from a well-behaved server.
func TestInboundDialogues(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	h.mayOpen = func(_, to string) error {
		switch to {
		case "b.grid", "xn--bcher-kva.grid":
			return nil
		case "paused.grid":
			return federation.ErrPeerNotActive
		}
		return federation.ErrUnknownDomain
	}
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr(), Domains: []string{"a.grid"}}}})
	for name, script := range map[string]string{
		"unknown peer domain":   "> HEADER(a.grid,c.grid)\n< <stream:stream \n< <host-unknown \n< " + refused,
		"peer not active":       "> HEADER(a.grid,paused.grid)\n< <policy-violation \n< the peer is not active\n< " + refused,
		"foreign domain":        "> HEADER(c.grid,b.grid)\n< <not-authorized \n< " + refused,
		"no from":               "> HEADER(,b.grid)\n< <improper-addressing \n< " + refused,
		"no domain":             "> HEADER(a.grid,b@grid/x)\n< <improper-addressing \n< " + refused,
		"a client":              "> <stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='b.grid'>\n< <invalid-namespace \n< " + refused,
		"not XMPP":              "> GET / HTTP/1.1\n< <stream:error><\n< " + refused,
		"giant header":          "> HEADER(a.grid," + strings.Repeat("b", 100_000) + ")\n< <policy-violation \n< " + refused,
		"document type":         "> <!DOCTYPE x [<!ENTITY y 'z'>]>\n< <restricted-xml \n< " + refused,
		"stanza before TLS":     "> HEADER(a.grid,b.grid)<message/>\n< <policy-violation \n< " + refused,
		"dialback before TLS":   "> HEADER(a.grid,b.grid)<db:result from='a.grid' to='b.grid'>k</db:result>\n< <policy-violation \n< " + refused,
		"injection before TLS":  "> HEADER(a.grid,b.grid)<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><message/>\n< <policy-violation \n< " + refused,
		"no certificate":        starttls + "tls -\n> HEADER(a.grid,b.grid)\n< <not-authorized \n< " + refused,
		"certificate of a peer": starttls + "tls b.grid\n> HEADER(a.grid,b.grid)\n< <not-authorized \n< not a.grid\n< " + refused,
		"other domains in TLS":  starttls + "tls a.grid\n> HEADER(a.grid,xn--bcher-kva.grid)\n< <invalid-from \n< " + refused,
		"stanza before auth":    secured + "> <message/>\n< <not-authorized \n< " + refused,
		"endless attempts":      secured + strings.Repeat("> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'/>\n< <invalid-mechanism/>\n", maxSteps) + "< <policy-violation \n< " + refused,
		"authzid of another": secured + `
			> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>Yy5ncmlk</auth>
			< <failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><invalid-authzid/></failure>
			> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>!</auth>
			< <incorrect-encoding/>
			> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>
			< <success `,
		"certificate instead of a call": secured + `
			> <db:result from='a.grid' to='b.grid'>any</db:result>
			< <db:result from='b.grid' to='a.grid' type='valid'/>
			> <message id='%s'/>`,
		"dialback for another pair": secured + `
			> <db:result from='c.grid' to='b.grid'>any</db:result>
			< <db:result from='b.grid' to='c.grid' type='error'>`,
		"key that we never gave": secured + `
			> <db:verify from='a.grid' to='b.grid' id='x'>any</db:verify>
			< <db:verify from='b.grid' to='a.grid' id='x' type='invalid'/>`,
		"key of ours": secured + `
			> <db:verify from='a.grid' to='b.grid' id='x&quot;1'>` + g.secret.key("a.grid", "b.grid", `x"1`) + `</db:verify>
			< id='x&quot;1' type='valid'/>`,
		"stanza": authenticated + "> <message id='%s'/>\n> </stream:stream>\n< </stream:stream>\nend",
		"what is not offered": authenticated + `
			> <resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/><message id='%s'/><db:verify from='a.grid' to='b.grid' id='x'>any</db:verify>
			< <failed xmlns='urn:xmpp:sm:3'><feature-not-implemented 
			< type='invalid'/>
			> <db:result from='c.grid' to='b.grid'>any</db:result>
			< type='error'><error type='cancel'><policy-violation `,
		"beyond limits that is no stanza": authenticated + "> <db:result from='a.grid' to='b.grid'>" + nested + "</db:result>\n< <policy-violation \n< nested deeper than 64\n< " + refused,
		"not well-formed beyond a limit":  authenticated + "> <message>" + nested + "</massage>\n< <not-well-formed \n< " + refused,
		"comment beyond a limit":          authenticated + "> <message>" + nested + "<!-- --></message>\n< <restricted-xml \n< " + refused,
		"deep before authentication":      secured + "> <message>" + nested + "</message>\n< <policy-violation \n< nested deeper than 16\n< " + refused,
		"no stanza":                       authenticated + "> <body/>\n< <unsupported-stanza-type \n< " + refused,
		"comment":                         authenticated + "> <message><!-- --></message>\n< <restricted-xml \n< " + refused,
		"not well-formed":                 authenticated + "> <message></massage>\n< <not-well-formed \n< " + refused,
		"stanza before the error":         authenticated + "> <message id='%s'/></message>\n< <not-well-formed \n< " + refused,
	} {
		t.Run(name, func(t *testing.T) {
			id := "id-" + strings.ReplaceAll(name, " ", "-")
			talks := strings.Contains(script, "%s")
			if talks {
				script = fmt.Sprintf(script, id)
			}
			dial(t, g, ca).play(script)
			if talks {
				h.received(t, "a.grid>b.grid <message id='"+id+"'/>")
			}
			dial(t, g, ca).play(authenticated + "> <presence id='after-" + id + "'/>")
			h.received(t, "<presence id='after-"+id+"'/>")
		})
	}
	if contains(h.got, "<message/>") || contains(h.got, "<body/>") {
		t.Error("a stanza that was refused came through")
	}
}

func TestInboundBigStanza(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}, Limits: Limits{Stanza: 64 << 10}})
	d := dial(t, g, ca)
	d.play(authenticated + "> <message id='fits'><body>" + strings.Repeat("x", 60<<10) + "</body></message>")
	h.received(t, "fits")
	d.play("> <message id='does not'><body>" + strings.Repeat("x", 64<<10) + "</body></message>")
	h.received(t, "<message id='does not'>an element is larger than 65536 bytes")
}

// TestInboundIDN has the peer's domain in U-labels on the wire and in A-labels
// everywhere else.
func TestInboundIDN(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}})
	dial(t, g, ca).play(strings.ReplaceAll(authenticated+"> <message/>", "b.grid", "bücher.grid"))
	h.received(t, "a.grid>xn--bcher-kva.grid <message/>")
}

// TestUnfinishedHandshakes holds more connections than there may be, at every
// step, and then comes as a well-behaved server.
func TestUnfinishedHandshakes(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}, Limits: Limits{Handshakes: 20, Handshake: time.Hour}})
	steps := []string{"", "> <stream:", "> HEADER(a.grid,b.grid)\n< <required/>", starttls, secured}
	var first, last *dialogue
	for i := range 100 {
		d := dial(t, g, ca)
		d.play(steps[i%len(steps)])
		if i == 0 {
			first = d
		}
		last = d
	}
	first.play("< <resource-constraint \n< " + refused)
	dial(t, g, ca).play(authenticated + "> <message id='through'/>")
	h.received(t, "through")
	last.play("> <auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>\n< <success ")
}

func TestSlowHandshake(t *testing.T) {
	ca := openCA(t)
	for script, limit := range map[string]time.Duration{
		"":      50 * time.Millisecond,
		secured: 3 * time.Second, // for what comes before, on a busy machine
	} {
		g := start(t, Config{CA: ca, Handler: newRecorder(), Servers: []Server{{Addr: freeAddr()}}, Limits: Limits{Handshake: limit}})
		dial(t, g, ca).play(script + "\n< <connection-timeout \n< " + refused)
	}
}

func TestStreamLimit(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}, Limits: Limits{Streams: 1}})
	d := dial(t, g, ca)
	d.play(authenticated + "> <message id='first'/>")
	h.received(t, "first") // until then the place may be another's
	dial(t, g, ca).play(authenticated + "< <resource-constraint \n< " + refused)
	d.play("> </stream:stream>\n< </stream:stream>\nend")
	dial(t, g, ca).play(authenticated + "> <message id='second'/>")
	h.received(t, "second")
}

func TestForeignAddress(t *testing.T) {
	g, err := New(Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: "192.0.2.1:5269"}, {Addr: "[2001:db8::1]:5269", Domains: []string{"c.grid"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "192.0.2.1": true, "::ffff:192.0.2.1": true, "2001:db8::1": true,
		"192.0.2.2": false, "2001:db8::2": false, "10.0.0.1": false,
	} {
		if got := g.mayConnect(&net.TCPAddr{IP: net.ParseIP(addr)}); got != want {
			t.Errorf("%s may connect: %v, want %v", addr, got, want)
		}
	}
}

// TestBackPressure fills the stream of a server whose stanzas nobody takes.
func TestBackPressure(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	let := make(chan struct{})
	h.take = func(ctx context.Context) error {
		select {
		case <-let:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}})
	d := dial(t, g, ca)
	d.play(authenticated)
	sent := d.flood()
	close(let)
	h.wait(t, func(got, _ []string) bool { return len(got) >= sent })
}

// flood sends until the gateway has stopped reading, and returns how many stanzas
// went out whole.
func (d *dialogue) flood() (sent int) {
	d.t.Helper()
	stanza := []byte("<message><body>" + strings.Repeat("x", 60_000) + "</body></message>")
	for ; sent < 2000; sent++ { // 120 MB: more than any socket buffer
		_ = d.conn.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := d.conn.Write(stanza); err != nil {
			return sent
		}
	}
	d.t.Error("the gateway reads on although its handler does not take what it reads")
	return sent
}

// runStoppable runs streams until stop is called.
// acceptor gives out one connection, at the moment of the end.
// TestStopWhileAccepting has a server connect at the moment of the end: it is not left
// to wait for an answer.
// TestStopDoesNotWaitForReaders has a server that does not read what it is sent.
// TestHurry has a write under way, or begin, when the gateway is to stop.
// TestStopTakesWhatWasSent has a server that finishes what it had to say after it was
// told that the gateway is stopping. Nobody would send that again.
