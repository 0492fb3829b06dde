package s2s

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// keepAlive finds a server that vanished without a word within half a minute.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}

// dialWait bounds the TCP part of a handshake: the server is near.
const dialWait = 5 * time.Second

// past is a deadline that ends whatever waits on a connection.
var past = time.Unix(1, 0)

// errSASL is the server's refusal of our certificate.
var errSASL = errors.New("SASL EXTERNAL refused")

// connect opens an authenticated stream from a peer domain to a local one.
func (s *Streams) connect(ctx context.Context, p pair) (*stream, error) {
	s.metrics.shaking(dirOut, 1)
	defer s.metrics.shaking(dirOut, -1)
	ctx, cancel := context.WithTimeout(ctx, s.limits.Handshake)
	defer cancel()
	st, err := s.call(ctx, p, s.authenticate)
	if errors.Is(err, errSASL) {
		// Most servers end the stream now, so dialback begins afresh.
		first := err
		if st, err = s.call(ctx, p, s.proveByDialback); err != nil {
			err = fmt.Errorf("%w; then dialback: %w", first, err)
		}
	}
	s.metrics.handshake(dirOut, outcome(err))
	if err != nil {
		return nil, fmt.Errorf("s2s stream %s -> %s: %w", p.from, p.to, err)
	}
	return st, nil
}

// call dials the server of p.to, opens a stream protected by TLS and hands it to
// then, with the features that the server offers on it. The stream lives on if
// then has no objection. The context bounds all of it.
func (s *Streams) call(ctx context.Context, p pair, then func(*stream, offer) error) (*stream, error) {
	server := s.serverOf(p.to)
	if server == nil {
		return nil, ErrNoServer
	}
	dialer := net.Dialer{Timeout: dialWait, KeepAliveConfig: keepAlive}
	conn, err := dialer.DialContext(ctx, "tcp", server.Addr)
	if err != nil {
		return nil, err
	}
	st := newStream(conn, s.limits.Write)
	st.self, st.far = p.from, p.to
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	err = s.protect(ctx, st, server, then)
	if !stop() {
		err = ctx.Err()
	}
	if err != nil {
		st.conn.Close()
		return nil, err
	}
	return st, conn.SetDeadline(time.Time{})
}

func (s *Streams) protect(ctx context.Context, st *stream, server *Server, then func(*stream, offer) error) error {
	o, err := st.initiate()
	if err != nil {
		return err
	}
	if o.features.Child(frame.NSTLS, "starttls") == nil {
		return errors.New("the local server offers no STARTTLS: give it a certificate, as `yggate setup` shows")
	}
	if err := st.send("<starttls xmlns='%s'/>", frame.NSTLS); err != nil {
		return err
	}
	el, err := st.next()
	if err != nil {
		return err
	}
	if !el.Is(frame.NSTLS, "proceed") {
		return fmt.Errorf("the local server answered STARTTLS with %s", el)
	}
	config, err := s.clientTLS(server, st.self, st.far)
	if err != nil {
		return err
	}
	if _, err := st.secure(ctx, tls.Client, config); err != nil {
		return err
	}
	if o, err = st.initiate(); err != nil {
		return err
	}
	return then(st, o)
}

// offer is how the server answered our stream header.
type offer struct {
	id       string
	features *frame.Element
}

func (st *stream) initiate() (offer, error) {
	if err := st.open("", ""); err != nil {
		return offer{}, err
	}
	h, err := st.rd.Header()
	if err != nil {
		return offer{}, err
	}
	el, err := st.next()
	if err != nil {
		return offer{}, err
	}
	switch {
	case !el.Is(frame.NSStream, "features"):
		return offer{}, fmt.Errorf("want stream features, got %s", el)
	case h.ID == "":
		return offer{}, errors.New("the local server gave the stream no id")
	}
	return offer{h.ID, el}, nil
}

