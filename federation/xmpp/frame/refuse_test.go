package frame_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// good stands before each refused input: it must be delivered all the same.
const good = "<iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>"

var refused = []struct {
	name, in string
	want     frame.Condition
}{
	{"comment", "<message><!-- hidden --></message>", frame.RestrictedXML},
	{"comment between stanzas", "<!-- hidden --><message/>", frame.RestrictedXML},
	{"processing instruction", "<message><?php x ?></message>", frame.RestrictedXML},
	{"second XML declaration", "<?xml version='1.0'?><message/>", frame.RestrictedXML},
	{"document type", "<!DOCTYPE x [<!ENTITY a 'b'>]><message/>", frame.RestrictedXML},
	{"document type within", "<message><!DOCTYPE x></message>", frame.RestrictedXML},
	{"entity", "<message><body>&nbsp;</body></message>", frame.RestrictedXML},
	{"entity in attribute", "<message to='&lol;'/>", frame.RestrictedXML},
	{"entity with a long name", "<message>&" + strings.Repeat("a", 40) + ";</message>", frame.RestrictedXML},
	{"text between stanzas", "x<message/>", frame.BadFormat},
	{"text behind a stanza", "<message/>&amp;", frame.BadFormat},
	{"CDATA between stanzas", "<![CDATA[x]]><message/>", frame.BadFormat},
	{"NUL between stanzas", "\x00<message/>", frame.BadFormat},
	{"less-than in attribute", "<message to='a<b'/>", frame.NotWellFormed},
	{"less-than in plain attribute", "<message to='a@b.example' id='a<b' from='c@d.example'/>", frame.NotWellFormed},
	{"NUL in text", "<message><body>a\x00b</body></message>", frame.NotWellFormed},
	{"escape in text", "<message><body>a\x1bb</body></message>", frame.NotWellFormed},
	{"escape in CDATA", "<message><![CDATA[a\x1bb]]></message>", frame.NotWellFormed},
	{"escape in attribute", "<message id='a\x1bb'/>", frame.NotWellFormed},
	{"U+FFFF", "<message>\uffff</message>", frame.NotWellFormed},
	{"surrogate", "<message>\xed\xa0\x80</message>", frame.UnsupportedEncoding},
	{"overlong slash", "<message>\xc0\xaf</message>", frame.UnsupportedEncoding},
	{"Latin-1", "<message><body>Gr\xfc\xdfe an alle</body></message>", frame.UnsupportedEncoding},
	{"Latin-1 in attribute", "<message id='\xfc'/>", frame.UnsupportedEncoding},
	{"Latin-1 in name", "<m\xfc/>", frame.UnsupportedEncoding},
	{"wrong end tag", "<message><body>x</bodi></message>", frame.NotWellFormed},
	{"longer end tag", "<message><body>x</bodyx></message>", frame.NotWellFormed},
	{"wrong long end tag", "<message><conference>x</conferencf></message>", frame.NotWellFormed},
	{"end tags crossed", "<message><a><b></a></b></message>", frame.NotWellFormed},
	{"end tag with attribute", "<message></message a='b'>", frame.NotWellFormed},
	{"end tag too many", "<message/></message>", frame.NotWellFormed},
	{"stream end within stanza", "<message></stream:stream>", frame.NotWellFormed},
	{"CDATA end in text", "<message>a]]>b</message>", frame.NotWellFormed},
	{"false CDATA", "<message><![CDATE[x]]></message>", frame.NotWellFormed},
	{"conditional section", "<message><![INCLUDE[x]]></message>", frame.NotWellFormed},
	{"bare ampersand", "<message>a & b</message>", frame.NotWellFormed},
	{"empty reference", "<message>&;</message>", frame.RestrictedXML},
	{"reference to NUL", "<message>&#0;</message>", frame.NotWellFormed},
	{"reference to surrogate", "<message>&#xD800;</message>", frame.NotWellFormed},
	{"reference beyond Unicode", "<message>&#x110000;</message>", frame.NotWellFormed},
	{"reference with sign", "<message>&#-1;</message>", frame.NotWellFormed},
	{"reference with capital X", "<message>&#X41;</message>", frame.NotWellFormed},
	{"attribute twice", "<message id='1' to='x' id='2'/>", frame.NotWellFormed},
	{"long attribute twice", "<message><x persistent-id='1' persistent-id='2'/></message>", frame.NotWellFormed},
	{"attribute twice by namespace", "<message xmlns:a='u:x' xmlns:b='u:x' a:k='1' b:k='2'/>", frame.NotWellFormed},
	{"attribute twice by escaped namespace", "<message xmlns:a='u:x' xmlns:b='&#117;:x' a:k='1' b:k='2'/>", frame.NotWellFormed},
	{"attribute twice by the header's namespace", "<db:x xmlns:a='jabber:server:dialback' a:k='1' db:k='2'/>", frame.NotWellFormed},
	{"attribute without space", "<message id='1'to='x'/>", frame.NotWellFormed},
	{"attribute without value", "<message id/>", frame.NotWellFormed},
	{"attribute without quotes", "<message id=1/>", frame.NotWellFormed},
	{"slash within tag", "<message / id='1'>", frame.NotWellFormed},
	{"brace in name", "<messag{></messag{>", frame.NotWellFormed},
	{"backquote in name", "<messag`></messag`>", frame.NotWellFormed},
	{"brace in attribute name", "<message typ{='1' id='1'/>", frame.NotWellFormed},
	{"local name with digit first", "<message xmlns:a='u'><a:1/></message>", frame.NotWellFormed},
	{"stream's prefix below another", "<x:a xmlns:x='u'><db:b/></x:a>", frame.PolicyViolation},
	{"name with digit first", "<1message/>", frame.NotWellFormed},
	{"space before name", "< message/>", frame.NotWellFormed},
	{"unbound element prefix", "<message><x:y/></message>", frame.NotWellFormed},
	{"unbound attribute prefix", "<message x:y='1'/>", frame.NotWellFormed},
	{"prefix out of scope", "<message><a xmlns:x='u'/><x:y/></message>", frame.NotWellFormed},
	{"stream's prefix within a stanza", "<message><db:result/></message>", frame.PolicyViolation},
	{"stream's prefix of an attribute", "<message stream:a='b'/>", frame.PolicyViolation},
	{"two colons", "<message><xml:a:b/></message>", frame.NotWellFormed},
	{"colon first", "<message><:a/></message>", frame.NotWellFormed},
	{"colon last", "<message xmlns:a='u'><a:/></message>", frame.NotWellFormed},
	{"prefix bound to nothing", "<message xmlns:a=''/>", frame.NotWellFormed},
	{"xmlns rebound", "<message xmlns:xmlns='u'/>", frame.NotWellFormed},
	{"xml rebound", "<message xmlns:xml='u'/>", frame.NotWellFormed},
	{"prefix for xml's namespace", "<message xmlns:a='http://www.w3.org/XML/1998/namespace'/>", frame.NotWellFormed},
	{"xml's namespace as default", "<message xmlns='http://www.w3.org/XML/1998/namespace'/>", frame.NotWellFormed},
	{"xmlns's namespace as default", "<message xmlns='http://www.w3.org/2000/xmlns/'/>", frame.NotWellFormed},
	{"reserved namespace, escaped", "<message xmlns='http&#58;//www.w3.org/2000/xmlns/'/>", frame.NotWellFormed},
	{"namespace with a line feed", "<message><a xmlns='a&#10;b'/></message>", frame.NotWellFormed},
	{"name that XML 1.0 does not have", "<message><a\u00d7b/></message>", frame.NotWellFormed},
	{"65 elements deep", strings.Repeat("<a>", 65) + strings.Repeat("</a>", 65), frame.PolicyViolation},
	{"65 attributes", "<message" + attributes(65) + "/>", frame.PolicyViolation},
	{"65 prefixes", "<message" + strings.ReplaceAll(attributes(40), " a", " xmlns:a") + "><x" + strings.ReplaceAll(attributes(25), " a", " xmlns:b") + "/></message>", frame.PolicyViolation},
	{"one byte too many", sized(262145), frame.PolicyViolation},
}

