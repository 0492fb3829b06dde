package link

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// What the far end may make this gateway buffer, per connection. A stream whose
// body nobody reads keeps its whole window of the connection's, so the
// connection's must hold the windows of all streams: otherwise one stalled body
// blocks every other (golang.org/issue/54330).
const (
	receiveBudget = 12 << 20 // a peer's connection, of which it may have three
	minWindow     = 16 << 10
	maxWindow     = 1 << 20
	minStreams    = 8
	maxStreams    = receiveBudget / minWindow

	peerFrame    = 64 << 10 // fewer wake-ups on bulk; every connection and lane holds a buffer of this size
	peerHeader   = 16 << 10
	unknownFrame = 16 << 10 // the smallest that HTTP/2 allows

	unknownStreams = 4
	unknownWindow  = 64 << 10
	unknownHeader  = 8 << 10
	unknownBody    = 64 << 10
)

// streamsOf is how many streams a peer may have open on one connection.
func streamsOf(l federation.Limits) int {
	n := l.Streams
	if n <= 0 {
		n = federation.DefaultLimits().Streams
	}
	return min(max(n, minStreams), maxStreams)
}

// serverH2 bounds one connection from a peer. Note: the documentation of
// HTTP2Config speaks of less than 4 MiB, which Go does not enforce; a test holds
// it to that.
func serverH2(t Timing, streams int) *http.HTTP2Config {
	window := min(receiveBudget/streams, maxWindow)
	return &http.HTTP2Config{
		MaxConcurrentStreams:          streams,
		MaxReceiveBufferPerStream:     window,
		MaxReceiveBufferPerConnection: max(window*streams, 1<<20),
		MaxReadFrameSize:              peerFrame,
		SendPingTimeout:               t.PingAfter,
		PingTimeout:                   t.Ping,
		WriteByteTimeout:              t.PingAfter + t.Ping,
	}
}

// unknownH2 bounds one connection from an unknown grid key.
func unknownH2(t Timing) *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          unknownStreams,
		MaxReceiveBufferPerStream:     unknownWindow,
		MaxReceiveBufferPerConnection: unknownStreams * unknownWindow,
		MaxReadFrameSize:              unknownFrame,
		MaxDecoderHeaderTableSize:     4 << 10,
		SendPingTimeout:               t.PingAfter,
		PingTimeout:                   t.Ping,
		WriteByteTimeout:              t.PingAfter,
	}
}

// newClient returns what makes HTTP/2 connections of finished TLS connections.
func newClient(t Timing) *http.Transport {
	p := new(http.Protocols)
	p.SetHTTP2(true)
	return &http.Transport{
		Protocols: p,
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, ok := ctx.Value(tlsConnKey{}).(*tls.Conn)
			if !ok {
				return nil, errors.New("link: dial without a connection")
			}
			return conn, nil
		},
		DisableCompression:     true,
		MaxResponseHeaderBytes: peerHeader,
		HTTP2: &http.HTTP2Config{
			// Answers come on streams that this side opened itself, maxClientStreams at
			// most: lanes and hellos are few, and live requests, on a connection of
			// their own, are held back by places.
			MaxReceiveBufferPerStream:     clientWindow,
			MaxReceiveBufferPerConnection: clientWindow * maxClientStreams,
			MaxReadFrameSize:              peerFrame,
			SendPingTimeout:               t.PingAfter,
			PingTimeout:                   t.Ping,
			WriteByteTimeout:              t.PingAfter + t.Ping,
		},
	}
}

const (
	clientWindow     = 256 << 10 // what an answer may have in flight
	maxClientStreams = 64
)

type tlsConnKey struct{}

// clientConn makes an HTTP/2 connection of conn, which it then owns.
func (l *Links) clientConn(ctx context.Context, conn *tls.Conn) (*http.ClientConn, error) {
	return l.client.NewClientConn(context.WithValue(ctx, tlsConnKey{}, conn), "https", authority+":443")
}

// authority stands in the :authority of requests. It is never resolved.
const authority = "gateway.invalid"

// server returns the HTTP server for one connection. Each has its own, because
// what HTTP/2 lets the far end do depends on the peer.
func (l *Links) server(in *inbound) *http.Server {
	p := new(http.Protocols)
	p.SetHTTP2(true)
	s := &http.Server{
		Protocols:         p,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithValue(context.Background(), inboundKey{}, in) },
		ConnState: func(_ net.Conn, st http.ConnState) {
			if st == http.StateClosed {
				in.ended()
			}
		},
	}
	if in.peer == "" {
		s.Handler = l.telling(l.serveUnknown)
		s.HTTP2 = unknownH2(l.cfg.Timing)
		s.MaxHeaderBytes = unknownHeader
		s.ReadTimeout = l.cfg.Timing.Handshake
		s.WriteTimeout = l.cfg.Timing.UnknownLife
	} else {
		s.Handler = l.telling(l.servePeer)
		s.HTTP2 = serverH2(l.cfg.Timing, in.streams)
		s.MaxHeaderBytes = peerHeader
	}
	return s
}

// telling has a panic of a handler logged for the operator. The server ends the stream
// and says so to its ErrorLog only, among what far ends do wrong.
func (l *Links) telling(serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				if v != http.ErrAbortHandler {
					l.log.Error("request failed; please report this", "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
				}
				panic(http.ErrAbortHandler)
			}
		}()
		serve(w, r)
	})
}

// oneConn is a listener that has one finished connection to give.
type oneConn struct{ conn net.Conn }

// Accept is called by one goroutine only, that of Server.Serve.
func (l *oneConn) Accept() (net.Conn, error) {
	c := l.conn
	if c == nil {
		return nil, net.ErrClosed
	}
	l.conn = nil
	return c, nil
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return transports.Addr{} }
