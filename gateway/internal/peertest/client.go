package peertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"mellium.im/sasl"
	"mellium.im/xmlstream"
	"mellium.im/xmpp"
	"mellium.im/xmpp/disco"
	"mellium.im/xmpp/jid"
	"mellium.im/xmpp/mux"
	"mellium.im/xmpp/ping"
	"mellium.im/xmpp/roster"
	"mellium.im/xmpp/stanza"
)

// ClientConfig says who logs in where.
type ClientConfig struct {
	// JID is bare or full; Addr the server's host:port for clients. No name is
	// looked up.
	JID, Password, Addr string
	// Roots verify the server's certificate for the JID's domain.
	Roots *x509.CertPool
	// Dial replaces net.Dialer, to reach into a network namespace.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Client is an ordinary XMPP client session. Methods may be called from many
// goroutines. Presence is not sent by itself: call Available.
type Client struct {
	// JID is the full address that the server bound.
	JID string
	*Inbox

	session *xmpp.Session
	conn    net.Conn
	observe atomic.Pointer[func(*Stanza) bool]
	ids     atomic.Uint64
	done    chan struct{}
	err     error // why Serve ended; read after done
}

// Login connects, encrypts (STARTTLS), authenticates (SCRAM-SHA-1 or -256) and
// binds a resource. The session lives until Close or until the server ends it.
func Login(ctx context.Context, cfg ClientConfig) (*Client, error) {
	c, err := login(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("log in as %s at %s: %w", cfg.JID, cfg.Addr, err)
	}
	return c, nil
}

func login(ctx context.Context, cfg ClientConfig) (*Client, error) {
	addr, err := jid.Parse(cfg.JID)
	if err != nil {
		return nil, err
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	conn, err := dial(ctx, "tcp", cfg.Addr)
	if err != nil {
		return nil, err
	}
	// The session heeds the context's deadline only; closing the connection
	// makes it heed cancellation as well.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	session, err := xmpp.NewClientSession(ctx, addr, conn,
		xmpp.StartTLS(&tls.Config{ServerName: addr.Domainpart(), RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12}),
		xmpp.SASL("", cfg.Password, sasl.ScramSha256, sasl.ScramSha1),
		xmpp.BindResource(),
	)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	c := &Client{
		JID: session.LocalAddr().String(), Inbox: newInbox(),
		session: session, conn: conn, done: make(chan struct{}),
	}
	go c.serve()
	return c, nil
}

func (c *Client) serve() {
	defer close(c.done)
	// IQ requests are answered as clients answer them; for others Serve sends
	// the error.
	iqs := mux.New(stanza.NSClient, disco.Handle(), ping.Handle())
	err := c.session.Serve(xmpp.HandlerFunc(func(rw xmlstream.TokenReadEncoder, start *xml.StartElement) error {
		switch start.Name.Local {
		case "iq":
			return iqs.HandleXMPP(rw, start)
		case "message", "presence":
		default:
			return nil
		}
		s, err := readStanza(rw, start)
		if err != nil {
			return err
		}
		if observe := c.observe.Load(); observe == nil || (*observe)(&s) {
			c.add(s)
		}
		return nil
	}))
	if err == nil {
		err = errors.New("the session was closed")
	}
	c.err = fmt.Errorf("session of %s has ended: %w", c.JID, err)
	c.conn.Close()
	c.end(c.err)
}

// Observe has f see each message and presence before it is kept; f may keep it
// out of the Inbox by returning false. It runs on the reading goroutine and must
// be quick. Benchmarks count with it. nil ends the observation.
func (c *Client) Observe(f func(*Stanza) (keep bool)) {
	if f == nil {
		c.observe.Store(nil)
		return
	}
	c.observe.Store(&f)
}

// Done is closed when the session has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the session lives.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Close ends the stream, waits shortly for the server to do so too, and closes
// the connection. It may be called many times.
func (c *Client) Close() error {
	if c.Err() != nil {
		return nil
	}
	if err := c.conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close session of %s: %w", c.JID, err)
	}
	// A server that is gone cannot be told; serve sees that too and ends.
	_ = c.session.Close()
	<-c.done
	return nil
}

// NewID returns an id that this client has not used.
func (c *Client) NewID() string { return "pt-" + strconv.FormatUint(c.ids.Add(1), 36) }

// Send writes bytes, which must be whole stanzas, onto the stream as they are.
// Concurrent calls do not mix.
func (c *Client) Send(ctx context.Context, stanzas []byte) error {
	if err := c.Err(); err != nil {
		return err
	}
	w := c.session.TokenWriter() // holds the stream's write lock until Close
	defer w.Close()
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return fmt.Errorf("send as %s: %w", c.JID, err)
	}
	if _, err := c.session.Conn().Write(stanzas); err != nil {
		return fmt.Errorf("send as %s: %w", c.JID, err)
	}
	return nil
}

// outgoing is a message or presence as it is written.
type outgoing struct {
	XMLName xml.Name
	To      string `xml:"to,attr,omitempty"`
	Type    string `xml:"type,attr,omitempty"`
	ID      string `xml:"id,attr,omitempty"`
	Body    string `xml:"body,omitempty"`
	MUC     *muc   `xml:"http://jabber.org/protocol/muc x"`
}