func attributes(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" a" + string(rune('a'+i/26)) + string(rune('a'+i%26)) + "='v'")
	}
	return b.String()
}

// sized is a stanza of n bytes.
func sized(n int) string {
	const frame = "<message><body></body></message>"
	return "<message><body>" + strings.Repeat("x", n-len(frame)) + "</body></message>"
}

func TestRefused(t *testing.T) {
	for _, tt := range refused {
		t.Run(tt.name, func(t *testing.T) {
			for name, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader,
			} {
				r := frame.NewReader(wrap(strings.NewReader(head+good+tt.in+good)), frame.DefaultLimits())
				if _, err := r.Header(); err != nil {
					t.Fatalf("%s: header: %v", name, err)
				}
				stanzas, err := rest(r)
				if len(stanzas) == 0 || stanzas[0] != good {
					t.Errorf("%s: the stanza before was lost", name)
				}
				if len(stanzas) > 2 {
					t.Errorf("%s: %d stanzas were yielded", name, len(stanzas))
				}
				wantCondition(t, err, tt.want)
				if _, again := r.Next(); again != err {
					t.Errorf("%s: then %v, want the same error for ever", name, again)
				}
			}
			if err := frame.Check([]byte(tt.in), frame.DefaultLimits()); err == nil {
				t.Errorf("Check lets it through")
			}
		})
	}
}