// authenticate takes the better mechanism that the server offers. One that
// trusts our certificate offers EXTERNAL.
func (s *Streams) authenticate(st *stream, o offer) error {
	if o.hasExternal() {
		return st.external()
	}
	if err := s.proveByDialback(st, o); err != nil {
		return fmt.Errorf("the local server does not trust our certificate, give it ca.pem as `yggate setup` shows; it offers no SASL EXTERNAL: %w", err)
	}
	return nil
}

// external proves the peer domain with the certificate shown in the TLS
// handshake (XEP-0178 §3).
func (st *stream) external() error {
	authzid := base64.StdEncoding.EncodeToString([]byte(spell(st.self)))
	if err := st.send("<auth xmlns='%s' mechanism='EXTERNAL'>%s</auth>", frame.NSSASL, authzid); err != nil {
		return err
	}
	el, err := st.next()
	if err != nil {
		return err
	}
	if !el.Is(frame.NSSASL, "success") {
		c, text := condition(el, frame.NSSASL)
		return fmt.Errorf("%w: %s %s", errSASL, c, text)
	}
	if err := st.restart(); err != nil {
		return err
	}
	o, err := st.initiate()
	if err != nil {
		return err
	}
	return st.enable(o)
}

func (o offer) hasExternal() bool {
	mechanisms := o.features.Child(frame.NSSASL, "mechanisms")
	return mechanisms != nil && slices.ContainsFunc(mechanisms.Children, func(m frame.Element) bool {
		return m.Is(frame.NSSASL, "mechanism") && strings.TrimSpace(m.Text) == "EXTERNAL"
	})
}

// proveByDialback sends a key that the server then asks us about, on a stream of
// its own to our listener (XEP-0220 §2.1).
func (s *Streams) proveByDialback(st *stream, o offer) error {
	if o.features.Child(nsDialback, "dialback") == nil {
		return errors.New("it offers no dialback")
	}
	self, far := spell(st.self), spell(st.far)
	if err := st.send("<db:result from='%s' to='%s'>%s</db:result>", self, far, s.secret.key(st.far, st.self, o.id)); err != nil {
		return err
	}
	el, err := st.dialbackAnswer("result", "")
	if err != nil {
		return err
	}
	return dialbackVerdict(el)
}

// verify asks the server of p.from whether it gave out key for the stream id
// that we named on its stream to p.to (XEP-0220 §2.2).
func (s *Streams) verify(ctx context.Context, p pair, id, key string) error {
	st, err := s.call(ctx, pair{from: p.to, to: p.from}, func(st *stream, _ offer) error {
		err := st.send("<db:verify from='%s' to='%s' id='%s'>%s</db:verify>", spell(st.self), spell(st.far), id, escape(key))
		if err != nil {
			return err
		}
		el, err := st.dialbackAnswer("verify", id)
		if err != nil {
			return err
		}
		return dialbackVerdict(el)
	})
	if err != nil {
		return fmt.Errorf("call back %s: %w", p.from, err)
	}
	// It has said so, and may have hung up since.
	st.sayGoodbye()
	_ = st.conn.Close()
	return nil
}

// dialbackAnswer waits for the answer to what we sent and skips the rest. The
// handshake's deadline and limits end the wait.
func (st *stream) dialbackAnswer(kind, id string) (*frame.Element, error) {
	for {
		el, err := st.next()
		if err != nil {
			return nil, err
		}
		p, bad := pairOf(el)
		if el.Is(frame.NSDialback, kind) && bad == nil && p == (pair{st.far, st.self}) && (id == "" || el.Attr("id") == id) {
			return el, nil
		}
	}
}

var errInvalidKey = errors.New("dialback key declared invalid")

func dialbackVerdict(el *frame.Element) error {
	switch el.Attr("type") {
	case "valid":
		return nil
	case "error":
		var c, text string
		if e := el.Child(frame.NSServer, "error"); e != nil {
			c, text = condition(e, nsStanzas)
		}
		return fmt.Errorf("dialback error: %s %s", c, text)
	}
	return errInvalidKey
}

func escape(s string) string { return string(frame.AppendEscaped(nil, []byte(s))) }