type muc struct {
	History struct {
		MaxStanzas int `xml:"maxstanzas,attr"`
	} `xml:"history"`
}

func (c *Client) encode(ctx context.Context, s outgoing) error {
	var b bytes.Buffer
	if err := xml.NewEncoder(&b).Encode(s); err != nil {
		return fmt.Errorf("send as %s: %w", c.JID, err)
	}
	return c.Send(ctx, b.Bytes())
}

// SendMessage sends a chat message; what becomes of it arrives in the Inbox: an
// error stanza with the same id, or nothing.
func (c *Client) SendMessage(ctx context.Context, to, body, id string) error {
	return c.encode(ctx, outgoing{XMLName: xml.Name{Local: "message"}, To: to, Type: "chat", ID: id, Body: body})
}

// GroupChat sends a message to a room that was joined.
func (c *Client) GroupChat(ctx context.Context, room, body, id string) error {
	return c.encode(ctx, outgoing{XMLName: xml.Name{Local: "message"}, To: room, Type: "groupchat", ID: id, Body: body})
}

// Presence sends a presence of a type ("" is available) to one address, or to
// all subscribers if to is empty.
func (c *Client) Presence(ctx context.Context, to, typ string) error {
	return c.encode(ctx, outgoing{XMLName: xml.Name{Local: "presence"}, To: to, Type: typ})
}

// Available fetches the roster, by which a server knows that it is to send
// subscription changes here (RFC 6121 §2.2), and sends initial presence.
func (c *Client) Available(ctx context.Context) error {
	if _, err := c.Roster(ctx); err != nil {
		return err
	}
	return c.Presence(ctx, "", "")
}

// Roster returns the subscription of each contact: "none", "to", "from", "both".
func (c *Client) Roster(ctx context.Context) (map[string]string, error) {
	items := map[string]string{}
	iter := roster.Fetch(ctx, c.session)
	for iter.Next() {
		items[iter.Item().JID.String()] = iter.Item().Subscription
	}
	if err := errors.Join(iter.Err(), iter.Close()); err != nil {
		return nil, fmt.Errorf("fetch roster of %s: %w", c.JID, err)
	}
	return items, nil
}

// Subscribe asks for another's presence, Approve grants one's own (RFC 6121 §3).
func (c *Client) Subscribe(ctx context.Context, to string) error {
	return c.Presence(ctx, to, "subscribe")
}

// Approve grants a subscription that another asked for.
func (c *Client) Approve(ctx context.Context, to string) error {
	return c.Presence(ctx, to, "subscribed")
}

// JoinMUC enters a room and waits until the room has sent one's own presence
// (XEP-0045 §7.2.2) or an error.
func (c *Client) JoinMUC(ctx context.Context, room, nick string) error {
	occupant := room + "/" + nick
	mark := c.Mark()
	if err := c.encode(ctx, outgoing{XMLName: xml.Name{Local: "presence"}, To: occupant, MUC: &muc{}}); err != nil {
		return err
	}
	s, err := c.AwaitAfter(ctx, mark, "own presence from "+occupant, func(s *Stanza) bool {
		return s.Kind == "presence" && s.From == occupant && (s.Type == "error" || s.Type == "" && s.HasStatus(110))
	})
	if err != nil {
		return err
	}
	if s.Error != nil {
		return fmt.Errorf("join %s as %s: %w", occupant, c.JID, s.Error)
	}
	return nil
}

// LeaveMUC leaves a room without waiting.
func (c *Client) LeaveMUC(ctx context.Context, room, nick string) error {
	return c.Presence(ctx, room+"/"+nick, "unavailable")
}

// DiscoInfo asks an address what it is (XEP-0030). An error answer is returned
// as a stanza.Error.
func (c *Client) DiscoInfo(ctx context.Context, to string) (disco.Info, error) {
	j, err := jid.Parse(to)
	if err != nil {
		return disco.Info{}, fmt.Errorf("disco %s: %w", to, err)
	}
	i, err := disco.GetInfo(ctx, "", j, c.session)
	if err != nil {
		return i, fmt.Errorf("disco %s as %s: %w", to, c.JID, err)
	}
	return i, nil
}

// Ping asks an address for a sign of life (XEP-0199) and returns how long it
// took. An error answer is returned as a stanza.Error.
func (c *Client) Ping(ctx context.Context, to string) (time.Duration, error) {
	j, err := jid.Parse(to)
	if err != nil {
		return 0, fmt.Errorf("ping %s: %w", to, err)
	}
	start := time.Now()
	// Not ping.Send: it takes service-unavailable for a success.
	iq := ping.IQ{IQ: stanza.IQ{Type: stanza.GetIQ, To: j}}
	if err := c.session.UnmarshalIQ(ctx, iq.TokenReader(), nil); err != nil {
		return 0, fmt.Errorf("ping %s as %s: %w", to, c.JID, err)
	}
	return time.Since(start), nil
}

// Bare returns the address without resource.
func Bare(addr string) string {
	bare, _, _ := strings.Cut(addr, "/")
	return bare
}
