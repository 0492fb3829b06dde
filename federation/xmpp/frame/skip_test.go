package frame_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// skipping are limits that the fuzzer finds, with an element beyond them skipped.
var skipping = frame.Limits{Stanza: 300, Depth: 5, Attrs: 5, Skip: 1500}

const (
	addressed = "<message from='alice@a.grid/x' to='bob@b.grid' id='1'>"
	deep      = addressed + "<a><a><a><a><a>x</a></a></a></a></a></message>"
)

// tags reads to the end and returns each element, or "(TAG SIZE LIMIT)" of one that was
// skipped.
func tags(r *frame.Reader) ([]string, error) {
	var all []string
	var last error
	for {
		b, err := r.Next()
		var skipped *frame.Skipped
		switch {
		case errors.As(err, &skipped) && err != last: // not again and again
			all, last = append(all, describe(skipped)), err
		case err != nil:
			return all, err
		default:
			all = append(all, string(b))
		}
	}
}

func describe(s *frame.Skipped) string {
	return fmt.Sprintf("(%s %d %s)", s.Tag, s.Size, s.Limit.Text)
}

// TestSkipped: what is beyond a limit is read over, in whatever pieces it comes, and
// what stands around it is not harmed.
func TestSkipped(t *testing.T) {
	const size = "an element is larger than 300 bytes"
	for name, tt := range map[string]struct{ in, tag, limit string }{
		"large":                                {addressed + "<body>" + strings.Repeat("x", 900) + "</body></message>", addressed, size},
		"large, all in one tag":                {"<iq id='" + strings.Repeat("x", 900) + "' type='get'/>", "<iq id='" + strings.Repeat("x", 900) + "' type='get'/>", size},
		"large, beyond ASCII":                  {addressed + "<größe>" + strings.Repeat("Grüße &amp; 😀", 50) + "</größe></message>", addressed, size},
		"deep":                                 {deep, addressed, "elements nested deeper than 5"},
		"deep, empty ones":                     {addressed + "<a><b><c><d><e/><e a='/>'/><e /></d></c></b></a></message>", addressed, "elements nested deeper than 5"},
		"attributes":                           {addressed + "<x" + attributes(6) + "/></message>", addressed, "more than 5 attributes"},
		"attributes of its own":                {"<presence from='a@a.grid' to='b@b.grid'" + attributes(9) + "/>", "<presence from='a@a.grid' to='b@b.grid'" + attributes(9) + "/>", "more than 5 attributes"},
		"ends in values":                       {deep[:len(deep)-10] + "<x a='/message>\"' b=\"'/>\" c='/>'></x><y a = '>'\n/></message>", addressed, "elements nested deeper than 5"},
		"ends in CDATA":                        {deep[:len(deep)-10] + "<![CDATA[</message><iq/>]]]]>]]<![CDATA[]]><![CDATA[<!--]]></message>", addressed, "elements nested deeper than 5"},
		"the stream's prefix":                  {addressed + "<stream:features><db:x/></stream:features></message>", addressed, "element name with a prefix that only the stream's header binds"},
		"the stream's prefix of its attribute": {addressed[:len(addressed)-1] + " db:x='y'/>", addressed[:len(addressed)-1] + " db:x='y'/>", "attribute name with a prefix that only the stream's header binds"},
		"its name within":                      {deep[:len(deep)-10] + "<message><message/></message ></message\n>", addressed, "elements nested deeper than 5"},
		"brackets":                             {deep[:len(deep)-10] + "]]]&gt;]]<a/>]>]</message>", addressed, "elements nested deeper than 5"},
		"as large as is read over":             {addressed + strings.Repeat("x", 1500-len(addressed)-10) + "</message>", addressed, size},
	} {
		t.Run(name, func(t *testing.T) {
			want := []string{good, fmt.Sprintf("(%s %d %s)", tt.tag, len(tt.in), tt.limit), good}
			for cut, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader,
			} {
				got, err := tags(frame.NewReader(wrap(strings.NewReader(good+tt.in+good)), skipping))
				if err != io.EOF || strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("%s: %q, %v; want %q", cut, got, err, want)
				}
			}
			if _, err := rest(frame.NewReader(strings.NewReader(tt.in), frame.Limits{Stanza: 300, Depth: 5, Attrs: 5})); err == nil {
				t.Error("without Skip it passes")
			} else {
				wantCondition(t, err, frame.PolicyViolation)
			}
		})
	}
}