func wantCondition(t *testing.T, err error, want frame.Condition) {
	t.Helper()
	var e *frame.Error
	if !errors.As(err, &e) || e.Condition != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// rest reads elements up to the error.
func rest(r *frame.Reader) ([]string, error) {
	var all []string
	for {
		b, err := r.Next()
		if err != nil {
			return all, err
		}
		all = append(all, string(b))
	}
}

func TestAccepted(t *testing.T) {
	for name, in := range map[string]string{
		"CDATA":                    "<message><body><![CDATA[a < b && c > d ]] ]> <!-- -->]]></body></message>",
		"empty CDATA":              "<message><![CDATA[]]></message>",
		"brackets before CDATA":    "<message>]]<![CDATA[]]]]><![CDATA[>]]></message>",
		"references":               "<message id='&amp;&lt;&gt;&apos;&quot;'>&#65;&#x1F600;&#x000000041;</message>",
		"greater-than in value":    "<message id='a>b' to=\"it's\"/>",
		"bracket and greater-than": "<message>a]>b]]&gt;</message>",
		"prefix after a child":     "<message xmlns:x='u'><a xmlns:y='v'><b/><y:c/></a><x:b/></message>",
		"white space in tags":      "<message\n id = '1'\t><body ></body\r\n></message >",
		"other scripts":            "<message id='Ωμέγα'><größe>Привет, 世界 😀</größe></message>",
		"bound prefixes":           "<message xmlns:x='u:x'><x:a x:b='1' b='2'><y:c xmlns:y='u:y' y:d='' x:d=''/></x:a></message>",
		"prefix rebound":           "<message xmlns:x='u:1'><a xmlns:x='u:2' xmlns:y='u:1' x:k='1' y:k='2'/></message>",
		"xml prefix":               "<message xml:lang='en' xml:space='preserve' xmlns:xml='http://www.w3.org/XML/1998/namespace'/>",
		"64 elements deep":         strings.Repeat("<a>", 64) + strings.Repeat("</a>", 64),
		"64 attributes":            "<message" + attributes(64) + "/>",
		"as large as may be":       sized(262144),
		"dialback":                 "<db:result from='a' to='b'>37c69b</db:result>",
		"attributes apart":         "<message xmlns:a='u:x' xmlns:b='u:y' a:k='1' b:k='2' a:l='3' k='4'><x xmlns:a='u:y' a:k='1' b:l='2'/></message>",
		"header's prefixes apart":  "<db:x xmlns:a='u:x' a:k='1' db:k='2' stream:k='3' k='4'/>",
		"stream error":             "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>",
	} {
		t.Run(name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader} {
				r := frame.NewReader(wrap(strings.NewReader(head+in+good)), frame.DefaultLimits())
				if _, err := r.Header(); err != nil {
					t.Fatal(err)
				}
				got, err := rest(r)
				if err != io.EOF || len(got) != 2 || got[0] != in {
					t.Fatalf("got %.200q, %v", got, err)
				}
			}
			err := frame.Check([]byte(in), frame.DefaultLimits())
			if foreign := in[1:4] == "db:" || in[1:4] == "str"; (err == nil) == foreign {
				t.Errorf("Check: %v", err)
			}
		})
	}
}

