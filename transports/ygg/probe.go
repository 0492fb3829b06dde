package ygg

import (
	"bytes"
	"encoding/binary"
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
//
// Probes carry when their sender started. Streams to a node that has started
// anew are dead, though TCP would find out only with its next segment.
//
// None is sent before there is a way to the node. ironwood keeps one packet for a
// node until the way is found, and a probe would push aside what matters more:
// the answer to the opening of a session that came from there (measured: a second
// longer for two nodes that dial each other).
//
// Of two nodes that dial each other only the one with the lower key probes
// often. ironwood numbers its session handshakes by the second and drops the
// later one of two in the same second, so that two nodes which both drive can
// keep each other from agreeing on keys: after a restart it takes up to 4 s then.
// The other node takes being probed for an answer.
const (
	// fastProbe is the interval of the driving node's probes in the first
	// fastTime of a dial and after a peering came up, otherProbe that of the other
	// node; slowProbe is that of both when a dial drags on.
	fastProbe  = 100 * time.Millisecond
	otherProbe = 250 * time.Millisecond
	slowProbe  = time.Second
	fastTime   = 5 * time.Second
	// keepProbe is the interval toward nodes with streams that are silent. The
	// heartbeats of a live link are more frequent, so that it costs no probes.
	keepProbe = 4 * time.Second
	// replyEvery is the least time between two answers to one key.
	replyEvery = 20 * time.Millisecond
)

// sessionTraffic is core's packet type for IP packets between nodes.
const sessionTraffic = 1

var (
	probeAsk    = []byte{sessionTraffic, 'Y', 'g', 'a', 't', 'e', 1, '?'}
	probeAnswer = []byte{sessionTraffic, 'Y', 'g', 'a', 't', 'e', 1, '!'}
)

// probeSize is that of either kind and the start time in Unix nanoseconds.
const probeSize = 8 + 8

func (b *bridge) sendProbe(kind []byte, r *remote) error {
	msg := binary.BigEndian.AppendUint64(append(make([]byte, 0, probeSize), kind...), uint64(b.started))
	return b.send(msg, r)
}

// probe asks r unless it was asked within the last interval.
func (b *bridge) probe(r *remote, interval time.Duration) error {
	now := time.Now().UnixNano()
	last := r.asked.Load()
	// Tickers jitter: without the slack every other probe would fall out.
	if within(interval*3/4, last, now) || !r.asked.CompareAndSwap(last, now) {
		return nil
	}
	b.sent.Add(1)
	return b.sendProbe(probeAsk, r)
}

// handleProbe takes a packet that is not IP; msg includes the packet type. r is
// nil when the sender is not known.
func (b *bridge) handleProbe(msg []byte, from publicKey, r *remote) error {
	if len(msg) != probeSize {
		return nil
	}
	kind, started := msg[:8], int64(binary.BigEndian.Uint64(msg[8:]))
	ask := bytes.Equal(kind, probeAsk)
	switch {
	case ask && b.accept(from):
		if r == nil {
			var err error
			if r, err = b.table.add(from); err != nil {
				b.log.Debug("probe not answered", "peer", from.addr(0).Node, "err", err)
				return nil
			}
		}
	case r == nil || !bytes.Equal(kind, probeAnswer):
		return nil
	}
	now := time.Now()
	r.hear(now)
	if r.restarted(started) {
		b.log.Info("node has restarted", "peer", from.addr(0).Node)
		r.abortOld()
	}
	r.answered()
	if !ask || within(replyEvery, r.replied.Load(), now.UnixNano()) {
		return nil
	}
	r.replied.Store(now.UnixNano())
	b.sent.Add(1)
	return b.sendProbe(probeAnswer, r)
}
