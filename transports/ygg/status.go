package ygg

import (
	"cmp"
	"encoding/hex"
	"slices"

	"github.com/yggate/yggate/transports"
)

// maxListed bounds each list of a status; strangers can open sessions at will.
const maxListed = 1024

// Status tells of peerings, paths and sessions as they are now. Peerings that
// were added and never came up are listed, with the error that keeps them down.
func (n *Node) Status() transports.Status {
	s := transports.Status{Self: n.Self(), Up: n.links.count() > 0}
	if n.running() {
		s.Peerings, s.Paths = n.peerings(), n.paths()
	}
	return s
}

func (n *Node) peerings() []transports.Peering {
	var list []transports.Peering
	if raceDetector {
		for l := range n.links.list() {
			list = append(list, transports.Peering{URI: l.remote, Up: true, Inbound: l.inbound})
		}
		return list
	}
	for _, p := range n.core.GetPeers() {
		pe := transports.Peering{
			URI: redact(p.URI), Up: p.Up, Inbound: p.Inbound, Node: hex.EncodeToString(p.Key),
			Latency: p.Latency, Uptime: p.Uptime, RxBytes: p.RXBytes, TxBytes: p.TXBytes,
		}
		if p.LastError != nil {
			pe.LastError = p.LastError.Error()
		}
		list = append(list, pe)
	}
	slices.SortFunc(list, func(a, b transports.Peering) int {
		return cmp.Or(cmp.Compare(a.URI, b.URI), cmp.Compare(a.Node, b.Node))
	})
	return list[:min(len(list), maxListed)]
}

// paths joins ironwood's lists of routes and of sessions, by key.
func (n *Node) paths() []transports.Path {
	byKey := map[string]*transports.Path{}
	path := func(key []byte) *transports.Path {
		k := hex.EncodeToString(key)
		if byKey[k] == nil {
			byKey[k] = &transports.Path{Node: k}
		}
		return byKey[k]
	}
	for _, p := range n.core.GetPaths() {
		path(p.Key).Hops = p.Path
	}
	if !raceDetector {
		for _, s := range n.core.GetSessions() {
			p := path(s.Key)
			p.Session, p.Uptime, p.RxBytes, p.TxBytes = true, s.Uptime, s.RXBytes, s.TXBytes
		}
	}
	var list []transports.Path
	for _, p := range byKey {
		list = append(list, *p)
	}
	slices.SortFunc(list, func(a, b transports.Path) int { return cmp.Compare(a.Node, b.Node) })
	return list[:min(len(list), maxListed)]
}
