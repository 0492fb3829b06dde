package s2s

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// maxSteps is how many elements a server may use to authenticate. Stock servers
// need two; those that only verify our dialback keys need one a key.
const maxSteps = 32

// inbound is one connection from a local server: its stream from one of its own
// domains to a peer domain.
type inbound struct {
	*stream
	pair
	s        *Streams
	log      *slog.Logger
	server   *Server     // of from
	id       string      // that we gave the current stream
	unproven error       // why the certificate does not prove from, nil if it does
	handled  *handled    // nil until the server has enabled stream management
	managed  atomic.Bool // the same, for others than who reads
	left     atomic.Bool // our direction has been ended, with a word why
	arrivals *arrivals
}

// serve lives as long as the connection.
func (s *Streams) serve(ctx context.Context, tcp *net.TCPConn) {
	defer tcp.Close()
	conn, err := newArrivals(tcp)
	if err != nil {
		s.log.Error("take s2s connection", "err", err)
		return
	}
	in := &inbound{stream: newStream(conn, s.limits.Write), arrivals: conn, s: s, log: s.log.With("dir", dirIn)}
	defer context.AfterFunc(ctx, func() { in.hurry(conn) })()
	err = in.shake(ctx, conn)
	s.metrics.handshake(dirIn, outcome(err))
	in.log = in.log.With("domain", in.from, "to", in.to)
	if err == nil {
		err = in.carry(ctx, conn)
	}
	level := slog.LevelInfo
	switch {
	case ctx.Err() != nil:
		err, level = errStopping, slog.LevelDebug
	case isClosed(err): // also after a connection that only verified a dialback key
		level = slog.LevelDebug
	}
	in.log.Log(ctx, level, "stream from the local server has ended", "remote", conn.RemoteAddr(), "err", err)
	in.end(err)
}

// carry relays an authenticated stream. When it returns the stream's place is free
// again, so that a server that is told of the end may come back at once.
func (in *inbound) carry(ctx context.Context, conn net.Conn) error {
	defer func() { <-in.s.inUse }()
	in.s.serverUp(in.from)
	in.s.handler.LocalBack(in.from)
	in.s.metrics.open(dirIn, 1)
	defer in.s.metrics.open(dirIn, -1)
	defer in.s.opened(in)()
	in.log.Debug("stream from the local server is open")
	reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { in.leave(conn, cancel) })()
	err := in.lastAck(ctx, in.relay(reading))
	in.mourn(err)
	return err
}

// leave ends a stream because the gateway is stopping. What a server has written
// by then it takes for delivered, unless it wants it acknowledged (XEP-0198): so it
// is told of the end, and what it sends until it has ended its direction, too, is
// taken still (RFC 6120 §4.4), for as long as a farewell.
func (in *inbound) leave(conn net.Conn, cancel context.CancelFunc) {
	if in.managed.Load() {
		cancel()
		_ = conn.SetReadDeadline(past) // or it is closed
		return
	}
	time.AfterFunc(in.s.limits.goodbye, cancel)
	_ = conn.SetReadDeadline(time.Now().Add(in.s.limits.goodbye))
	in.left.Store(true)
	_ = in.write(append(errStopping.XML(), closeTag...)) // who is gone need not be told
}

// mourn tells the handler if the stream ended because its server died, or its
// machine, or the way there. A server that goes in good order closes its streams;
// one that does not may still only have dropped this connection, so it is asked for.
func (in *inbound) mourn(err error) {
	if !isBroken(err) {
		return
	}
	s, from, addr := in.s, in.from, in.server.Addr
	s.spawn(func(ctx context.Context) {
		if !answers(ctx, addr, from, s.limits.Write) && ctx.Err() == nil {
			s.serverLost(ctx, from)
		}
	})
}

// isBroken says whether a connection ended without a word of the server, by what
// a read or a write of it failed with. Keep-alive says ETIMEDOUT, or what a router
// answers, where the machine or the network is gone.
func isBroken(err error) bool {
	return slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE,
		syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	}, func(e error) bool { return errors.Is(err, e) })
}

// answers says whether a server greets back. That a connection is accepted says
// little: the kernel does so for a process that is about to be gone.
func answers(ctx context.Context, addr, domain string, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	defer stop()
	st := newStream(conn, within)
	if err := st.send("<?xml version='1.0'?><stream:stream xmlns='%s' xmlns:stream='%s' to='%s' version='1.0'>", frame.NSServer, frame.NSStream, domain); err != nil {
		return false
	}
	_, err = st.rd.Header()
	return err == nil
}