// TestSizeIsExact: a read that brings the whole element makes it no smaller.
func TestSizeIsExact(t *testing.T) {
	for _, size := range []int{len(good), len(good) - 1} {
		_, err := frame.NewReader(strings.NewReader(good), frame.Limits{Stanza: size}).Next()
		if size == len(good) && err != nil {
			t.Errorf("as large as may be: %v", err)
		}
		if size < len(good) {
			wantCondition(t, err, frame.PolicyViolation)
		}
	}
}

func TestTotalIsCountedAnew(t *testing.T) {
	lim := frame.Limits{Total: len(good) + 1}
	r := frame.NewReader(strings.NewReader(strings.Repeat(good, 3)), lim)
	for i := range 3 {
		_, err := r.Next()
		if i < 2 && err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			r.SetLimits(lim)
		}
		if i == 2 {
			wantCondition(t, err, frame.PolicyViolation)
		}
	}
}

func TestCheckWantsOneElement(t *testing.T) {
	for in, want := range map[string]frame.Condition{
		"":                      frame.BadFormat,
		" <message/>":           frame.BadFormat,
		"<message/> ":           frame.BadFormat,
		"<message/><message/>":  frame.BadFormat,
		"<message/></message>":  frame.BadFormat,
		"<message>":             frame.NotWellFormed,
		"</stream:stream>":      frame.NotWellFormed,
		"<message><body></body": frame.NotWellFormed,
		"<":                     frame.NotWellFormed,
		sized(262145):           frame.PolicyViolation,
	} {
		wantCondition(t, frame.Check([]byte(in), frame.Limits{}), want)
	}
}

func TestEndOfInput(t *testing.T) {
	for in, want := range map[string]error{
		"": io.EOF, " \n": io.EOF, "<message/>\n": io.EOF, "<message>": io.ErrUnexpectedEOF,
		"<": io.ErrUnexpectedEOF, "</stream:strea": io.ErrUnexpectedEOF, "<message>&am": io.ErrUnexpectedEOF,
		"</stream:stream>": frame.ErrStreamClosed,
	} {
		if _, err := rest(frame.NewReader(strings.NewReader(in), frame.Limits{})); err != want {
			t.Errorf("%q: %v, want %v", in, err, want)
		}
	}
}

// repeat yields before, then n times unit.
type repeat struct {
	before, unit string
	n, at        int
}

