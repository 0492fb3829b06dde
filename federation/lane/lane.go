// Package lane carries items between two gateways in order. It knows neither
// what an item means (an adapter's Handler and Recipient do) nor how the peer is
// reached (a Streams does).
//
// Memory has the lane Eph, for what is worth nothing later. Durable has the
// others, whose items wait on disk while a peer is away, by the rules of package
// journal.
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

// The lanes.
const (
	// Eph is memory-only: what it holds is given back, not kept, when the link to
	// the peer ends.
	Eph Name = "eph"
	// Chat and Room are durable: messages between users, and those of group chats.
	Chat Name = "chat"
	Room Name = "room"
	// Bulk is durable, too, for what is large and in no hurry: the transactions of
	// homeservers, which would keep messages waiting.
	Bulk Name = "bulk"
	// MQTT is durable, for what brokers publish: much of it, and each topic a
	// conversation.
	MQTT Name = "mqtt"
)

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
	// At is when the gateway of the sending grid took the item; Put sets it.
	At time.Time
	// Source names an item that came from a peer, for good and among all that
	// came from it. It is empty on Eph.
	Source string
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

// Outbox is how an adapter hands items to a peer that may be away.
type Outbox interface {
	// Put takes items for a durable lane, in order. It returns as soon as they
	// wait for the disk, and blocks while too much does. stored is called once,
	// when all of them are on disk or none will be, in the order of the calls;
	// it must not block. Its errors: ErrFull where the peer's quota is used up,
	// federation.ErrPeerNotActive, or what is wrong with the store, which has
	// been tried for as long as a sender should wait. After an error of Put
	// itself none was taken and stored is not called.
	//
	// What is on disk is taken by the peer's gateway once, or comes back by way
	// of Recipient.GiveBack, once.
	Put(ctx context.Context, peer federation.GridID, lane Name, stored func(error), items ...Item) error
}

// Recipient is what an adapter does with the items of durable lanes.
type Recipient interface {
	// Hand gives items of one conversation from a peer to the local server, in
	// order. done is called once, in Hand or later, when the local server has them
	// or an attempt has failed; it does not block. settled is how many of them, from
	// the first, need nothing more: delivered, or answered to their sender by way of
	// the Outbox (with an ID made of Item.Source, so that the answer is not doubled
	// if this life of the gateway ends in between). It is fewer than all only with an
	// error. Then the others are handed again, later; they may have been delivered
	// already, and keep what identifies them to the server.
	//
	// When Hand returns it may be called with the items that follow, although done
	// was not called. Those too are handed again if it then comes with an error. At
	// the end of ctx done need not be called.
	Hand(ctx context.Context, peer *federation.Peer, items []Item, done func(settled int, err error))
	// GiveBack tells the sender of an item, in its own protocol, that the peer
	// does not get it: why is ErrExpired, ErrDropped, or wraps
	// federation.ErrPeerNotActive. After an error it is given back again, later.
	GiveBack(ctx context.Context, peer *federation.Peer, it Item, why error) error
}

// Errors of the durable lanes.
var (
	// ErrFull: the queue to the peer is as long as its quota allows.
	ErrFull = errors.New("the queue to the peer is full")
	// ErrExpired: the peer was away for longer than the item was to wait.
	ErrExpired = errors.New("the peer could not be reached in time")
	// ErrDropped: the operator took the item out of the queue.
	ErrDropped = errors.New("dropped by the operator")
)

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
