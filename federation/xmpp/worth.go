package xmpp

import (
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// worth is what becomes of a message that cannot reach the peer at once.
type worth uint8

const (
	worthNothing worth = iota // a chat state: nobody is told that it did not arrive
	worthAnError              // goes over lane.Eph, and back to its sender as an error
	worthKeeping              // waits on disk
)

// Namespaces that decide what a message is worth.
const (
	nsHints      = "urn:xmpp:hints"
	nsChatStates = "http://jabber.org/protocol/chatstates"
	nsMarkers    = "urn:xmpp:chat-markers:0"
	nsStanzaID   = "urn:xmpp:sid:0"
	nsCarbons    = "urn:xmpp:carbons:2"
)

// worthOf says what a message is worth, by the rules that servers have for their
// offline storage and archives (ejabberd's mod_offline, Prosody's mod_mam). The
// first that applies decides:
//
//	type='error'                                    kept: it is the answer that somebody waits for
//	<store/>                                        kept (XEP-0334 §4.4)
//	<no-store/>, <no-permanent-store/>              not kept (XEP-0334 §4.1 and §4.2)
//	type='headline'                                 not kept (RFC 6121 §5.2.2)
//	any child but those below                       kept
//	chat states (XEP-0085), alone or with those below   not kept, nor answered
//	no child, or only those below                   not kept
//
// Not worth keeping by themselves are, beside chat states and hints: <thread/>
// (RFC 6121 §5.2.5), <markable/>, which asks for a marker (XEP-0333 §5),
// stanza ids (XEP-0359) and <private/> of carbons (XEP-0280 §9).
//
// Kept are thus, among others: a body, a subject, OMEMO and OpenPGP payloads
// (XEP-0384, XEP-0373), receipts (XEP-0184), markers (XEP-0333), corrections,
// retractions and reactions (XEP-0308, XEP-0424, XEP-0444), invitations (XEP-0045
// §7.8, XEP-0249), and whatever is not known here.
func worthOf(top *frame.Top, stanza []byte) worth {
	if string(top.Type) == "error" {
		return worthKeeping
	}
	var payload, state, forbidden bool
	for c := range frame.Children(stanza) {
		switch string(c.Space) {
		case nsHints:
			switch string(c.Name) {
			case "store":
				return worthKeeping
			case "no-store", "no-storage", "no-permanent-store": // no-storage: before XEP-0334 0.2
				forbidden = true
			}
		case nsChatStates:
			state = true
		case nsStanzaID:
		case frame.NSServer:
			payload = payload || string(c.Name) != "thread"
		case nsMarkers:
			payload = payload || string(c.Name) != "markable"
		case nsCarbons:
			payload = payload || string(c.Name) != "private"
		default:
			payload = true
		}
	}
	switch {
	case forbidden && payload, string(top.Type) == "headline":
		return worthAnError
	case payload:
		return worthKeeping
	case state:
		return worthNothing
	}
	return worthAnError
}

// laneOf is the lane for a stanza of the local server. Presence is state that
// upkeep keeps true, and an iq is of use to nobody later: both pass at once or
// not at all.
func laneOf(top *frame.Top, stanza []byte) lane.Name {
	switch {
	case top.Kind != frame.Message || worthOf(top, stanza) != worthKeeping:
		return lane.Eph
	case string(top.Type) == "groupchat":
		return lane.Room
	}
	return lane.Chat
}