func (r *repeat) Read(p []byte) (int, error) {
	if r.before != "" {
		n := copy(p, r.before)
		r.before = r.before[n:]
		return n, nil
	}
	n := 0
	for n < len(p) && r.n > 0 {
		c := copy(p[n:], r.unit[r.at:])
		n += c
		if r.at += c; r.at == len(r.unit) {
			r.at, r.n = 0, r.n-1
		}
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestBombs feeds what would cost a parser hundreds of megabytes and counts
// every byte that refusing it allocates.
func TestBombs(t *testing.T) {
	const limit = 2 << 20
	for _, tt := range []struct {
		name string
		in   repeat
		want frame.Condition
	}{
		{"10 MB of text", repeat{before: "<message><body>", unit: "0123456789", n: 1 << 20}, frame.PolicyViolation},
		{"10 MB of attribute", repeat{before: "<message id='", unit: "0123456789", n: 1 << 20}, frame.PolicyViolation},
		{"10 MB of name", repeat{before: "<", unit: "message", n: 10 << 20 / 7}, frame.PolicyViolation},
		{"100,000 nested elements", repeat{unit: "<a>", n: 100_000}, frame.PolicyViolation},
		{"2,000,000 attributes", repeat{before: "<message", unit: " a='1'", n: 2_000_000}, frame.NotWellFormed},
		{"2,000,000 attributes to an element each", repeat{before: "<message>", unit: "<a" + attributes(65) + "/>", n: 2_000_000}, frame.PolicyViolation},
		{"64 MB of comment", repeat{before: "<message><!--", unit: "comment ", n: 8 << 20}, frame.RestrictedXML},
		{"64 MB of CDATA", repeat{before: "<message><![CDATA[", unit: "character", n: 8 << 20}, frame.PolicyViolation},
		{"billion laughs", repeat{before: "<!DOCTYPE lolz [<!ENTITY lol 'lol'>", unit: "<!ENTITY lol1 '&lol;&lol;'>", n: 1 << 20}, frame.RestrictedXML},
		{"64 MB of entity", repeat{before: "<message>&", unit: "lol", n: 20 << 20}, frame.RestrictedXML},
		{"stream end without an end", repeat{before: "</stream:stream", unit: " ", n: 10 << 20}, frame.NotWellFormed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := rest(frame.NewReader(&tt.in, frame.DefaultLimits()))
			runtime.ReadMemStats(&after)
			wantCondition(t, err, tt.want)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > limit {
				t.Errorf("%d bytes were allocated, want at most %d", grown, limit)
			}
		})
	}
}

// TestLargeStanzaIsForgotten: what one large stanza needed is given back.
func TestLargeStanzaIsForgotten(t *testing.T) {
	const streams = 100
	large := sized(250_000)
	var readers [streams]*frame.Reader
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range readers {
		// The second read brings nothing of the first.
		readers[i] = frame.NewReader(io.MultiReader(strings.NewReader(large), strings.NewReader(good)), frame.DefaultLimits())
		for range 2 {
			if _, err := readers[i].Next(); err != nil {
				t.Fatal(err)
			}
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / streams; each > 64<<10 {
		t.Errorf("a stream keeps %d bytes", each)
	}
	runtime.KeepAlive(&readers)
}

// A namespace is read where it is bound. Who binds many at length and then uses all of
// them in each of many tags must not have each read again for each pair of attributes:
// references make it visible, for what they stand for is written down anew each time.
func TestNamespacesAreReadOnce(t *testing.T) {
	var bind, use strings.Builder
	const prefixes, tags = 60, 100
	for i := range prefixes {
		fmt.Fprintf(&bind, " xmlns:p%d='&amp;%d'", i, i)
		fmt.Fprintf(&use, " p%d:a=''", i)
	}
	stanza := []byte("<message><x" + bind.String() + ">" + strings.Repeat("<y"+use.String()+"/>", tags) + "</x></message>")
	allocs := testing.AllocsPerRun(3, func() {
		if err := frame.Check(stanza, frame.DefaultLimits()); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 3*prefixes {
		t.Errorf("%v allocations for %d namespaces in %d tags", allocs, prefixes, tags)
	}
}

func TestReaderAllocatesNothing(t *testing.T) {
	r := frame.NewReader(&endless{piece: chat}, frame.DefaultLimits())
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a stanza", n)
	}
}
