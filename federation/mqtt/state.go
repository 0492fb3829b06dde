package mqtt

import (
	"context"
	"slices"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// DefaultState is where topics are that hold, retained, whether a peer can be reached,
// and whether this gateway runs. Brokers do not match what begins with $ by # and +.
// None of it crosses, wherever it is.
const DefaultState = "$grid/"

const (
	stateOnline  = "online"
	stateOffline = "offline"
)

// stateTopic is about the link to the peer of that name.
func (a *Adapter) stateTopic(petname string) string { return a.cfg.State + petname + "/state" }

// selfState is about this gateway.
func (a *Adapter) selfState() string { return a.stateTopic("self") }

// Will is what the broker is to publish when this gateway is gone without a word.
func (a *Adapter) Will() *session.Message {
	return &session.Message{Topic: a.selfState(), Payload: []byte(stateOffline), QoS: 1, Retain: true}
}

// tellSelf publishes that this gateway runs, whenever the broker has come up, until ctx
// is done.
func (a *Adapter) tellSelf(ctx context.Context) error {
	for {
		select {
		case <-a.cameUp:
		case <-ctx.Done():
			return nil
		}
		a.publishState(ctx, a.selfState(), stateOnline)
	}
}

func word(up bool, online, offline string) string {
	if up {
		return online
	}
	return offline
}

// tellState has the topics of a peer's state published soon.
func (p *peer) tellState() { signal(p.stating) }

// state publishes them whenever that is asked for, until ctx is done.
func (p *peer) state(ctx context.Context) {
	for {
		select {
		case <-p.stating:
		case <-ctx.Done():
			return
		}
		if r := p.rules(); r != nil && p.a.connected.Load() { // else once it is
			p.publish(ctx, r, p.isUp())
		}
	}
}

func (p *peer) publish(ctx context.Context, r *peerRules, up bool) {
	p.a.publishState(ctx, p.a.stateTopic(r.name), word(up, stateOnline, stateOffline))
	for _, t := range r.policy.Availability {
		p.a.publishState(ctx, t.Topic, word(up, t.Online, t.Offline))
	}
}

// tellGone says of what nothing more is told about that it cannot be reached: of peers
// that were removed or may not use MQTT any more, and by topics that no rule names now.
// Who has a name or a topic after them has the last word on it.
func (a *Adapter) tellGone(ctx context.Context, was, now *rules) {
	named, told := map[string]bool{}, map[string]bool{}
	for _, r := range now.peers {
		named[r.name] = true
	}
	tell := func(topic, text string) {
		told[topic] = true
		a.publishState(ctx, topic, text)
	}
	for _, r := range was.peers {
		if !named[r.name] {
			tell(a.stateTopic(r.name), stateOffline)
		}
		for _, t := range r.policy.Availability {
			if !now.own[t.Topic] {
				tell(t.Topic, t.Offline)
			}
		}
	}
	// Meanwhile the rules may be others, and what they have told is overwritten.
	for id, r := range a.rules.Load().peers {
		if told[a.stateTopic(r.name)] || slices.ContainsFunc(r.policy.Availability, func(t federation.MQTTAvailability) bool { return told[t.Topic] }) {
			a.peer(id).tellState()
		}
	}
}

// publishState queues a retained message of the gateway's own; the session sends it
// when it can.
func (a *Adapter) publishState(ctx context.Context, name, text string) {
	m := &session.Message{Topic: name, Payload: []byte(text), QoS: 1, Retain: true}
	err := a.broker.Send(ctx, "", m, func(err error) {
		if err != nil {
			a.log.Warn("the broker does not take a topic of the gateway's own", "topic", name, "err", err)
		}
	})
	if err != nil && ctx.Err() == nil {
		a.log.Warn("a topic of the gateway's own is not published", "topic", name, "err", err)
	}
}

// Farewell says, before the session ends, that no peer can be reached any more, and
// returns when the broker has that or ctx is done.
func (a *Adapter) Farewell(ctx context.Context) {
	type topicText struct{ topic, text string }
	all := []topicText{{a.selfState(), stateOffline}}
	for _, r := range a.rules.Load().peers {
		all = append(all, topicText{a.stateTopic(r.name), stateOffline})
		for _, t := range r.policy.Availability {
			all = append(all, topicText{t.Topic, t.Offline})
		}
	}
	told := make(chan error, len(all))
	for _, t := range all {
		m := &session.Message{Topic: t.topic, Payload: []byte(t.text), QoS: 1, Retain: true}
		if err := a.broker.Send(ctx, "", m, func(err error) { told <- err }); err != nil {
			return
		}
	}
	for range all {
		select {
		case err := <-told:
			if err != nil {
				a.log.Debug("a topic of the gateway's own is not published", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// FarewellTime bounds how long leaving may take.
const FarewellTime = 2 * time.Second
