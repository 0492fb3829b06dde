package xmpp

import (
	"context"
	"fmt"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

// GiveBack implements lane.Recipient: it tells the sender of a message of this grid
// that the peer does not get it. owner is nil for a grid that is no longer known.
//
// A room is not told that one of its occupants did not get a message in time: it
// would only put the occupant out. That one finds the message in the room's history.
func (a *Adapter) GiveBack(ctx context.Context, owner *federation.Peer, it lane.Item, why error) error {
	p := a.peerOf(owner)
	top, err := frame.ParseTop(it.Body)
	if err != nil {
		return nil // it was parsed before it was put
	}
	// Only a room writes to a full address; who writes to a room gives its name.
	if string(top.Type) == "groupchat" && frame.Resource(top.To) != nil {
		a.metrics.expired.WithLabelValues(p.label(owner)).Inc()
		return nil
	}
	return a.bounce(p, &top, it.Body, owner, why, func(r reply) error {
		if !a.cfg.Directory.Now().Own(federation.XMPP, r.to) {
			p.a.metrics.lost.Inc()
			p.log(owner).Warn("the sender of a message that was given up cannot be told: its domain is not in xmpp.domains any more", "domain", r.to)
			return nil
		}
		if _, err := a.local.Hand(ctx, r.from, r.to, r.stanza); err != nil {
			return fmt.Errorf("tell a sender at %s: %w", r.to, err)
		}
		return nil
	})
}
