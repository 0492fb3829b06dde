package mqtt

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/topic"
)

// Hand implements lane.Recipient: it imports messages of one topic of a peer and gives
// them to the broker, in order. What is not imported, and what the broker will never
// take, is settled, counted and logged: MQTT has no word for telling a publisher.
func (a *Adapter) Hand(ctx context.Context, from *federation.Peer, items []lane.Item, done func(settled int, err error)) {
	h := &handing{a: a, from: from, done: done, left: len(items) + 1, failed: len(items)}
	for i := range items {
		m, ok := a.admit(from, &items[i])
		if !ok {
			h.end(i, nil)
			continue
		}
		if err := h.send(ctx, i, &items[i], m); err != nil {
			for ; i < len(items); i++ {
				h.end(i, err)
			}
			break
		}
	}
	h.end(len(items), nil)
}

// handing is one call of Hand.
type handing struct {
	a    *Adapter
	from *federation.Peer
	done func(settled int, err error)

	mu     sync.Mutex
	left   int   // messages under way, and one while there may be more
	failed int   // the first that failed
	err    error // of that
}

// send gives one message to the broker. It returns an error where that and the ones
// behind it are not to be given.
func (h *handing) send(ctx context.Context, i int, it *lane.Item, m *session.Message) error {
	topic := topicOf{h.from.ID, it.Conv}
	if err := h.a.order.enter(ctx, topic, m.QoS); err != nil {
		return err
	}
	h.mu.Lock()
	err := h.err // of one before it, with which all are handed again
	h.mu.Unlock()
	if err == nil {
		err = h.a.broker.Send(ctx, keyOf(h.from, it), m, func(err error) {
			h.a.order.leave(topic)
			if h.a.taken(h.from, err) {
				err = nil
			}
			h.end(i, err)
		})
	}
	if err == nil {
		return nil
	}
	h.a.order.leave(topic)
	if h.a.taken(h.from, err) { // it is none that any broker would take
		h.end(i, nil)
		return nil
	}
	return err
}

// end takes note of the end of a message.
func (h *handing) end(i int, err error) {
	h.mu.Lock()
	if err != nil && i < h.failed {
		h.failed, h.err = i, err
	}
	h.left--
	last := h.left == 0
	h.mu.Unlock()
	if !last {
		return
	}
	err = h.err
	if err != nil {
		err = fmt.Errorf("give messages to the broker: %w", err)
	}
	h.done(h.failed, err)
}

// keyOf names a message for the session with the broker, for good.
func keyOf(from *federation.Peer, it *lane.Item) string { return string(from.ID) + "/" + it.Source }

// taken says whether a message needs nothing more.
func (a *Adapter) taken(from *federation.Peer, err error) bool {
	if err == nil {
		return true
	}
	var no *session.Refused
	if !errors.As(err, &no) || !no.Permanent() {
		return false
	}
	a.metrics.dropped.WithLabelValues(from.Name, "in", "broker").Inc()
	a.log.Warn("the broker does not take a message of a peer", "peer", from.Name, "err", err)
	return true
}

// Deliver implements lane.Handler, for what passes: QoS 0, and what a peer imports.
func (a *Adapter) Deliver(ctx context.Context, from *federation.Peer, it lane.Item) error {
	if env, err := decodeEnvelope(it.Body); err == nil && env.Kind == kindImports {
		if a.rules.Load().peers[from.ID] == nil {
			return nil
		}
		if err := a.heardImports(from.ID, env.Payload); err != nil {
			return fmt.Errorf("note what %s imports: %w", from.Name, err)
		}
		return nil
	}
	m, ok := a.admit(from, &it)
	if !ok {
		return nil
	}
	m.QoS = 0
	name := from.Name
	return a.broker.Send(ctx, "", m, func(err error) {
		if err != nil {
			a.metrics.dropped.WithLabelValues(name, "in", "broker").Inc()
		}
	})
}

// Returned implements lane.Handler, for what did not pass. Nothing more was promised.
func (a *Adapter) Returned(to *federation.Peer, it lane.Item, why error) {
	if to == nil {
		return
	}
	env, err := decodeEnvelope(it.Body)
	if err == nil && env.Kind == kindImports {
		var no *lane.Refusal
		if !errors.As(why, &no) { // refused by one that has no MQTT
			a.peer(to.ID).tellImports()
		}
		return
	}
	a.metrics.dropped.WithLabelValues(to.Name, "out", "down").Inc()
}