// isClosed says whether the server ended the stream of its own accord.
func isClosed(err error) bool {
	var remote *RemoteError
	return errors.Is(err, frame.ErrStreamClosed) || errors.Is(err, io.EOF) || errors.As(err, &remote)
}

var errStopping = &frame.Error{Condition: conditionShutdown, Text: "the gateway is stopping"}

// shake authenticates the server within Limits.Handshake, or until newer
// connections need its place.
func (in *inbound) shake(ctx context.Context, conn net.Conn) error {
	in.s.metrics.shaking(dirIn, 1)
	defer in.s.metrics.shaking(dirIn, -1)
	ctx, cancel := context.WithTimeoutCause(ctx, in.s.limits.Handshake, refuse(conditionTimeout, "the handshake took longer than %v", in.s.limits.Handshake))
	defer cancel()
	ctx, leave := in.s.waiting.enter(ctx)
	defer leave()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(past) })
	err := in.handshake(ctx)
	if !stop() {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	select {
	case in.s.inUse <- struct{}{}:
		return conn.SetDeadline(time.Time{})
	default:
		return refuse(conditionResource, "more than %d streams", cap(in.s.inUse))
	}
}

func (in *inbound) handshake(ctx context.Context) error {
	if err := in.begin("<starttls xmlns='" + frame.NSTLS + "'><required/></starttls>"); err != nil {
		return err
	}
	el, err := in.next()
	if err != nil {
		return err
	}
	if !el.Is(frame.NSTLS, "starttls") {
		return refuse(frame.PolicyViolation, "STARTTLS is required first")
	}
	if err := in.unbuffered(); err != nil {
		return err
	}
	config, err := in.s.serverTLS(in.to)
	if err != nil {
		return err
	}
	if err := in.send("<proceed xmlns='%s'/>", frame.NSTLS); err != nil {
		return err
	}
	state, err := in.secure(ctx, tls.Server, config)
	if err != nil {
		return err
	}
	features := "<dialback xmlns='" + nsDialback + "'><errors/></dialback>"
	in.unproven = in.s.checkCertificate(in.server, in.from, state)
	switch {
	case in.unproven == nil:
		features = "<mechanisms xmlns='" + frame.NSSASL + "'><mechanism>EXTERNAL</mechanism></mechanisms>" + features
	case !in.server.Dialback:
		return in.refuseCertificate()
	}
	if err := in.begin(features); err != nil {
		return err
	}
	return in.authenticate(ctx)
}

// refuseCertificate tells the server at its stream header, where it looks for an
// error, that we do not take its certificate.
func (in *inbound) refuseCertificate() error {
	if _, err := in.rd.Header(); err != nil {
		return err
	}
	return &certificateError{in.unproven}
}

// certificateError is a server that is not who it says.
type certificateError struct{ err error }

func (e *certificateError) Error() string { return e.err.Error() }
func (e *certificateError) Unwrap() error { return e.err }

// begin reads a stream header and answers with ours and the features. The first
// one says who wants to talk to whom; those behind it must say the same.
func (in *inbound) begin(features string) error {
	h, err := in.rd.Header()
	if err != nil {
		return err
	}
	p, err := normalPair(h.From, h.To)
	if err != nil {
		return err
	}
	if in.pair == (pair{}) {
		in.pair, in.self, in.far = p, p.to, p.from
		if in.server = in.s.serverOf(p.from); in.server == nil {
			return refuse(conditionNotAuthorized, "%s is no domain of a configured local server", p.from)
		}
		if err := in.s.handler.Open(p.from, p.to); err != nil {
			return refusal(err)
		}
	}
	if p != in.pair {
		return refuse(conditionInvalidFrom, "the stream was for %s -> %s", in.from, in.to)
	}
	in.id = streamID()
	return in.open(in.id, "<stream:features>"+features+"</stream:features>")
}

// refusal makes a stream error of what Handler.Open said.
func refusal(err error) error {
	var told *frame.Error
	switch {
	case errors.As(err, &told):
		return err
	case errors.Is(err, federation.ErrUnknownDomain):
		return refuse(conditionHostUnknown, "%v", err)
	}
	return refuse(frame.PolicyViolation, "%v", err)
}

