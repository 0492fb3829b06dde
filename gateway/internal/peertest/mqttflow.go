package peertest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// MQTTFlow publishes to one broker and counts what arrives at another, through
// faults of everything between. The publisher is sequential per topic: it waits for
// the acknowledgement of each message before the next, across connections and with
// one session, so that each topic has an order.
type MQTTFlow struct {
	// From and To are the brokers.
	From, To netip.AddrPort
	// FromLogin and ToLogin are as whom to come to them.
	FromLogin, ToLogin MQTTLogin
	// Topic is published to, with "/0", "/1" ... behind; what arrives is below
	// Prefix.
	Topic, Prefix string
	// ID names the two clients.
	ID  string
	QoS byte
	// Topics is how many, Rate how many messages per second on all together.
	Topics, Rate int
	// NearTap and FarTap, where they are set, know what brokers and gateways took.
	NearTap, FarTap *MQTTTap
}

// flowBody is how long a message is; it begins with its number, counted from 1.
const flowBody = 100

// MQTTResult says what became of the messages of a flow.
type MQTTResult struct {
	Acked    int // acknowledged to the publisher
	Received int // different ones
	// Lost were acknowledged and never arrived; Dup arrived again; Disorder arrived
	// for the first time after a later one of their topic.
	Lost, Dup, Disorder int
	// LostBetween are those of Lost, DupBetween those of Dup, that are not the doing of a
	// broker that was killed: by the taps, the near broker gave the message on and got
	// its acknowledgement, and the far one never took it; or, at QoS 2, the far one took
	// it more often than the near one gave it. Without taps they are Lost and Dup.
	LostBetween, DupBetween int
	// Examples are some of what went wrong.
	Examples []string
}

func (r MQTTResult) String() string {
	s := fmt.Sprintf("acked %d, received %d, LOST %d, DUP %d, out of order %d", r.Acked, r.Received, r.Lost, r.Dup, r.Disorder)
	if r.Lost > r.LostBetween || r.Dup > r.DupBetween {
		s += fmt.Sprintf("; a broker itself lost %d and repeated %d of these", r.Lost-r.LostBetween, r.Dup-r.DupBetween)
	}
	if len(r.Examples) > 0 {
		s += " (" + strings.Join(r.Examples, ", ") + ")"
	}
	return s
}

// flowTopic is what is known of a topic of a flow.
type flowTopic struct {
	acked uint64         // all up to this
	count map[uint64]int // how often each arrived
	last  uint64         // the latest that arrived
	wrong int            // out of order
}

// RunningFlow is a flow under way.
type RunningFlow struct {
	flow   MQTTFlow
	cancel context.CancelFunc
	work   sync.WaitGroup
	stop   chan struct{} // closed when no message is to begin any more
	ready  chan struct{} // closed when the subscription stands
	// publishing is done when the last one is acknowledged.
	publishing sync.WaitGroup

	held map[uint16]tapKey // by packet id, what is between PUBREC and PUBREL; of the subscriber alone

	mu      sync.Mutex
	topics  []flowTopic
	waiting []flowing
	arrived time.Time // the last
	changed chan struct{}
	near    *mqttWire // nil: no connection
	err     error     // of a kind that no fault explains
}

// flowing is the message of a topic that is under way; its packet id is the topic's.
type flowing struct {
	number   uint64 // 0: none
	received bool   // PUBREC came
	sent     bool   // once
}

// Start begins a flow and returns when both clients are there.
func (f MQTTFlow) Start(ctx context.Context) (*RunningFlow, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &RunningFlow{
		flow: f, cancel: cancel, stop: make(chan struct{}), ready: make(chan struct{}), changed: make(chan struct{}),
		held: map[uint16]tapKey{}, topics: make([]flowTopic, f.Topics), waiting: make([]flowing, f.Topics),
	}
	for i := range r.topics {
		r.topics[i].count = map[uint64]int{}
	}
	r.work.Go(func() { r.keep(ctx, f.To, f.ID+"-to", f.ToLogin, r.subscriber) })
	select {
	case <-r.ready:
	case <-ctx.Done():
	case <-time.After(readyWithin):
		cancel()
		r.work.Wait()
		return nil, fmt.Errorf("flow %s: %s does not answer", f.ID, f.To)
	}
	r.work.Go(func() { r.keep(ctx, f.From, f.ID+"-from", f.FromLogin, r.publisher) })
	for i := range f.Topics {
		r.publishing.Go(func() { r.publish(ctx, i) })
	}
	return r, nil
}

