package xmpp

import (
	"bytes"
	"strings"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// presenceType is what the gateway tells apart of the types of RFC 6121 §4.7.1.
type presenceType uint8

const (
	otherPresence presenceType = iota // requests to subscribe and what is not known
	available
	unavailable
	probe
	unsubscribe  // the sender gives up its subscription to the addressee
	unsubscribed // the sender ends or denies that of the addressee
	presenceError
)

// presence is what upkeep needs to know of one presence stanza.
type presence struct {
	from, to string
	kind     presenceType
	// join asks a room for admission (XEP-0045 §7.2).
	join bool
	// occupant came from a room on behalf of one of its occupants.
	occupant bool
	// self is about the very occupant it is addressed to (status 110).
	self bool
	// renamed says that the occupant goes on under another nickname (status
	// 303), so that "unavailable" is not the end of its stay.
	renamed bool
}

// mucNamespace begins both namespaces of XEP-0045 that presence carries.
const mucNamespace = "http://jabber.org/protocol/muc"

// readPresence reads what upkeep needs with a search for bytes instead of a
// parser. The bytes it looks for may stand in text too, where they mean nothing;
// the worst that comes of it is an entry of the wrong kind in the table of
// whoever wrote that text, and so a needless "unavailable" later.
func readPresence(top *frame.Top, stanza []byte) presence {
	p := presence{from: string(top.From), to: string(top.To)}
	switch string(top.Type) {
	case "":
		p.kind = available
	case "unavailable":
		p.kind = unavailable
	case "probe":
		p.kind = probe
	case "error":
		p.kind = presenceError
	case "unsubscribe":
		p.kind = unsubscribe
	case "unsubscribed":
		p.kind = unsubscribed
	}
	if p.kind != available && p.kind != unavailable {
		return p
	}
	join, occupant := mucElements(stanza)
	p.occupant = occupant
	p.join = join && !occupant && p.kind == available && strings.Contains(p.to, "/")
	if occupant {
		p.self = hasStatus(stanza, "110")
		p.renamed = hasStatus(stanza, "303")
	}
	return p
}

// mucElements says which namespaces of XEP-0045 a stanza names.
func mucElements(stanza []byte) (join, occupant bool) {
	for {
		i := bytes.Index(stanza, []byte(mucNamespace))
		if i < 0 {
			return join, occupant
		}
		stanza = stanza[i+len(mucNamespace):]
		switch {
		case bytes.HasPrefix(stanza, []byte("#user")):
			occupant = true
		case len(stanza) > 0 && (stanza[0] == '\'' || stanza[0] == '"'):
			join = true
		}
	}
}

func hasStatus(stanza []byte, code string) bool {
	for {
		i := bytes.Index(stanza, []byte("code="))
		if i < 0 {
			return false
		}
		stanza = stanza[i+len("code="):]
		if len(stanza) > len(code)+1 && stanza[0] == stanza[len(code)+1] && string(stanza[1:len(code)+1]) == code {
			return true
		}
	}
}

// bareOf is the JID without its resource (RFC 7622 §3.1).
func bareOf(jid string) string {
	bare, _, _ := strings.Cut(jid, "/")
	return bare
}

// The statuses that go with an end that no room announced: 333 for "removed
// because of a technical problem" (XEP-0045 §9.1.2 and §15.6.2), 110 where the
// occupant itself is told.
const (
	gonePlain    = "<status code='333'/>"
	goneYourself = "<status code='110'/><status code='333'/>"
)

// unavailableFrom builds the presence that ends another one. For an occupant of
// a room it looks as if the room had sent it.
func unavailableFrom(from, to string, occupant, self bool) []byte {
	b := make([]byte, 0, 96+len(from)+len(to))
	b = append(b, "<presence type='unavailable' from='"...)
	b = frame.AppendEscaped(b, []byte(from))
	b = append(b, "' to='"...)
	b = frame.AppendEscaped(b, []byte(to))
	if !occupant {
		return append(b, "'/>"...)
	}
	b = append(b, "'><x xmlns='"+mucNamespace+"#user'><item affiliation='none' role='none'/>"...)
	if self {
		b = append(b, goneYourself...)
	} else {
		b = append(b, gonePlain...)
	}
	return append(b, "</x></presence>"...)
}

// probeFor builds the question of RFC 6121 §4.3.1.
func probeFor(from, to string) []byte {
	b := make([]byte, 0, 48+len(from)+len(to))
	b = append(b, "<presence type='probe' from='"...)
	b = frame.AppendEscaped(b, []byte(from))
	b = append(b, "' to='"...)
	b = frame.AppendEscaped(b, []byte(to))
	return append(b, "'/>"...)
}