// TestNotSkipped is what ends the stream even behind a limit.
func TestNotSkipped(t *testing.T) {
	open := strings.TrimSuffix(deep, "</message>")
	for name, tt := range map[string]struct {
		in   string
		want frame.Condition
	}{
		"comment":                   {open + "<!-- x --></message>", frame.RestrictedXML},
		"processing instruction":    {open + "<?php x ?></message>", frame.RestrictedXML},
		"document type":             {open + "<!DOCTYPE x></message>", frame.RestrictedXML},
		"entity":                    {open + "&lol;</message>", frame.RestrictedXML},
		"entity in attribute":       {open + "<a b='&lol;'/></message>", frame.RestrictedXML},
		"control character":         {open + "\x01</message>", frame.NotWellFormed},
		"control character in name": {open + "<a\x01/></message>", frame.NotWellFormed},
		"Latin-1":                   {open + "\xfc</message>", frame.UnsupportedEncoding},
		"Latin-1 in name":           {open + "<a\xfc/></message>", frame.UnsupportedEncoding},
		"Latin-1 in attribute":      {open + "<a b='\xfc'/></message>", frame.UnsupportedEncoding},
		"Latin-1 in CDATA":          {open + "<![CDATA[\xfc]]></message>", frame.UnsupportedEncoding},
		"less-than in value":        {open + "<a b='<'/></message>", frame.NotWellFormed},
		"CDATA end in text":         {open + "]]></message>", frame.NotWellFormed},
		"false CDATA":               {open + "<![CDATE[x]]></message>", frame.NotWellFormed},
		"space before name":         {open + "< a/></message>", frame.NotWellFormed},
		"end tag without a name":    {open + "<a></></message>", frame.NotWellFormed},
		"end tag with more":         {open + "<a></a b='c'></message>", frame.NotWellFormed},
		"slash within tag":          {open + "<a / b='c'></message>", frame.NotWellFormed},
		"attribute without space":   {open + "<a b='c'd='e'/></message>", frame.NotWellFormed},
		"attribute without value":   {open + "<a b/></message>", frame.NotWellFormed},
		"attribute without quotes":  {open + "<a b=c/></message>", frame.NotWellFormed},
		"digit for an attribute":    {open + "<a 1='c'/></message>", frame.NotWellFormed},
		"another end":               {open + "</massage>", frame.NotWellFormed},
		"the stream's end":          {open + "</stream:stream>", frame.NotWellFormed},
		"larger than is read over":  {addressed + strings.Repeat("x", 1501-len(addressed)-10) + "</message>", frame.PolicyViolation},
		"endless tag":               {"<message from='" + strings.Repeat("x", 2000), frame.PolicyViolation},
	} {
		t.Run(name, func(t *testing.T) {
			for cut, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
			} {
				r := frame.NewReader(wrap(strings.NewReader(good+tt.in+good)), skipping)
				got, err := tags(r)
				if len(got) != 1 || got[0] != good {
					t.Errorf("%s: %q", cut, got)
				}
				wantCondition(t, err, tt.want)
				if _, again := r.Next(); again != err {
					t.Errorf("%s: then %v, want the same error for ever", cut, again)
				}
			}
		})
	}
	for i := range deep {
		if _, err := tags(frame.NewReader(strings.NewReader(deep[:i]), skipping)); i > 0 && err != io.ErrUnexpectedEOF {
			t.Errorf("cut off at %d: %v", i, err)
		}
	}
}

