package frame

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Namespaces of the stream and of its handshake.
const (
	NSStream   = "http://etherx.jabber.org/streams"
	NSServer   = "jabber:server"
	NSDialback = "jabber:server:dialback"
	NSTLS      = "urn:ietf:params:xml:ns:xmpp-tls"
	NSSASL     = "urn:ietf:params:xml:ns:xmpp-sasl"
)

// What a stream is taken to have begun with when its header was not read.
const (
	plainName = "stream:stream"
	plainHead = "<stream:stream xmlns='" + NSServer + "' xmlns:stream='" + NSStream + "' xmlns:db='" + NSDialback + "'>"
)

var plainPrefixes = []prefix{{"stream", NSStream}, {"db", NSDialback}}

// Header is the start tag of a stream (RFC 6120 §4.7), its values decoded.
type Header struct {
	From, To, ID, Version, Lang string
	// Dialback says that the header binds the namespace of XEP-0220.
	Dialback bool
}

// Header waits for the start tag of a stream, at the beginning and after each
// restart. An XML declaration may stand before it.
func (r *Reader) Header() (Header, error) {
	if err := r.declaration(); err != nil {
		return Header{}, err
	}
	r.scan.ambient = nil // a header has to bind what it uses
	for {
		if err := r.skipSpace(); err != nil {
			return Header{}, err
		}
		b := r.buf[r.from:]
		n, err := r.scan.scanTag(b)
		if err != nil {
			return Header{}, r.fail(err)
		}
		if n > 0 {
			selfClosed := r.scan.state == afterElement
			r.scan.reset()
			r.from += n
			if err := r.spend(n); err != nil {
				return Header{}, err
			}
			if selfClosed {
				return Header{}, r.fail(refuse(BadFormat, "stream that ends in its own start tag"))
			}
			return r.begin(slices.Clone(b[:n]))
		}
		if err := r.starved(); err != nil {
			return Header{}, err
		}
		r.fill()
	}
}

// declaration skips an XML declaration, if that is what the stream begins with.
func (r *Reader) declaration() error {
	const open = "<?xml "
	for {
		if r.err != nil {
			return r.err
		}
		if err := r.skipSpace(); err != nil {
			return err
		}
		b := r.buf[r.from:]
		n := min(len(b), len(open))
		if string(b[:n]) != open[:n] {
			return nil
		}
		if end := bytes.IndexByte(b, '>'); end >= 0 {
			r.from += end + 1
			if err := checkDeclaration(b[:end+1]); err != nil {
				return r.fail(err)
			}
			return r.spend(end + 1)
		}
		if len(b) > idleSize {
			return r.fail(refuse(NotWellFormed, "XML declaration without an end"))
		}
		if err := r.starved(); err != nil {
			return err
		}
		r.fill()
	}
}

// checkDeclaration refuses other versions than 1.0 and encodings than UTF-8.
func checkDeclaration(decl []byte) error {
	rest, ended := bytes.CutSuffix(decl[len("<?xml"):], []byte("?>"))
	if !ended {
		return refuse(NotWellFormed, "XML declaration that does not end in \"?>\"")
	}
	rest = append(bytes.Clone(rest), '>')
	for _, want := range []string{"version", "encoding", "standalone"} {
		name, value, n := nextAttr(rest)
		switch {
		case want == "version" && (string(name) != want || string(value) != "1.0"):
			return refuse(NotWellFormed, "XML declaration of another version than 1.0")
		case string(name) != want: // the other two may be absent
			continue
		case want == "encoding" && !bytes.EqualFold(value, []byte("UTF-8")):
			return refuse(UnsupportedEncoding, "encoding other than UTF-8")
		}
		rest = rest[n:]
	}
	if name, _, n := nextAttr(rest); name != nil || n == 0 {
		return refuse(NotWellFormed, "XML declaration with more than it may have")
	}
	return nil
}