// keep makes one connection after another.
func (r *RunningFlow) keep(ctx context.Context, broker netip.AddrPort, id string, as MQTTLogin, use func(*mqttWire) error) {
	for ctx.Err() == nil {
		w, err := dialMQTT(ctx, broker, id, as)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { w.Close() })
			err = use(w)
			stop()
			w.Close()
		}
		var wrong *flowError
		if errors.As(err, &wrong) {
			r.mu.Lock()
			r.err = errors.Join(r.err, err)
			r.mu.Unlock()
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// flowError is one that no fault explains.
type flowError struct{ error }

// change wakes who waits for something; r.mu is held.
func (r *RunningFlow) change() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// publish is the publisher of one topic.
func (r *RunningFlow) publish(ctx context.Context, topic int) {
	every := time.Second * time.Duration(r.flow.Topics) / time.Duration(r.flow.Rate)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for number := uint64(1); ; number++ {
		select {
		case <-tick.C:
		case <-r.stop:
			return
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		r.waiting[topic] = flowing{number: number}
		if r.near != nil {
			r.sendNext(topic)
		}
		for r.waiting[topic].number != 0 && ctx.Err() == nil {
			changed := r.changed
			r.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
			}
			r.mu.Lock()
		}
		r.mu.Unlock()
	}
}

// sendNext sends what the message of a topic needs next; r.mu is held. If that fails
// the next connection does it again.
func (r *RunningFlow) sendNext(topic int) {
	m, id := &r.waiting[topic], uint16(topic+1)
	if m.received {
		_ = r.near.send(packets.PUBREL, id)
		return
	}
	body := make([]byte, flowBody)
	binary.BigEndian.PutUint64(body, m.number)
	_ = r.near.publish(&packets.Publish{
		Topic: r.flow.Topic + "/" + strconv.Itoa(topic), QoS: r.flow.QoS, PacketID: id, Duplicate: m.sent, Payload: body, Properties: &packets.Properties{},
	})
	m.sent = true
}

// publisher serves a connection with the near broker.
func (r *RunningFlow) publisher(w *mqttWire) error {
	r.mu.Lock()
	r.near = w
	for i := range r.waiting {
		if r.waiting[i].number != 0 {
			r.sendNext(i)
		}
	}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.near = nil
		r.mu.Unlock()
	}()
	for {
		p, err := packets.ReadPacket(w)
		if err != nil {
			return err
		}
		if err := r.acknowledged(p); err != nil {
			return err
		}
	}
}

func (r *RunningFlow) acknowledged(p *packets.ControlPacket) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	topic := int(p.PacketID()) - 1
	if topic < 0 || topic >= len(r.waiting) || r.waiting[topic].number == 0 {
		return nil // a repeat
	}
	m := &r.waiting[topic]
	switch c := p.Content.(type) {
	case *packets.Pubrec:
		if c.ReasonCode >= 0x80 {
			return &flowError{fmt.Errorf("message %d of topic %d refused: %v", m.number, topic, c)}
		}
		m.received = true
		r.sendNext(topic)
		return nil
	case *packets.Puback:
		if c.ReasonCode >= 0x80 {
			return &flowError{fmt.Errorf("message %d of topic %d refused: %v", m.number, topic, c)}
		}
	case *packets.Pubcomp:
		if !m.received {
			return nil
		}
	default:
		return nil
	}
	r.topics[topic].acked = m.number
	*m = flowing{}
	r.change()
	return nil
}

// subscriber serves a connection with the far broker.
func (r *RunningFlow) subscriber(w *mqttWire) error {
	if err := w.subscribe(1, r.flow.Prefix+r.flow.Topic+"/#", r.flow.QoS); err != nil {
		return err
	}
	if !w.present {
		clear(r.held)
	}
	for {
		p, err := packets.ReadPacket(w)
		if err != nil {
			return err
		}
		switch c := p.Content.(type) {
		case *packets.Suback:
			if c.Reasons[0] != r.flow.QoS {
				return &flowError{fmt.Errorf("subscription refused: %v", c)}
			}
			select {
			case <-r.ready:
			default:
				close(r.ready)
			}
		case *packets.Publish:
			err = r.take(w, c)
		case *packets.Pubrel:
			delete(r.held, c.PacketID)
			err = w.send(packets.PUBCOMP, c.PacketID)
		}
		if err != nil {
			return err
		}
	}
}

