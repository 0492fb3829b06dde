package frame_test

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

func TestHandshake(t *testing.T) {
	in := head +
		`<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>` +
		`<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism><mechanism> SCRAM-SHA-1 </mechanism></mechanisms>` +
		`<dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback></stream:features>` +
		`<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>` +
		// the stream restarts, with other prefixes
		`<?xml  version = "1.0" encoding="utf-8" standalone='yes' ?>` + "\n" +
		`<s:stream xmlns="jabber:server" xmlns:s="http://etherx.jabber.org/streams" xmlns:d="jabber:server:dialback" to="b.grid.test">` +
		`<d:result from='a.grid.test' to='b.grid.test' type='valid'>key &amp; more</d:result><message/></s:stream>`
	for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
		r := frame.NewReader(wrap(strings.NewReader(in)), frame.HandshakeLimits())
		if _, err := r.Header(); err != nil {
			t.Fatal(err)
		}
		f, err := r.Features()
		if err != nil || !f.StartTLS || !f.StartTLSRequired || !f.Dialback || strings.Join(f.Mechanisms, " ") != "EXTERNAL SCRAM-SHA-1" {
			t.Fatalf("features %+v, %v", f, err)
		}
		if el, err := r.Element(); err != nil || !el.Is(frame.NSSASL, "success") {
			t.Fatalf("got %v, %v; want success", el, err)
		}
		h, err := r.Header()
		if err != nil || h.To != "b.grid.test" || h.From != "" || !h.Dialback {
			t.Fatalf("second header %+v, %v", h, err)
		}
		r.SetLimits(frame.DefaultLimits())
		b, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		el, err := r.Decode(b)
		if err != nil || !el.Is(frame.NSDialback, "result") || el.Attr("type") != "valid" || el.Text != "key & more" {
			t.Fatalf("dialback %+v, %v", el, err)
		}
		if b, err = r.Next(); string(b) != "<message/>" {
			t.Fatalf("got %q, %v", b, err)
		}
		if _, err := r.Next(); err != frame.ErrStreamClosed {
			t.Fatalf("end: %v", err)
		}
	}
}

func TestElementNamesFailure(t *testing.T) {
	r := frame.NewReader(strings.NewReader("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/><text>secret</text></failure>"), frame.HandshakeLimits())
	_, err := r.Features()
	if err == nil || !strings.Contains(err.Error(), "<failure><not-authorized/></failure>") {
		t.Errorf("got %v, want it to name what was received", err)
	}
}

func TestHeaderRefused(t *testing.T) {
	const ns = `xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams'`
	for name, tt := range map[string]struct {
		in   string
		want frame.Condition
	}{
		"client stream":       {`<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>`, frame.InvalidNamespace},
		"no content":          {`<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>`, frame.InvalidNamespace},
		"other stream":        {`<stream:stream xmlns='jabber:server' xmlns:stream='urn:other'>`, frame.InvalidNamespace},
		"other element":       {`<stream:features ` + ns + `>`, frame.InvalidNamespace},
		"unbound prefix":      {`<stream:stream xmlns='jabber:server'>`, frame.NotWellFormed},
		"a stanza":            {`<message to='b.grid.test'>`, frame.InvalidNamespace},
		"closed in itself":    {`<stream:stream ` + ns + `/>`, frame.BadFormat},
		"UTF-16":              {`<?xml version='1.0' encoding='UTF-16'?><stream:stream ` + ns + `>`, frame.UnsupportedEncoding},
		"no XML version":      {`<?xml encoding='UTF-8'?><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"empty declaration":   {`<?xml ?><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"unended declaration": {`<?xml version='1.0'><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"odd declaration":     {`<?xml version='1.0' lang='en'?><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"text in declaration": {`<?xml version='1.0' x?><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"tag and text":        {`<a>0000&00`, frame.InvalidNamespace},
		"XML 1.1":             {`<?xml version='1.1'?><stream:stream ` + ns + `>`, frame.NotWellFormed},
		"other instruction":   {`<?xslt x?><stream:stream ` + ns + `>`, frame.RestrictedXML},
		"document type":       {`<!DOCTYPE stream><stream:stream ` + ns + `>`, frame.RestrictedXML},
		"HTTP":                {"GET / HTTP/1.1\r\n\r\n", frame.BadFormat},
		"TLS":                 {"\x16\x03\x01\x02\x00", frame.BadFormat},
		"long header":         {`<stream:stream ` + ns + ` from='` + strings.Repeat("a", 20000), frame.PolicyViolation},
		"many attributes":     {`<stream:stream ` + ns + attributes(40) + `>`, frame.PolicyViolation},
		"endless XML decl":    {`<?xml ` + strings.Repeat(" ", 20000), frame.NotWellFormed},
		"endless white space": {strings.Repeat(" ", 70000), frame.PolicyViolation},
		"byte order mark":     {"\ufeff<stream:stream " + ns + ">", frame.BadFormat},
	} {
		t.Run(name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
				_, err := frame.NewReader(wrap(strings.NewReader(tt.in)), frame.HandshakeLimits()).Header()
				wantCondition(t, err, tt.want)
			}
		})
	}
}

func TestHandshakeIsBounded(t *testing.T) {
	in := &repeat{before: head, unit: "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>=</auth>", n: 10000}
	r := frame.NewReader(in, frame.HandshakeLimits())
	if _, err := r.Header(); err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		_, err := r.Element()
		if err != nil {
			wantCondition(t, err, frame.PolicyViolation)
			break
		}
		n++
	}
	if got := n * len(in.unit); got > 64<<10 || got < 60<<10 {
		t.Errorf("%d bytes were taken, want nearly 65536", got)
	}
}

func TestBufferedShowsWhatPrecedesTLS(t *testing.T) {
	r := frame.NewReader(strings.NewReader("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><message/>"), frame.HandshakeLimits())
	if _, err := r.Element(); err != nil {
		t.Fatal(err)
	}
	if n := r.Buffered(); n != len("<message/>") {
		t.Errorf("%d bytes are buffered", n)
	}
	if b, ok, err := r.NextBuffered(); !ok || err != nil || string(b) != "<message/>" {
		t.Errorf("got %q, %v, %v", b, ok, err)
	}
	if _, ok, err := r.NextBuffered(); ok || err != nil {
		t.Errorf("an empty buffer gives %v, %v", ok, err)
	}
}

func TestStreamError(t *testing.T) {
	got := string((&frame.Error{Condition: frame.PolicyViolation, Text: "a < b"}).XML())
	r := frame.NewReader(strings.NewReader(got), frame.HandshakeLimits())
	el, err := r.Element()
	if err != nil || !el.Is(frame.NSStream, "error") {
		t.Fatalf("%s: %v, %v", got, el, err)
	}
	const ns = "urn:ietf:params:xml:ns:xmpp-streams"
	if el.Child(ns, "policy-violation") == nil || el.Child(ns, "text") == nil || el.Child(ns, "text").Text != "a < b" {
		t.Errorf("%s", got)
	}
}