// authenticate answers what the server sends until it has proven its domain.
func (in *inbound) authenticate(ctx context.Context) error {
	for range maxSteps {
		el, err := in.next()
		if err != nil {
			return err
		}
		var done bool
		switch {
		case el.Is(frame.NSSASL, "auth"):
			done, err = in.external(el)
		case el.Is(frame.NSDialback, "result"):
			done, err = in.dialback(ctx, el)
		case el.Is(frame.NSDialback, "verify"):
			err = in.answerVerify(el)
		default:
			err = refuse(conditionNotAuthorized, "<%s/> before authentication", el.XMLName.Local)
		}
		if done || err != nil {
			return err
		}
	}
	return refuse(frame.PolicyViolation, "no authentication within %d elements", maxSteps)
}

// external is the server's side of XEP-0178 §3. After a failure the server may
// go on with dialback.
func (in *inbound) external(el *frame.Element) (done bool, err error) {
	fail := func(condition string) (bool, error) {
		return false, in.send("<failure xmlns='%s'><%s/></failure>", frame.NSSASL, condition)
	}
	if el.Attr("mechanism") != "EXTERNAL" {
		return fail("invalid-mechanism")
	}
	if in.unproven != nil {
		return fail("not-authorized")
	}
	if text := strings.TrimSpace(el.Text); text != "" && text != "=" {
		authzid, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return fail("incorrect-encoding")
		}
		if domain, err := federation.NormalizeDomain(string(authzid)); err != nil || domain != in.from {
			return fail("invalid-authzid")
		}
	}
	if err := in.unbuffered(); err != nil {
		return false, err
	}
	if err := in.send("<success xmlns='%s'/>", frame.NSSASL); err != nil {
		return false, err
	}
	if err := in.restart(); err != nil {
		return false, err
	}
	return true, in.begin(smFeature)
}

// dialback takes a key for this stream's own domains and asks the server about
// it where it is configured to be, whatever the certificate said (XEP-0220 §2.1).
func (in *inbound) dialback(ctx context.Context, el *frame.Element) (done bool, err error) {
	if p, err := pairOf(el); err != nil || p != in.pair {
		return false, in.refuseOther(el)
	}
	// A certificate that proves the domain makes the call superfluous (XEP-0344).
	if in.unproven != nil {
		if err := in.s.verify(ctx, in.pair, in.id, el.Text); err != nil {
			answer := "type='invalid'/>"
			if !errors.Is(err, errInvalidKey) {
				answer = "type='error'><error type='cancel'><remote-connection-failed xmlns='" + nsStanzas + "'/></error></db:result>"
			}
			return false, errors.Join(refuse(conditionNotAuthorized, "dialback failed: %v", err),
				in.send("<db:result from='%s' to='%s' %s", spell(in.to), spell(in.from), answer))
		}
	}
	return true, in.send("<db:result from='%s' to='%s' type='valid'/>", spell(in.to), spell(in.from))
}

// refuseOther declines to carry another pair of domains on this stream
// (XEP-0220 §2.5): the server opens one for it.
func (in *inbound) refuseOther(el *frame.Element) error {
	return in.send("<db:result from='%s' to='%s' type='error'><error type='cancel'><policy-violation xmlns='%s'/></error></db:result>",
		escape(el.Attr("to")), escape(el.Attr("from")), nsStanzas)
}

// answerVerify says whether a key is one that we sent on an outbound stream
// (XEP-0220 §2.3). It needs no authentication: a valid key is known to that
// stream's server alone.
func (in *inbound) answerVerify(el *frame.Element) error {
	p, err := pairOf(el)
	if err != nil {
		return err
	}
	id, verdict := el.Attr("id"), "invalid"
	if in.s.secret.valid(p.from, p.to, id, strings.TrimSpace(el.Text)) {
		verdict = "valid"
	}
	return in.send("<db:verify from='%s' to='%s' id='%s' type='%s'/>", spell(p.to), spell(p.from), escape(id), verdict)
}

// end closes our direction and says why, in a form that the server can log.
func (in *inbound) end(err error) {
	var told toldError
	var cert *certificateError
	var netErr net.Error
	switch {
	case in.mute, in.left.Load():
		return
	case isClosed(err):
		in.sayGoodbye()
		return
	case errors.As(err, &cert):
		told = &frame.Error{Condition: conditionNotAuthorized, Text: fmt.Sprintf("this certificate does not prove %s: %v", in.from, err)}
	case errors.As(err, &told):
	case errors.As(err, &netErr), errors.Is(err, io.ErrUnexpectedEOF):
		return // nobody is there to be told
	default:
		told = &frame.Error{Condition: conditionInternal, Text: "the gateway could not take a stanza"}
	}
	if !in.opened { // RFC 6120 §4.9.1.1
		if in.open(streamID(), "") != nil {
			return
		}
	}
	in.bidFarewell(told)
}
