package frame_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// list writes children as "{namespace}name".
func list(stanza string) (out []string) {
	for c := range frame.Children([]byte(stanza)) {
		out = append(out, fmt.Sprintf("{%s}%s", c.Space, c.Name))
	}
	return out
}

func TestChildren(t *testing.T) {
	for _, c := range []struct{ stanza, want string }{
		{"<message/>", ""},
		{"<message></message>", ""},
		{"<message a='x/'>text</message>", ""},
		{"<message><body>a</body><x xmlns='urn:x'/></message>", "{jabber:server}body {urn:x}x"},
		{"<message xmlns='jabber:server'><body/><thread>1</thread></message>", "{jabber:server}body {jabber:server}thread"},
		{"<message><a xmlns='urn:a'><body/><b><c/></b></a><d xmlns=\"urn:d\"></d></message>", "{urn:a}a {urn:d}d"},
		{"<message><a b='>' c=\"'/>\" xmlns='urn:a'/>text<e/></message>", "{urn:a}a {jabber:server}e"},
		{"<message>&lt;no/&gt;<![CDATA[<no/></message>]]><e/></message>", "{jabber:server}e"},
		{"<message><p:a xmlns:p='urn:p'/><p:b xmlns='urn:no' xmlns:p='urn:q'/></message>", "{urn:p}a {urn:q}b"},
		{"<message xmlns:p='urn:p'><p:a/><p:b xmlns:p='urn:q'/></message>", "{urn:p}a {urn:q}b"},
		{"<message><a xmlns='urn:a&amp;b' /><b xmlns = 'urn:b'></b ></message >", "{urn:a&b}a {urn:b}b"},
		{"<message><a xmlns=''/></message>", "{}a"},
	} {
		if err := frame.Check([]byte(c.stanza), frame.Limits{}); err != nil {
			t.Errorf("%s: %v", c.stanza, err)
		}
		if got := strings.Join(list(c.stanza), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.stanza, got, c.want)
		}
	}
	for c := range frame.Children([]byte("<message><delay xmlns='urn:d' from='a&amp;b' p:stamp='1' xmlns:p='urn:p'>x</delay></message>")) {
		if got := c.Attr("from"); string(got) != "a&b" {
			t.Errorf("from is %q", got)
		}
		if got := c.Attr("stamp"); got != nil {
			t.Errorf("stamp is %q", got)
		}
	}
}

// The root's attributes are read once, however many children there are: references
// make it visible, for what they stand for is written down anew each time.
func TestRootIsReadOnce(t *testing.T) {
	stanza := []byte("<message xmlns='jabber&#58;server' xmlns:p='urn&#58;p'>" + strings.Repeat("<a/><p:b/>", 1000) + "</message>")
	children := 0
	allocs := testing.AllocsPerRun(3, func() {
		for c := range frame.Children(stanza) {
			if string(c.Space) == "jabber:server" || string(c.Space) == "urn:p" {
				children++
			}
		}
	})
	if children != 4*2000 || allocs > 10 {
		t.Errorf("%d children in four runs, %v allocations in each", children, allocs)
	}
}

// What was not checked may have any end, and must do no harm.
func TestChildrenOfPieces(t *testing.T) {
	whole := "<message a='b'><x y='z'>t<![CDATA[c]]></x><p:q/></message>"
	for n := range len(whole) {
		list(whole[:n])
	}
}

var childSeeds = []string{
	"<message from='a' to='b'/>",
	"<message><body>a &lt; b</body><x xmlns='urn:x'><y/></x></message>",
	"<message xmlns:p='urn:p'><p:a q='>'/><![CDATA[</message>]]></message >",
	"<iq xmlns='jabber:server' ><query xmlns=''/></iq>",
	"<presence\n><é xmlns='&#x75;rn:e'/></presence>",
}

// FuzzChildren compares with encoding/xml what passes Check.
func FuzzChildren(f *testing.F) {
	for _, s := range childSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stanza string) {
		top, err := frame.ParseTop([]byte(stanza))
		if frame.Check([]byte(stanza), frame.Limits{}) != nil || err != nil || top.Kind == frame.Other {
			return
		}
		got := list(stanza)
		d := xml.NewDecoder(strings.NewReader(stanza))
		d.DefaultSpace = frame.NSServer
		var want []string
		for depth := 0; ; {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // it takes less than we do, such as names beyond its tables
			}
			switch el := tok.(type) {
			case xml.StartElement:
				if depth++; depth == 2 {
					want = append(want, fmt.Sprintf("{%s}%s", el.Name.Space, el.Name.Local))
				}
			case xml.EndElement:
				depth--
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", stanza, got, want)
		}
	})
}

func TestAppendChild(t *testing.T) {
	const child = "<delay xmlns='urn:xmpp:delay'/>"
	for stanza, want := range map[string]string{
		"<message/>":                                "<message>" + child + "</message>",
		"<message from='a/' />":                     "<message from='a/' >" + child + "</message>",
		"<message></message >":                      "<message>" + child + "</message >",
		"<message><body>a</body>b</message>":        "<message><body>a</body>b" + child + "</message>",
		"<message><![CDATA[</message>]]></message>": "<message><![CDATA[</message>]]>" + child + "</message>",
	} {
		before := strings.Clone(stanza)
		got, err := frame.AppendChild([]byte(stanza), []byte(child))
		if err != nil || string(got) != want || stanza != before {
			t.Errorf("%s: %s (%v), want %s", stanza, got, err, want)
		}
	}
	for _, bad := range []string{"", "message", "<message>", "<message"} {
		if got, err := frame.AppendChild([]byte(bad), []byte(child)); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
}

// FuzzAppendChild: one stanza stays one stanza, with one more child at its end.
func FuzzAppendChild(f *testing.F) {
	for _, s := range childSeeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, stanza string) {
		if frame.Check([]byte(stanza), frame.Limits{}) != nil {
			return
		}
		if top, err := frame.ParseTop([]byte(stanza)); err != nil || top.Kind == frame.Other {
			return
		}
		in := []byte(stanza)
		got, err := frame.AppendChild(in, []byte("<delay xmlns='urn:xmpp:delay' from='a.grid'/>"))
		if err != nil {
			t.Fatalf("%q: %v", stanza, err)
		}
		if !bytes.Equal(in, []byte(stanza)) {
			t.Errorf("%q was changed", stanza)
		}
		if err := frame.Check(got, frame.Limits{}); err != nil {
			t.Errorf("%q became %q: %v", stanza, got, err)
		}
		if want := append(list(stanza), "{urn:xmpp:delay}delay"); !slices.Equal(list(string(got)), want) {
			t.Errorf("%q became %q", stanza, got)
		}
	})
}
