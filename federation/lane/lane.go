// Package lane carries items between two gateways in order. It knows neither
// what an item means (an adapter's Handler does) nor how the peer is reached (a
// Streams does).
package lane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/yggate/yggate/federation"
)

// Name is one of the lanes of a peer. Items of one lane arrive in the order in
// which they were sent; lanes do not wait for each other.
type Name string

// Eph is the memory-only lane: what it holds is given back, not kept, when the
// link to the peer ends.
const Eph Name = "eph"

// Item is one thing to carry: a stanza, a publication, a bridged event.
type Item struct {
	// ID stays the same on every hop; receivers use it to drop repeats. It may
	// be empty on Eph.
	ID []byte
	// Kind selects the Handler that reads Body.
	Kind federation.Protocol
	// Conv is the conversation within which order must be kept.
	Conv string
	// Expires is when the item is given up; zero means by the lane's own rule.
	Expires time.Time
	// Body is owned by the lane once it is sent.
	Body []byte
}

// Sender is how an adapter hands items to a peer.
type Sender interface {
	// Send takes items for one peer, in order, and blocks while the lane is
	// full. After nil each item is either delivered by the peer or given to
	// Handler.Returned, exactly one of the two on a link that lives; an item
	// that was in flight when the link died is returned although the peer may
	// have it. After an error none was taken: federation.ErrPeerDown on Eph
	// without a link, or the context's own error.
	Send(ctx context.Context, peer federation.GridID, lane Name, items ...Item) error
}

// Handler is what an adapter does with items of its Kind.
type Handler interface {
	// Deliver takes responsibility for an item from a peer: nil means that it
	// went to the local server or waits in a bounded queue for it. It blocks to
	// push back on the peer. A *Refusal gives the item back to its sender.
	Deliver(ctx context.Context, peer *federation.Peer, it Item) error
	// Returned is told of each item that Send took and that the peer did not:
	// why is a *Refusal, or wraps federation.ErrPeerDown. It must not block.
	Returned(peer *federation.Peer, it Item, why error)
}

// Refusal is a receiver's reasoned no to one item. It crosses the wire.
type Refusal struct {
	// Code is the condition in the item's own protocol, for XMPP one of RFC
	// 6120 §8.3.3 such as "forbidden".
	Code string
	// Text is for people.
	Text string
}

func (r *Refusal) Error() string { return fmt.Sprintf("refused by the peer: %s: %s", r.Code, r.Text) }

// Streams opens ordered byte streams to the gateways of peers; link has them.
type Streams interface {
	// OpenLane returns federation.ErrPeerDown when there is no live link.
	OpenLane(ctx context.Context, peer federation.GridID, lane string) (io.ReadWriteCloser, error)
}

// ErrUnknownLane is what a stream for a lane that does not exist is refused with.
var ErrUnknownLane = errors.New("unknown lane")
