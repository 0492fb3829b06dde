package s2s

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/idna"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

const (
	nsStreams  = "urn:ietf:params:xml:ns:xmpp-streams"
	nsStanzas  = "urn:ietf:params:xml:ns:xmpp-stanzas"
	nsDialback = "urn:xmpp:features:dialback"
)

// Conditions of RFC 6120 §4.9.3 beyond those that framing has.
const (
	conditionHostUnknown   frame.Condition = "host-unknown"
	conditionAddressing    frame.Condition = "improper-addressing"
	conditionInvalidFrom   frame.Condition = "invalid-from"
	conditionInvalidXML    frame.Condition = "invalid-xml"
	conditionNotAuthorized frame.Condition = "not-authorized"
	conditionTimeout       frame.Condition = "connection-timeout"
	conditionInternal      frame.Condition = "internal-server-error"
	conditionResource      frame.Condition = "resource-constraint"
	conditionShutdown      frame.Condition = "system-shutdown"
	conditionUnknownStanza frame.Condition = "unsupported-stanza-type"
)

// goodbye is how long a closing stream waits for the other side to close too.
const goodbye = 2 * time.Second

const closeTag = "</stream:stream>"

// RemoteError is a stream error that the local server sent.
type RemoteError struct {
	Condition string // of RFC 6120 §4.9.3
	Text      string // for people
}

func (e *RemoteError) Error() string {
	if e.Text == "" {
		return "the local server closed the stream: " + e.Condition
	}
	return fmt.Sprintf("the local server closed the stream: %s: %s", e.Condition, e.Text)
}

// stream is one connection and the XML stream on it that is current: TLS and
// SASL each begin a new one.
type stream struct {
	conn      net.Conn // TLS once secure has run
	rd        *frame.Reader
	self, far string // the domains at our end and at the server's, normalised
	writeWait time.Duration
	writing   sync.Mutex // acknowledgements are written by goroutines of their own
	opened    bool       // our header of the current stream is out
	hurried   atomic.Bool
	mute      bool // a TLS handshake is under way, so that no XML can be sent
	managed   bool // the server at the other end acknowledges what we send
}

func newStream(conn net.Conn, writeWait time.Duration) *stream {
	return &stream{conn: conn, rd: frame.NewReader(conn, frame.HandshakeLimits()), writeWait: writeWait}
}

// write sends b whole or fails within writeWait, or goodbye once we are hurried.
func (st *stream) write(b []byte) error {
	st.writing.Lock()
	defer st.writing.Unlock()
	if err := st.conn.SetWriteDeadline(time.Now().Add(st.writeWait)); err != nil {
		return err
	}
	if st.hurried.Load() { // read after the deadline was set, which hurry may have done before
		if err := st.conn.SetWriteDeadline(time.Now().Add(goodbye)); err != nil {
			return err
		}
	}
	_, err := st.conn.Write(b)
	return err
}

// hurry bounds the write that is under way, and those that follow: the gateway is
// stopping, and a server that does not read does not hold it up for long. conn is
// that of the stream or the one below it.
func (st *stream) hurry(conn net.Conn) {
	st.hurried.Store(true)
	_ = conn.SetWriteDeadline(time.Now().Add(goodbye)) // or it is closed
}

func (st *stream) send(format string, args ...any) error {
	return st.write(fmt.Appendf(nil, format, args...))
}

// open sends our stream header, with an id where we are the receiving side, and
// what belongs right behind it.
func (st *stream) open(id, behind string) error {
	if id != "" {
		id = " id='" + id + "'"
	}
	var ends string
	if st.self != "" { // else the server's own header could not be read
		ends = " from='" + spell(st.self) + "' to='" + spell(st.far) + "'"
	}
	st.opened = true
	return st.send("<?xml version='1.0'?><stream:stream xmlns='"+frame.NSServer+"' xmlns:db='"+frame.NSDialback+"'"+
		" xmlns:stream='"+frame.NSStream+"'%s%s version='1.0'>%s", ends, id, behind)
}

