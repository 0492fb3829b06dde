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
// traffic coming through is sent a probe, once a second for as long as a dial may
// last. It costs a stranger's key a signed handshake to be sent 16 bytes.
const (
	nudgeEvery = time.Second
	nudgeFor   = 30 * time.Second
	// maxNudged bounds the probes of one round.
	maxNudged = 64
)

// nudge sends a probe into every young session that has carried nothing yet.
func (n *Node) nudge() error {
	if raceDetector {
		return nil
	}
	left := maxNudged
	for _, s := range n.core.GetSessions() {
		if s.RXBytes > 0 || s.Uptime > nudgeFor || left == 0 {
			continue
		}
		left--
		if err := n.bridge.sendProbe(probeAsk, &remote{to: types.Addr(s.Key)}); err != nil {
			return err
		}
	}
	return nil
}
