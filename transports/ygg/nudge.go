package ygg

import (
	"time"

	"github.com/Arceliar/ironwood/types"
)

// A session handshake that loses its second half does not recover by itself: the
// node that began repeats the very same opening, which ironwood's other side
// drops as already seen, and as long as it goes on trying nothing expires (12
// first dials through a relay: 3 of them hung so). A word from the other side
// mends it at once. So a node to which somebody has opened a session without any
// traffic coming through is looked for, and sent a probe when there is a way to it,
// with each look of the watch for as long as a dial may last. It costs a stranger's
// key a signed handshake to be sent 16 bytes.
const (
	nudgeFor = 30 * time.Second
	// maxNudged bounds the probes of one round.
	maxNudged = 64
)

// nudge sends a probe into every young session that has carried nothing yet.
func (n *Node) nudge() error {
	if raceDetector {
		return nil
	}
	var young []publicKey
	for _, s := range n.core.GetSessions() {
		if s.RXBytes == 0 && s.Uptime < nudgeFor && len(young) < maxNudged {
			young = append(young, publicKey(s.Key))
		}
	}
	if len(young) == 0 {
		return nil
	}
	ways := n.ways()
	for _, k := range young {
		if !ways[k] {
			// A probe would take the place of the answer that waits for one.
			n.bridge.seek(k)
			continue
		}
		if err := n.bridge.sendProbe(probeAsk, &remote{to: types.Addr(k[:])}); err != nil {
			return err
		}
	}
	return nil
}