// TestSkippedTagIsBounded: the tag is all that is kept, and no more than 16 KiB of it.
func TestSkippedTagIsBounded(t *testing.T) {
	for size, want := range map[int]error{16 << 10: io.EOF, 16<<10 + 1: nil} {
		in := "<message from='" + strings.Repeat("x", size-len("<message from=''>")) + "'>" + strings.Repeat("<a>", 70) + strings.Repeat("</a>", 70) + "</message>"
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(in), "byte by byte": iotest.OneByteReader(strings.NewReader(in))} {
			all, err := tags(frame.NewReader(r, frame.Limits{Skip: 1 << 20}))
			if want == nil {
				wantCondition(t, err, frame.PolicyViolation)
			} else if err != want || len(all) != 1 {
				t.Errorf("%s, %d bytes: %d elements, %v", name, size, len(all), err)
			}
		}
	}
}

// TestSkippedInBatches: a skipped element has its place between the others.
func TestSkippedInBatches(t *testing.T) {
	r := frame.NewReader(strings.NewReader(good+good+deep+deep+good), skipping)
	for i, want := range []string{good + good, "", "", good} {
		batch, err := r.Batch(nil)
		var skipped *frame.Skipped
		if got := string(bytes.Join(batch, nil)); got != want || errors.As(err, &skipped) != (want == "") {
			t.Errorf("batch %d: %q, %v", i, got, err)
		}
		if skipped != nil && (string(skipped.Tag) != addressed || skipped.Size != len(deep)) {
			t.Errorf("batch %d: %s", i, describe(skipped))
		}
	}
	if _, err := r.Batch(nil); err != io.EOF {
		t.Error(err)
	}
	r = frame.NewReader(strings.NewReader(good+deep+good), skipping)
	if _, err := r.Next(); err != nil { // the buffer has all three now
		t.Fatal(err)
	}
	if _, ok, err := r.NextBuffered(); ok || !errors.As(err, new(*frame.Skipped)) {
		t.Errorf("in the middle: %v, %v", ok, err)
	}
	if b, ok, err := r.NextBuffered(); string(b) != good || !ok || err != nil {
		t.Errorf("behind it: %q, %v, %v", b, ok, err)
	}
}

// TestBombsAreSkipped counts every byte that is allocated to read over what would cost
// a parser hundreds of megabytes.
func TestBombsAreSkipped(t *testing.T) {
	lim := frame.DefaultLimits()
	lim.Skip = 16 << 20
	for name, in := range map[string]io.Reader{
		"text":     io.MultiReader(strings.NewReader(addressed), &repeat{unit: "0123456789", n: 1 << 20}, strings.NewReader("</message>")),
		"CDATA":    io.MultiReader(strings.NewReader(addressed+"<![CDATA["), &repeat{unit: "01234]]]89", n: 1 << 20}, strings.NewReader("]]></message>")),
		"value":    io.MultiReader(strings.NewReader(addressed+"<x y='"), &repeat{unit: "01234<&>9"[:5], n: 2 << 20}, strings.NewReader("'/></message>")),
		"names":    io.MultiReader(strings.NewReader(addressed+"<"), &repeat{unit: "name", n: 2 << 20}, strings.NewReader("/></message>")),
		"elements": io.MultiReader(strings.NewReader(addressed), &repeat{unit: "<a>", n: 2 << 20}, &repeat{unit: "</a>", n: 2 << 20}, strings.NewReader("</message>")),
		"tags":     io.MultiReader(strings.NewReader(addressed+"<a"+attributes(64)), &repeat{unit: " b='c'", n: 2 << 20}, strings.NewReader("/></message>")),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			all, err := tags(frame.NewReader(io.MultiReader(in, strings.NewReader(good)), lim))
			runtime.ReadMemStats(&after)
			if err != io.EOF || len(all) != 2 || all[1] != good || !strings.HasPrefix(all[0], "("+addressed) {
				t.Errorf("%q, %v", all, err)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 2<<20 {
				t.Errorf("%d bytes were allocated", grown)
			}
		})
	}
}