// admit makes an item of a peer a message for the broker, by the policy of now; false
// for one that is not imported.
func (a *Adapter) admit(from *federation.Peer, it *lane.Item) (*session.Message, bool) {
	r := a.rules.Load().peers[from.ID]
	m, rule := a.admitted(r, from, it)
	if rule != "" {
		a.metrics.dropped.WithLabelValues(from.Name, "in", rule).Inc()
		a.log.Debug("a message of a peer is not imported", "peer", from.Name, "rule", rule)
		return nil, false
	}
	a.metrics.messages.WithLabelValues(from.Name, "in", qosLabel(m.QoS)).Inc()
	return m, true
}

// admitted says by which rule an item does not become a message.
func (a *Adapter) admitted(r *peerRules, from *federation.Peer, it *lane.Item) (_ *session.Message, rule string) {
	if r == nil {
		return nil, "not_allowed"
	}
	env, err := decodeEnvelope(it.Body)
	if err != nil {
		return nil, "malformed"
	}
	tr := trace{path: env.Path}
	switch {
	case len(env.Path) == 0 || env.Path[len(env.Path)-1] != string(from.ID):
		return nil, "path" // it lies about itself
	case tr.has(a.cfg.Self):
		return nil, "loop"
	case env.Kind == kindReply:
		return a.admitReply(r, env, it)
	case env.Kind != kindPublish:
		return nil, "malformed"
	}
	i := r.importOf(env.Topic)
	if i == nil {
		return nil, "not_imported"
	}
	name, ok := i.rule.Apply(env.Topic)
	if home := gridLevel + r.name + "/"; ok && a.v311() && !strings.HasPrefix(i.As, home) {
		name = home + name // by which alone it is known not to be our own
		ok = topic.CheckName(name) == nil
	}
	switch {
	case !ok, a.rules.Load().isOwn(name): // the gateway alone tells who is there
		return nil, "topic"
	case env.has(flagState) && !i.Retain:
		return nil, "not_retained"
	case !env.has(flagState) && len(env.Origin) > 0 && !a.isFirst(env.Origin, from, it):
		return nil, "repeat"
	}
	m := env.message()
	m.Topic, m.QoS, m.Retain = name, min(env.QoS, i.QoS), env.has(flagRetain) && i.Retain
	if rule := a.finish(r, env, it, m); rule != "" {
		return nil, rule
	}
	return m, ""
}

// isFirst says whether an item is the first of a message that may come by several
// ways. One that is handed again is.
func (a *Adapter) isFirst(origin []byte, from *federation.Peer, it *lane.Item) bool {
	way := maphash.String(a.way, keyOf(from, it))
	return a.seen.first(originKey(origin), way) == way
}

// finish adds to a message what it has of its way: less time, a response topic that
// leads back, and where it has been. It says "expired" where no time is left.
func (a *Adapter) finish(r *peerRules, env *envelope, it *lane.Item, m *session.Message) (rule string) {
	if env.has(flagExpiry) {
		left := time.Duration(env.Expiry) * time.Second
		if !it.At.IsZero() {
			left -= max(time.Since(it.At), 0)
		}
		if left <= 0 {
			if it.Source == "" || !a.broker.Begun(string(r.id)+"/"+it.Source) {
				return "expired"
			}
			left = time.Second // it may be there in part: it goes on
		}
		// Rounded up: what has any time left is not to be gone at once.
		secs := uint32((left + time.Second - 1) / time.Second)
		m.Expiry = &secs
	}
	if env.Response != "" {
		if back := gridLevel + r.name + "/" + replyLevel + env.Response; topic.CheckName(back) == nil {
			m.ResponseTopic = back
		}
	}
	env.mark(m)
	info := a.info.Load()
	if info != nil {
		m.QoS = min(m.QoS, info.MaxQoS)
		m.Retain = m.Retain && info.Retain
	}
	return ""
}

// reasonOf names why a lane gave an item back.
func reasonOf(why error) string {
	switch {
	case errors.Is(why, lane.ErrExpired):
		return "expired"
	case errors.Is(why, lane.ErrDropped):
		return "dropped"
	}
	return "peer"
}
