// Package session is one client session with an MQTT broker: MQTT 5, or 3.1.1
// with a broker that has no other. It knows nothing of peers.
//
// What it promises. A message from the broker is acknowledged when the Handler
// says that it is safe, and stays with the broker until then. A message at QoS 2
// is delivered once in either direction although this process or the broker is
// killed at any moment, so long as the broker keeps its session: what must be
// known afterwards is in the Journal before the packet is sent that depends on it.
// One that comes up with an older state of it may repeat what it gave on since.
//
//   - To the broker: the packet id of a key is on disk before the first PUBLISH,
//     and that the broker has the message before PUBREL. The same key afterwards
//     goes on where the flow stood.
//   - From the broker: the UID of a message follows from its packet id, how often
//     that id was released, and the content. The release is on disk before
//     PUBCOMP, after which the broker may use the id again. A message that the
//     broker repeats therefore has the same UID, also in another life of this
//     process, and who takes it further drops it as a repeat.
//
// Order is kept per QoS, in both directions and across connections (MQTT 5 §4.6).
package session

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// The versions of the protocol, as they stand in CONNECT.
const (
	V311 byte = 4
	V5   byte = 5
)

// Config says how to reach a broker and what may be asked of it.
type Config struct {
	// Addr is host:port of the broker.
	Addr string
	// TLS, where it is set, is what to speak TLS with: roots, a client
	// certificate, the server's name (the host of Addr by default).
	TLS *tls.Config
	// Dial connects to Addr; a plain net.Dialer by default.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)

	// ClientID names the session at the broker and in the Journal. It must stay
	// the same for the life of the grid.
	ClientID string
	// Username and Password, where they are set.
	Username, Password string
	// Version is V5 or V311, or 0: V5, and V311 where the broker has no other.
	Version byte
	// Will is published by the broker when the connection is lost.
	Will *Message

	// KeepAlive is how long the connection may be silent (30 s by default, whole
	// seconds); the broker's own wish goes before it. A broker that is silent for
	// half as long again is given up.
	KeepAlive time.Duration
	// AckTimeout is how long the broker may take to acknowledge a message (60 s by
	// default) before it is connected to anew and sent again.
	AckTimeout time.Duration
	// ConnectTimeout bounds dialling and the handshake (20 s by default).
	ConnectTimeout time.Duration
	// BackoffMin and BackoffMax bound the wait before the next try (250 ms, 5 s).
	BackoffMin, BackoffMax time.Duration
	// AskAgain is after how long a subscription that the broker refused is asked for
	// again (30 s by default): nobody tells when it may be had.
	AskAgain time.Duration
	// SessionExpiry is how long the broker keeps the session while we are away
	// (for ever by default; MQTT 5 alone).
	SessionExpiry time.Duration

	// ReceiveMaximum is how many messages of the broker may be unacknowledged at a
	// time (1024 by default). Beyond it the connection is not read.
	ReceiveMaximum uint16
	// MaxPacket is the largest packet to take, in bytes (1 MiB by default).
	MaxPacket uint32
	// MaxUnacked bounds the bytes of unacknowledged messages (64 MiB by default).
	// Beyond it the connection is not read.
	MaxUnacked int
	// MaxQueued bounds the messages that wait in Send for their turn (1024 by
	// default), and MaxQueuedBytes their bytes (16 MiB).
	MaxQueued, MaxQueuedBytes int

	Handler Handler
	Journal Journal
	Log     *slog.Logger
	Metrics prometheus.Registerer // may be nil
}

// Handler is what is done with what comes from the broker. Its methods are called
// one at a time.
type Handler interface {
	// Arrive is given each message, in the order of arrival. ack must be called
	// once, from any goroutine, for a message of QoS 1 or 2: with nil when the
	// message is safe, or with why it could not be made so; then the broker is
	// connected to anew and gives it again. For QoS 0 ack does nothing. Arrive may
	// block, and acknowledgements may be withheld, to push back on the broker.
	// ctx ends with the session.
	Arrive(ctx context.Context, m *Message, ack func(error))
	// Up is told of each connection, before anything arrives on it.
	Up(Info)
	// Down is told why a connection ended that Up was told of.
	Down(err error)
	// Subscribed is told that the broker has answered all subscriptions, once after
	// Up and again after each change: from now on what they are about arrives. It is told
	// so again when a retained message at QoS 0 had to be dropped. refused has the filters
	// of those that the broker did not take, each with a *Refused.
	Subscribed(refused map[string]error)
}

// Info is what is known of a connection.
type Info struct {
	Version byte // V5 or V311
	// Resumed: the broker had kept the session. Life names the life of the session at
	// the broker: it is another one when the broker has lost it.
	Resumed bool
	Life    string
	// MaxQoS is the highest that the broker takes; Retain whether it keeps
	// retained messages, Shared whether it has shared subscriptions.
	MaxQoS         byte
	Retain, Shared bool
	// MaxPacket is the largest packet the broker takes, 0 if it sets no limit.
	MaxPacket uint32
	// ReceiveMaximum is how many messages it takes unacknowledged.
	ReceiveMaximum uint16
	KeepAlive      time.Duration
}

// Status is how a session stands.
type Status struct {
	Connected bool
	Info      Info      // of the last connection
	Since     time.Time // when Connected last changed
	LastError string    // why the last connection ended or could not be made
	InFlight  int       // messages that the broker has not acknowledged
	Waiting   int       // messages that have not been sent
	Unacked   int       // messages of the broker that are not safe yet
	// Refused has the subscriptions that the broker refused, and why.
	Refused map[string]string
}

// Subscription is a topic filter and its options (MQTT 5 §3.8.3.1).
type Subscription struct {
	Filter string // may begin with $share/NAME/
	QoS    byte
	// NoLocal: not what this session itself publishes (MQTT 5 alone).
	NoLocal bool
	// RetainAsPublished: live messages keep their retain flag (MQTT 5 alone).
	RetainAsPublished bool
	// RetainHandling: when retained messages are sent (MQTT 5 alone): 0 at each
	// subscription, 1 at a new one, 2 never.
	RetainHandling byte
}
