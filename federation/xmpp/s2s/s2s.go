// Package s2s is the gateway as the federation neighbour of the operator's own
// XMPP servers: for every peer domain it accepts their server-to-server streams
// (RFC 6120) and opens streams to them. It knows streams, TLS, SASL EXTERNAL
// (XEP-0178) and dialback (XEP-0220), and nothing of policy or peers: a Handler
// decides who may talk to whom and takes the stanzas.
//
// Inbound means from the local server to the gateway, Outbound the other way.
// A stream carries one pair of domains in one direction, as XMPP has it without
// bidi (XEP-0288), which is not offered. Both directions have stream management
// (XEP-0198) where the server has it, without resumption.
package s2s

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Handler is the adapter behind the streams. Domains are normalised.
type Handler interface {
	// Open decides whether the local domain from may have a stream to the peer
	// domain to. A *frame.Error is told to the server as it is;
	// federation.ErrUnknownDomain becomes host-unknown, any other error
	// policy-violation.
	Open(from, to string) error
	// Stanzas takes what the local server sent on an authenticated stream, in
	// order and whole. The stanzas are the handler's to keep, the slice that
	// holds them is not. That from is one of the server's own domains
	// is proven; the addresses inside the stanzas are for the handler to check.
	// Blocking pushes back on the server; an error closes the stream. settled is
	// called once unless an error is returned, possibly later and from another
	// goroutine, when nothing that happens to the gateway can lose one of them
	// without a word: each is on disk, or was answered, or was of a kind that
	// nobody keeps. A server with stream management is told then (XEP-0198 §4).
	Stanzas(ctx context.Context, from, to string, batch [][]byte, settled func()) error
	// Skipped is told, in order with Stanzas and by the same rules, of a stanza that is
	// beyond the limits of a stream and was read over. The tag is the handler's to keep,
	// and the addresses in it for the handler to check.
	Skipped(ctx context.Context, from, to string, stanza *frame.Skipped, settled func()) error
	// Failed is given every stanza that Send took and that could not be written
	// to the local server, once. It must not block.
	Failed(from, to string, stanzas [][]byte, err error)
	// LocalLost is told that the local server of a domain has died or cannot be
	// reached: a stream of it broke without a closing tag, and nothing answers where
	// it should, or nothing listens there. LocalBack follows when it is back, whether
	// or not it died. It must not block.
	LocalLost(domain string)
	// LocalBack is told that the local server of a domain is there: it has opened a
	// stream to us, or one to it is open after an attempt that failed, or it answers
	// again after LocalLost. What waits for it may be tried at once. It must not block.
	LocalBack(domain string)
}

// Server is one local XMPP server.
type Server struct {
	// Addr is where its s2s port listens, host:port. It is the only place that
	// is ever dialled for its domains.
	Addr string
	// Domains are its own, normalised. A server without any takes every domain
	// that no other server names.
	Domains []string
	// Roots are trusted to sign its certificate beside the local CA.
	Roots *x509.CertPool
	// Pins are SHA-256 hashes of public keys (SubjectPublicKeyInfo); a server
	// that shows one of them needs neither chain nor name.
	Pins [][32]byte
	// Dialback accepts the server without a certificate that we trust: inbound
	// streams prove themselves by a call back to Addr, outbound ones rely on
	// Addr alone. Whoever can take that address can then be the server.
	Dialback bool
}

// Config says who the neighbours are. CA, Servers and Handler must be given.
type Config struct {
	Listen  string // host:port that the local servers connect to
	CA      *localca.CA
	Servers []Server
	Handler Handler
	// AllowFrom are the source addresses that may connect at all, beside
	// loopback and the servers' own where Addr is an IP literal.
	AllowFrom []netip.Prefix
	Limits    Limits
	Log       *slog.Logger
	Metrics   prometheus.Registerer // may be nil
}

// Limits bound what a server can make the gateway hold. A zero field takes the
// value of DefaultLimits.
type Limits struct {
	Handshake  time.Duration // to finish a handshake, either direction
	Handshakes int           // unfinished inbound handshakes; one more ends the oldest
	Streams    int           // authenticated inbound streams
	Stanza     int           // bytes of one stanza, inbound, beyond which it is Skipped; stock servers take 512 KiB
	Queue      int           // bytes queued for one outbound stream
	Wait       time.Duration // how long Send waits for room in that queue
	Write      time.Duration // for one write to the local server
	Ack        time.Duration // for the local server to acknowledge what Hand gave it
	Unsettled  int           // bytes taken from one inbound stream and not settled, see Handler.Stanzas
	Idle       time.Duration // after which an outbound stream is closed
	Backoff    time.Duration // longest pause after a failed outbound stream

	goodbye time.Duration // to send what was on its way when the gateway stops
}

// DefaultLimits suit a grid of hundreds of users and any stock server.
func DefaultLimits() Limits {
	return Limits{
		Handshake: 20 * time.Second, Handshakes: 128, Streams: 1024,
		Stanza: 512 << 10, Queue: 4 << 20, Wait: 10 * time.Second,
		Write: 20 * time.Second, Ack: 20 * time.Second, Unsettled: 1 << 20,
		Idle: 10 * time.Minute, Backoff: 5 * time.Second,
	}
}

// What Send and Hand fail with, beside the context's error.
var (
	// ErrDown: the local server could not be reached a moment ago, and the next
	// attempt is not due.
	ErrDown = errors.New("the local server is not reachable now")
	// ErrFull: the queue to the local server stayed full for Limits.Wait.
	ErrFull = errors.New("the queue to the local server is full")
	// ErrNoServer: no configured server has the domain.
	ErrNoServer = errors.New("no configured local server has this domain")
	// ErrStopped: Run has ended or not begun.
	ErrStopped = errors.New("s2s is not running")
)
