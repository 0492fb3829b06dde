package frame_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// small limits, so that the fuzzer finds them.
var small = frame.Limits{Stanza: 2000, Depth: 5, Attrs: 5}

// cut reads in pieces whose sizes a seed decides.
type cut struct {
	r    io.Reader
	seed uint64
}

func (c *cut) Read(p []byte) (int, error) {
	c.seed = c.seed*6364136223846793005 + 1442695040888963407
	return c.r.Read(p[:min(len(p), 1+int(c.seed>>33)%(1+int(c.seed>>60)*8))])
}

func FuzzReader(f *testing.F) {
	for _, s := range [][]byte{chat, presence, bigIQ[:1500]} {
		f.Add(s, uint64(1))
	}
	for _, tt := range refused {
		if len(tt.in) < 2000 {
			f.Add([]byte(good+tt.in), uint64(len(tt.in)))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		whole, err := rest(frame.NewReader(bytes.NewReader(in), small))
		for name, r := range map[string]io.Reader{
			"byte by byte": iotest.OneByteReader(bytes.NewReader(in)),
			"cut":          &cut{bytes.NewReader(in), seed},
			"with EOF":     iotest.DataErrReader(bytes.NewReader(in)),
		} {
			got, gotErr := rest(frame.NewReader(r, small))
			if strings.Join(got, "\x00") != strings.Join(whole, "\x00") || len(got) != len(whole) || gotErr.Error() != err.Error() {
				t.Fatalf("%s: %q, %v; in one piece: %q, %v", name, got, gotErr, whole, err)
			}
		}
		batched(t, in, whole, err)
		for _, el := range whole {
			wellFormed(t, el)
			checkAgrees(t, el)
		}
		if len(in) > 0 && frame.Check(in, small) == nil && (len(whole) != 1 || whole[0] != string(in)) {
			t.Fatalf("Check lets %q through, a Reader makes %q of it", in, whole)
		}
	})
}

func batched(t *testing.T, in []byte, want []string, wantErr error) {
	r := frame.NewReader(bytes.NewReader(in), small)
	var all [][]byte
	var err error
	for err == nil {
		all, err = r.Batch(all)
	}
	if got := string(bytes.Join(all, []byte{0})); got != strings.Join(want, "\x00") || err.Error() != wantErr.Error() {
		t.Fatalf("batched: %q, %v; one by one: %q, %v", got, err, want, wantErr)
	}
}

// wellFormed asks encoding/xml, within a stream as it would stand in one.
func wellFormed(t *testing.T, el string) {
	const stream = "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'>"
	d := xml.NewDecoder(strings.NewReader(stream + el + "</stream:stream>"))
	depth, tops := 0, 0
	for {
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("%q was yielded, encoding/xml says %v", el, err)
		}
		switch tok.(type) {
		case xml.StartElement:
			if depth++; depth == 2 {
				tops++
			}
		case xml.EndElement:
			depth--
		case xml.CharData:
			if depth < 2 {
				t.Fatalf("%q has text outside its element", el)
			}
		default:
			t.Fatalf("%q holds a %T", el, tok)
		}
	}
	if tops != 1 {
		t.Fatalf("%q is %d elements", el, tops)
	}
}

// checkAgrees: Check and Reader differ only about the stream's own prefixes.
func checkAgrees(t *testing.T, el string) {
	if strings.HasPrefix(el, "<stream:") || strings.HasPrefix(el, "<db:") {
		return
	}
	if err := frame.Check([]byte(el), small); err != nil {
		t.Fatalf("%q was yielded, Check says %v", el, err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte(head+"<message/></stream:stream>"), uint64(3))
	f.Add([]byte(`<s:stream xmlns="jabber:server" xmlns:s="http://etherx.jabber.org/streams"><s:features/>`), uint64(5))
	f.Add([]byte("<?xml version='1.0' encoding='utf-8'?>\n"+strings.ReplaceAll(head, "?>", "?>\n")), uint64(7))
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		whole, err := handshake(bytes.NewReader(in))
		for name, r := range map[string]io.Reader{
			"byte by byte": iotest.OneByteReader(bytes.NewReader(in)), "cut": &cut{bytes.NewReader(in), seed},
		} {
			got, gotErr := handshake(r)
			if got != whole || gotErr.Error() != err.Error() {
				t.Fatalf("%s: %s, %v; in one piece: %s, %v", name, got, gotErr, whole, err)
			}
		}
		var e *frame.Error
		if !errors.As(err, &e) && err != io.EOF && err != io.ErrUnexpectedEOF && err != frame.ErrStreamClosed {
			t.Fatalf("error %v", err)
		}
	})
}

// handshake reads two headers with an element behind each, and the rest.
func handshake(in io.Reader) (string, error) {
	r := frame.NewReader(in, frame.HandshakeLimits())
	var seen strings.Builder
	for range 2 {
		h, err := r.Header()
		if err != nil {
			return seen.String(), err
		}
		seen.WriteString(h.From + "|" + h.To + "|" + h.ID + "|" + h.Version + "|" + h.Lang + "\n")
		el, err := r.Element()
		if err != nil {
			return seen.String(), err
		}
		seen.WriteString(el.String() + "\n")
	}
	all, err := rest(r)
	return seen.String() + strings.Join(all, "\n"), err
}

func FuzzTop(f *testing.F) {
	for _, s := range [][]byte{chat, presence, bigIQ[:200]} {
		f.Add(s)
	}
	f.Add([]byte(`<iq type="get" id="'&lt;&#10;" from="o'neil@x/&quot;&gt;&amp;" to='b"@y'/>`))
	f.Add([]byte(`<message xmlns='jabber:server' from='a@x' to='b@y/&#x1F600;' xml:lang='de'></message>`))
	f.Fuzz(func(t *testing.T, in []byte) {
		top, err := frame.ParseTop(in)
		reply, answered := frame.ErrorReply(in, "gone", "cancel", string(in), string(in))
		if frame.Check(in, small) != nil {
			return // only that it does not panic
		}
		d := xml.NewDecoder(bytes.NewReader(in))
		tok, xmlErr := d.Token()
		start, ok := tok.(xml.StartElement)
		if xmlErr != nil || !ok {
			t.Fatalf("encoding/xml: %v", xmlErr)
		}
		if err != nil {
			var e *frame.Error
			if !errors.As(err, &e) || e.Condition != frame.InvalidNamespace || start.Name.Space == frame.NSServer {
				t.Fatalf("%q: %v", in, err)
			}
			return
		}
		want := map[string]string{}
		for _, a := range start.Attr {
			if a.Name.Space == "" {
				want[a.Name.Local] = a.Value
			}
		}
		for name, got := range map[string][]byte{"from": top.From, "to": top.To, "type": top.Type, "id": top.ID} {
			w, present := want[name]
			// encoding/xml leaves white space in values as it stands.
			w = strings.NewReplacer("\t", " ", "\n", " ").Replace(w)
			g := strings.NewReplacer("\t", " ", "\n", " ", "\r", " ").Replace(string(got))
			if (got != nil) != present || g != strings.ReplaceAll(w, "\r", " ") {
				t.Fatalf("%q: %s is %q, want %q", in, name, got, w)
			}
		}
		if answered {
			checkReply(t, string(in), reply)
		}
	})
}