// spell gives a domain as XMPP addresses have it: in U-labels (RFC 7622 §3.2).
func spell(domain string) string {
	u, err := idna.Lookup.ToUnicode(domain)
	if err != nil {
		return domain
	}
	return u
}

// secure puts TLS below the stream. Bytes that came before it are an attempt to
// inject them into what TLS protects (RFC 6120 §5.4.3.3), and refused.
func (st *stream) secure(ctx context.Context, wrap func(net.Conn, *tls.Config) *tls.Conn, config *tls.Config) (tls.ConnectionState, error) {
	if err := st.unbuffered(); err != nil {
		return tls.ConnectionState{}, err
	}
	conn := wrap(st.conn, config)
	st.mute = true
	if err := conn.HandshakeContext(ctx); err != nil {
		return tls.ConnectionState{}, &tlsError{err}
	}
	st.conn, st.mute = conn, false
	return conn.ConnectionState(), st.restart()
}

// tlsError is a failed TLS handshake.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return "tls handshake: " + e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// unbuffered refuses what stands between two streams, where nothing may.
func (st *stream) unbuffered() error {
	if st.rd.Buffered() > 0 {
		return refuse(frame.PolicyViolation, "data between two streams")
	}
	return nil
}

// restart expects a new stream on the same connection.
func (st *stream) restart() error {
	if err := st.unbuffered(); err != nil {
		return err
	}
	st.rd = frame.NewReader(st.conn, frame.HandshakeLimits())
	st.opened = false
	return nil
}

// sayGoodbye ends our direction of the stream. That the connection may be gone
// already is no matter.
func (st *stream) sayGoodbye() { _ = st.write([]byte(closeTag)) }

// bidFarewell ends our direction and tells the server why.
func (st *stream) bidFarewell(why toldError) {
	if st.write(append(why.XML(), closeTag...)) == nil {
		st.linger()
	}
}

// linger reads on for a moment. Closing a connection with bytes unread would
// reset it, and the server would lose the error that was written to it.
func (st *stream) linger() {
	if c, ok := st.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() != nil {
		return
	}
	if st.conn.SetReadDeadline(time.Now().Add(goodbye)) == nil {
		_, _ = io.CopyN(io.Discard, st.conn, 1<<20) // how it ends tells nothing
	}
}

var errClosed = errors.New("the local server closed the stream")

func refuse(c frame.Condition, format string, args ...any) error {
	return &frame.Error{Condition: c, Text: fmt.Sprintf(format, args...)}
}

// next waits for one element of the handshake. A stream error is an error.
func (st *stream) next() (*frame.Element, error) {
	el, err := st.rd.Element()
	if err == nil && el.Is(frame.NSStream, "error") {
		return nil, streamError(el)
	}
	return el, err
}

// condition is the defined condition and the text of an error or failure.
func condition(el *frame.Element, space string) (condition, text string) {
	condition = "undefined-condition"
	for _, c := range el.Children {
		switch {
		case c.XMLName.Space != space:
		case c.XMLName.Local == "text":
			text = strings.TrimSpace(c.Text)
		default:
			condition = c.XMLName.Local
		}
	}
	return condition, text
}

func streamError(el *frame.Element) error {
	c, text := condition(el, nsStreams)
	return &RemoteError{c, text}
}

// pairOf reads the two addresses of a dialback element.
func pairOf(el *frame.Element) (pair, error) { return normalPair(el.Attr("from"), el.Attr("to")) }

func normalPair(from, to string) (p pair, err error) {
	if p.from, err = federation.NormalizeDomain(from); err != nil {
		return p, refuse(conditionAddressing, "'from': %v", err)
	}
	if p.to, err = federation.NormalizeDomain(to); err != nil {
		return p, refuse(conditionAddressing, "'to': %v", err)
	}
	return p, nil
}
