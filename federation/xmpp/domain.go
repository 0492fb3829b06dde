package xmpp

import (
	"maps"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// domain is what the directory says of the domain of an address.
type domain struct {
	name  string // normalised
	own   bool
	owner *federation.Peer // the peer with the active claim, or nil
}

// names remembers the domains of one snapshot that somebody holds, in the form
// that nearly every stanza has them, so that a stanza costs no allocation for
// them. What nobody holds is not remembered: a peer could fill it at will.
type names struct {
	snapshot *federation.Snapshot
	known    map[string]domain
}

// maxNames bounds a map that is copied for each domain that joins it.
const maxNames = 1024

// domainOfAddress returns what is known of the domain of a JID. Its name is
// empty where the JID has none that could be a domain.
func (a *Adapter) domainOfAddress(now *federation.Snapshot, jid []byte) domain {
	raw := frame.Domain(jid)
	n := a.names.Load()
	if n != nil && n.snapshot == now {
		if d, ok := n.known[string(raw)]; ok {
			return d
		}
	}
	name, err := federation.NormalizeDomain(string(raw))
	if err != nil {
		return domain{}
	}
	d := domain{name, now.Own(federation.XMPP, name), now.Owner(federation.XMPP, name)}
	if (d.own || d.owner != nil) && name == string(raw) {
		a.remember(n, now, d)
	}
	return d
}

// remember adds a domain to the names of a snapshot. Who loses a race against
// another stanza only looks the domain up again.
func (a *Adapter) remember(old *names, now *federation.Snapshot, d domain) {
	next := &names{snapshot: now, known: map[string]domain{}}
	if old != nil && old.snapshot == now {
		if len(old.known) >= maxNames {
			return
		}
		next.known = maps.Clone(old.known)
	}
	next.known[d.name] = d
	a.names.CompareAndSwap(old, next)
}

// sameDomain says whether the domain of a JID is one that is normalised already.
func sameDomain(jid []byte, name string) bool {
	raw := frame.Domain(jid)
	if string(raw) == name {
		return name != ""
	}
	got, err := normalDomain(jid)
	return err == nil && got == name
}

// normalDomain is the domain of a JID in its one form.
func normalDomain(jid []byte) (string, error) {
	return federation.NormalizeDomain(string(frame.Domain(jid)))
}
