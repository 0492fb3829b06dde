package ygg

import (
	"bytes"
	"time"
)

// A probe asks a node whether packets reach it and its answers come back. It
// travels as session traffic whose first nibble is no IP version, so that a
// stock node drops it at its IPv6 check. Its use is threefold: sending it makes
// ironwood look for the path and set up, or repair, the session; its answer says
// that a SYN sent now will arrive, where one sent earlier would be lost and
// repeated only after 1, 3 and 7 seconds; and it needs no port.
//
// An answer is as long as the question, goes only to the key that the session
// has proven, only if Accept has that key, and at most once in replyEvery: there
// is nothing in it for one who would have third parties flooded.
const (
	// dialProbe is the interval of probes while dialling. Lookups of paths are
	// throttled to one a second by ironwood itself.
	dialProbe = 100 * time.Millisecond
	// keepProbe is the interval toward nodes with streams that are silent.
	keepProbe = time.Second
	// replyEvery is the least time between two answers to one key.
	replyEvery = 20 * time.Millisecond
)

// sessionTraffic is core's packet type for IP packets between nodes.
const sessionTraffic = 1

var (
	probeAsk    = []byte{sessionTraffic, 'Y', 'g', 'a', 't', 'e', 1, '?'}
	probeAnswer = []byte{sessionTraffic, 'Y', 'g', 'a', 't', 'e', 1, '!'}
)

// probe asks r unless it was asked within the last interval.
func (b *bridge) probe(r *remote, interval time.Duration) error {
	now := time.Now().UnixNano()
	last := r.asked.Load()
	if now-last < int64(interval) || !r.asked.CompareAndSwap(last, now) {
		return nil
	}
	return b.send(probeAsk, r)
}

// handleProbe takes a packet that is not IP; msg includes the packet type.
func (b *bridge) handleProbe(msg []byte, from publicKey, r *remote) error {
	switch {
	case bytes.Equal(msg, probeAnswer):
		if r != nil {
			r.heard.Store(time.Now().UnixNano())
			r.answered()
		}
	case bytes.Equal(msg, probeAsk):
		if !b.accept(from) {
			return nil
		}
		if r == nil {
			var err error
			if r, err = b.table.add(from); err != nil {
				b.log.Debug("probe not answered", "peer", from.addr(0).Node, "err", err)
				return nil
			}
		}
		now := time.Now().UnixNano()
		r.heard.Store(now)
		if now-r.replied.Load() < int64(replyEvery) {
			return nil
		}
		r.replied.Store(now)
		return b.send(probeAnswer, r)
	}
	return nil
}