func BenchmarkSkip(b *testing.B) {
	lim := frame.DefaultLimits()
	lim.Skip = 16 << 20
	in := []byte(addressed + strings.Repeat(string(chat), 4096) + "</message>")
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if _, err := frame.NewReader(bytes.NewReader(in), lim).Next(); !errors.As(err, new(*frame.Skipped)) {
			b.Fatal(err)
		}
	}
}

// FuzzSkip: whatever is skipped is the same however it is cut, and for what is
// well-formed it is one element to encoding/xml, too.
func FuzzSkip(f *testing.F) {
	for _, s := range []string{deep, good + deep + good, addressed + "<a" + attributes(6) + " b='/message>'/>]]<![CDATA[]]]]></message>" + good, string(bigIQ[:1500])} {
		f.Add([]byte(s), uint64(len(s)))
	}
	for _, tt := range refused {
		if len(tt.in) < 1000 {
			f.Add([]byte(strings.TrimSuffix(deep, "</message>")+tt.in+"</message>"+good), uint64(len(tt.in)))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		whole, err := tags(frame.NewReader(bytes.NewReader(in), skipping))
		for name, r := range map[string]io.Reader{
			"byte by byte": iotest.OneByteReader(bytes.NewReader(in)),
			"cut":          &cut{bytes.NewReader(in), seed},
			"with EOF":     iotest.DataErrReader(bytes.NewReader(in)),
		} {
			got, gotErr := tags(frame.NewReader(r, skipping))
			if strings.Join(got, "\x00") != strings.Join(whole, "\x00") || gotErr.Error() != err.Error() {
				t.Fatalf("%s: %q, %v; in one piece: %q, %v", name, got, gotErr, whole, err)
			}
		}
		skipBatched(t, in, whole, err)
		if err == io.EOF {
			sameElements(t, in, whole)
		}
	})
}

func skipBatched(t *testing.T, in []byte, want []string, wantErr error) {
	r := frame.NewReader(bytes.NewReader(in), skipping)
	var all []string
	for {
		batch, err := r.Batch(nil)
		for _, b := range batch {
			all = append(all, string(b))
		}
		var skipped *frame.Skipped
		if errors.As(err, &skipped) {
			all = append(all, describe(skipped))
		} else if err != nil {
			if strings.Join(all, "\x00") != strings.Join(want, "\x00") || err.Error() != wantErr.Error() {
				t.Fatalf("batched: %q, %v; one by one: %q, %v", all, err, want, wantErr)
			}
			return
		}
	}
}

// sameElements asks encoding/xml for the top-level elements, by their sizes and names.
// It knows less of namespaces and more of names, so that what it refuses is not looked
// at further.
func sameElements(t *testing.T, in []byte, got []string) {
	const stream = "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'>"
	d := xml.NewDecoder(strings.NewReader(stream + string(in) + "</stream:stream>"))
	depth, from := 0, int64(0)
	var want []int64
	for {
		at := d.InputOffset()
		tok, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return
		}
		switch tok.(type) {
		case xml.StartElement:
			if depth++; depth == 2 {
				from = at
			}
		case xml.EndElement:
			if depth--; depth == 1 {
				want = append(want, d.InputOffset()-from)
			}
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%q: %d elements %q, encoding/xml says %d", in, len(got), got, len(want))
	}
	for i, s := range got {
		size := int64(len(s))
		if s[0] == '(' {
			head := s[1 : strings.LastIndex(s, ">")+1]
			var n int64
			if _, err := fmt.Sscanf(s[1+len(head):], "%d", &n); err != nil {
				t.Fatal(err)
			}
			size = n
		}
		if size != want[i] {
			t.Fatalf("%q: element %d is %q, encoding/xml says %d bytes", in, i, s, want[i])
		}
	}
}