func (r *RunningFlow) take(w *mqttWire, c *packets.Publish) error {
	if c.QoS != r.flow.QoS {
		return &flowError{fmt.Errorf("%s arrived at QoS %d, want %d", c.Topic, c.QoS, r.flow.QoS)}
	}
	switch c.QoS {
	case 0:
		return r.got(c)
	case 1:
		return errors.Join(r.got(c), w.send(packets.PUBACK, c.PacketID))
	}
	// A broker that was killed may use an id again that it never released.
	_, number, _ := flowNumber(c)
	if k := (tapKey{c.Topic, number}); r.held[c.PacketID] != k {
		if err := r.got(c); err != nil {
			return err
		}
		r.held[c.PacketID] = k
	}
	return w.send(packets.PUBREC, c.PacketID)
}

// got counts a message.
func (r *RunningFlow) got(c *packets.Publish) error {
	topic, number, ok := flowNumber(c)
	if !ok || topic >= len(r.topics) {
		return &flowError{fmt.Errorf("%s with %d bytes is nothing that was sent", c.Topic, len(c.Payload))}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	t := &r.topics[topic]
	t.count[number]++
	if t.count[number] == 1 {
		if number < t.last {
			t.wrong++
		}
		t.last = max(t.last, number)
	}
	r.arrived = time.Now()
	r.change()
	return nil
}

// flowNumber reads what a message of a flow is.
func flowNumber(c *packets.Publish) (topic int, number uint64, ok bool) {
	if len(c.Payload) != flowBody {
		return 0, 0, false
	}
	topic, err := strconv.Atoi(c.Topic[strings.LastIndexByte(c.Topic, '/')+1:])
	return topic, binary.BigEndian.Uint64(c.Payload), err == nil && topic >= 0
}

// Acked is how many messages have been acknowledged to the publisher.
func (r *RunningFlow) Acked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, t := range r.topics {
		n += int(t.acked)
	}
	return n
}

// Finish lets no message begin any more and waits until each that has begun is
// acknowledged, and the last of each topic has arrived, or nothing has arrived for
// patience. What then has not arrived would be out of order. Last it waits for what
// arrives again until nothing has for a second, or three where something is missing.
func (r *RunningFlow) Finish(ctx context.Context, patience time.Duration) (MQTTResult, error) {
	defer r.work.Wait()
	defer r.cancel()
	close(r.stop)
	if err := r.finishPublishing(ctx); err != nil {
		return MQTTResult{}, fmt.Errorf("flow %s: the near broker does not acknowledge: %w", r.flow.ID, err)
	}
	r.mu.Lock()
	r.arrived = time.Now()
	for ctx.Err() == nil {
		left := r.quietLocked(patience) - time.Since(r.arrived)
		if left <= 0 {
			break
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(left):
		case <-ctx.Done():
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	return r.resultLocked(), errors.Join(r.err, ctx.Err())
}

// quietLocked is for how long nothing has to arrive until nothing more is expected.
func (r *RunningFlow) quietLocked(patience time.Duration) time.Duration {
	quiet := time.Second
	for i := range r.topics {
		t := &r.topics[i]
		switch {
		case t.acked > t.last:
			return patience
		case len(t.count) < int(t.acked):
			quiet = 3 * time.Second
		}
	}
	return quiet
}

func (r *RunningFlow) finishPublishing(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		r.publishing.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		r.cancel()
		<-done
		return ctx.Err()
	}
}

func (r *RunningFlow) resultLocked() MQTTResult {
	var res MQTTResult
	f := r.flow
	for i := range r.topics {
		t := &r.topics[i]
		res.Acked += int(t.acked)
		res.Received += len(t.count)
		res.Disorder += t.wrong
		for number := uint64(1); number <= t.acked; number++ {
			near, far := -1, -1
			if f.NearTap != nil && f.FarTap != nil {
				m := tapKey{f.Topic + "/" + strconv.Itoa(i), number}
				near, far = f.NearTap.passed(m), f.FarTap.passed(tapKey{f.Prefix + m.topic, number})
			}
			switch n := t.count[number]; {
			case n == 0:
				res.Lost++
				if near < 0 || near > 0 && far == 0 {
					res.LostBetween++
				}
				res.example("lost", i, number, near, far)
			case n > 1:
				res.Dup += n - 1
				res.example("again", i, number, near, far)
				if near < 0 || f.QoS != 2 {
					res.DupBetween += n - 1
				}
			}
			if f.QoS == 2 && near >= 0 && far > max(near, 1) {
				res.DupBetween += far - max(near, 1)
				res.example("taken again", i, number, near, far)
			}
		}
	}
	return res
}

func (r *MQTTResult) example(what string, topic int, number uint64, near, far int) {
	if len(r.Examples) < 8 {
		r.Examples = append(r.Examples, fmt.Sprintf("%s %d/%d near %d far %d", what, topic, number, near, far))
	}
}
