package mqtt

import (
	"context"
	"sync"

	"github.com/yggate/yggate/federation"
)

// order keeps the messages of a topic in their order on the way to the broker where
// they have different QoS. One at QoS 2 is written down before it is sent, so that what
// comes behind it at QoS 1 or 0 would overtake it; and of what is retained the last one
// counts. Those of one QoS the session keeps in order itself.
type order struct {
	mu     sync.Mutex
	topics map[topicOf]*underWay
}

// topicOf is a topic of a peer.
type topicOf struct {
	from federation.GridID
	conv string
}

// underWay are the messages of a topic that the broker has not taken yet, which are all
// of one QoS.
type underWay struct {
	qos  byte
	n    int
	none chan struct{} // closed when there are none; nil: nobody waits for that
}

// enter counts a message as under way once none of another QoS is, or returns ctx's
// error.
func (o *order) enter(ctx context.Context, t topicOf, qos byte) error {
	for {
		o.mu.Lock()
		u := o.topics[t]
		if u == nil {
			u = &underWay{qos: qos}
			o.topics[t] = u
		}
		if u.qos == qos {
			u.n++
			o.mu.Unlock()
			return nil
		}
		if u.none == nil {
			u.none = make(chan struct{})
		}
		none := u.none
		o.mu.Unlock()
		select {
		case <-none:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leave is for a message that is no longer under way.
func (o *order) leave(t topicOf) {
	o.mu.Lock()
	defer o.mu.Unlock()
	u := o.topics[t]
	if u.n--; u.n > 0 {
		return
	}
	delete(o.topics, t)
	if u.none != nil {
		close(u.none)
	}
}