// begin takes the start tag of a stream into force.
func (r *Reader) begin(tag []byte) (Header, error) {
	tok, err := xml.NewDecoder(bytes.NewReader(tag)).Token()
	start, ok := tok.(xml.StartElement)
	if err != nil || !ok {
		return Header{}, r.fail(refuse(NotWellFormed, "stream header that cannot be read"))
	}
	if start.Name != (xml.Name{Space: NSStream, Local: "stream"}) {
		return Header{}, r.fail(refuse(InvalidNamespace, "the first element is not the header of an XMPP stream"))
	}
	var h Header
	content := ""
	r.scan.ambient = nil
	for _, a := range start.Attr {
		switch {
		case a.Name.Space == "xmlns":
			r.scan.ambient = append(r.scan.ambient, prefix{a.Name.Local, a.Value})
			h.Dialback = h.Dialback || a.Value == NSDialback
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			content = a.Value
		case a.Name.Space == xmlURI && a.Name.Local == "lang":
			h.Lang = a.Value
		case a.Name.Space == "":
			h.set(a.Name.Local, a.Value)
		}
	}
	if content != NSServer {
		return Header{}, r.fail(refuse(InvalidNamespace, "the stream's content namespace is not jabber:server"))
	}
	r.head = tag
	end := bytes.IndexAny(tag, " \t\r\n>")
	r.name = string(tag[1:end])
	return h, nil
}

func (h *Header) set(name, value string) {
	switch name {
	case "from":
		h.From = value
	case "to":
		h.To = value
	case "id":
		h.ID = value
	case "version":
		h.Version = value
	}
}

// Element is a small element, decoded: a feature, a step of a handshake.
type Element struct {
	XMLName  xml.Name
	Attrs    []xml.Attr `xml:",any,attr"`
	Children []Element  `xml:",any"`
	Text     string     `xml:",chardata"`
}

// Is says whether the element has that name.
func (e *Element) Is(space, local string) bool {
	return e.XMLName.Space == space && e.XMLName.Local == local
}

// Attr returns an attribute that has no namespace, or "".
func (e *Element) Attr(local string) string {
	for _, a := range e.Attrs {
		if a.Name.Space == "" && a.Name.Local == local {
			return a.Value
		}
	}
	return ""
}

// Child returns the first child of that name, or nil.
func (e *Element) Child(space, local string) *Element {
	for i := range e.Children {
		if e.Children[i].Is(space, local) {
			return &e.Children[i]
		}
	}
	return nil
}

// Element waits for the next element and decodes it. It is for handshakes: put
// HandshakeLimits in force first.
func (r *Reader) Element() (*Element, error) {
	b, err := r.Next()
	if err != nil {
		return nil, err
	}
	el, err := r.Decode(b)
	if err != nil {
		return nil, r.fail(err)
	}
	return el, nil
}

// Decode decodes an element of this stream, with the namespaces that the
// stream's header binds.
func (r *Reader) Decode(element []byte) (*Element, error) {
	d := xml.NewDecoder(io.MultiReader(bytes.NewReader(r.head), bytes.NewReader(element)))
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("decode stream header: %w", err)
	}
	el := new(Element)
	if err := d.Decode(el); err != nil {
		return nil, refuse(NotWellFormed, "element that cannot be decoded")
	}
	return el, nil
}

// Features is what a server offers at one point of a handshake (RFC 6120 §4.3.2).
type Features struct {
	StartTLS         bool
	StartTLSRequired bool
	Mechanisms       []string // of SASL
	Dialback         bool     // XEP-0220
}

// Features waits for the features of the stream.
func (r *Reader) Features() (Features, error) {
	el, err := r.Element()
	if err != nil {
		return Features{}, err
	}
	if !el.Is(NSStream, "features") {
		return Features{}, fmt.Errorf("want stream features, got %s", el)
	}
	var f Features
	if tls := el.Child(NSTLS, "starttls"); tls != nil {
		f.StartTLS, f.StartTLSRequired = true, tls.Child(NSTLS, "required") != nil
	}
	if sasl := el.Child(NSSASL, "mechanisms"); sasl != nil {
		for _, m := range sasl.Children {
			if m.Is(NSSASL, "mechanism") {
				f.Mechanisms = append(f.Mechanisms, strings.TrimSpace(m.Text))
			}
		}
	}
	f.Dialback = el.Child("urn:xmpp:features:dialback", "dialback") != nil
	return f, nil
}

// String names the element for an error or a log, with the defined condition
// where it is a failure, and nothing else of what it holds.
func (e *Element) String() string {
	s := "<" + e.XMLName.Local
	if len(e.Children) > 0 {
		s += "><" + e.Children[0].XMLName.Local + "/></" + e.XMLName.Local + ">"
		return s
	}
	return s + "/>"
}
