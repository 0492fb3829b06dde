package peertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// MQTTLoad is a stream of messages from a client of one broker to one of another.
type MQTTLoad struct {
	From, To netip.AddrPort
	// Topic is published to, with "/0", "/1" ... behind; what arrives is below Prefix.
	Topic, Prefix string
	Topics        int
	QoS           byte
	// Messages is how many are sent, Window how many of them may be under way at once,
	// from the publisher to the subscriber, Size their bytes, at least 8.
	Messages, Window, Size int
	// Rate is how many are sent in a second; 0: as many as Window lets.
	Rate int
}

// Run sends the messages and waits until all have arrived. One that does not arrive,
// or arrives again at QoS 0 or 2, is an error.
func (l MQTTLoad) Run(ctx context.Context) (Measured, error) {
	m, err := l.run(ctx)
	if err != nil {
		return m, fmt.Errorf("MQTT load from %s to %s at QoS %d: %w", l.From, l.To, l.QoS, err)
	}
	return m, nil
}

// mqttLoading is a load under way.
type mqttLoading struct {
	MQTTLoad
	start  time.Time
	window chan struct{} // has one for each under way
	began  chan struct{} // closed when the subscription stands
	done   chan struct{} // closed when all arrived

	mu   sync.Mutex
	sent []time.Duration // since start; 0: not yet
	took []time.Duration
	seen []bool
	last time.Duration
}

func (l MQTTLoad) run(ctx context.Context) (Measured, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wires [2]*mqttWire
	for i, broker := range []netip.AddrPort{l.From, l.To} {
		w, err := dialMQTT(ctx, broker, "", MQTTLogin{})
		if err != nil {
			return Measured{}, err
		}
		defer w.Close()
		wires[i] = w
	}
	r := &mqttLoading{
		MQTTLoad: l, start: time.Now(), window: make(chan struct{}, l.Window), began: make(chan struct{}), done: make(chan struct{}),
		sent: make([]time.Duration, l.Messages), seen: make([]bool, l.Messages),
	}
	var work sync.WaitGroup
	part := func(f func() error) {
		work.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	part(func() error { return r.receive(ctx, wires[1]) })
	part(func() error { return r.answer(ctx, wires[0]) })
	part(func() error { return r.send(ctx, wires[0]) })
	var err error
	select {
	case <-r.done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	cancel(nil)
	for _, w := range wires {
		w.Close()
	}
	work.Wait()
	if err != nil {
		return Measured{}, fmt.Errorf("%d of %d arrived: %w", len(r.took), l.Messages, err)
	}
	slices.Sort(r.took)
	at := func(p float64) time.Duration { return r.took[int(float64(len(r.took)-1)*p)] }
	return Measured{Messages: l.Messages, Elapsed: r.last - r.sent[0], P50: at(0.50), P99: at(0.99)}, nil
}

// send publishes. The packet id of a message follows from its number: no more than
// the window are under way.
func (r *mqttLoading) send(ctx context.Context, w *mqttWire) error {
	select {
	case <-r.began:
	case <-ctx.Done():
		return nil
	}
	var tick <-chan time.Time
	if r.Rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(r.Rate))
		defer t.Stop()
		tick = t.C
	}
	for i := range r.Messages {
		if tick != nil {
			select {
			case <-tick:
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case r.window <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		body := make([]byte, r.Size)
		binary.BigEndian.PutUint64(body, uint64(i))
		r.mu.Lock()
		r.sent[i] = time.Since(r.start)
		r.mu.Unlock()
		if err := w.publish(&packets.Publish{
			Topic: r.Topic + "/" + strconv.Itoa(i%r.Topics), QoS: r.QoS, PacketID: uint16(i%0x8000 + 1), Payload: body, Properties: &packets.Properties{},
		}); err != nil {
			return failure(ctx, err)
		}
	}
	return nil
}

// failure is err, but what comes of the end is none.
func failure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// answer answers what the near broker acknowledges.
func (r *mqttLoading) answer(ctx context.Context, w *mqttWire) error {
	return serveMQTT(ctx, w, func(p *packets.ControlPacket, out *bytes.Buffer) error {
		if c, ok := p.Content.(*packets.Pubrec); ok {
			if c.ReasonCode >= 0x80 {
				return fmt.Errorf("refused: %v", c)
			}
			return put(out, packets.PUBREL, c.PacketID)
		}
		return nil
	})
}

// receive subscribes and takes what comes.
func (r *mqttLoading) receive(ctx context.Context, w *mqttWire) error {
	if err := w.subscribe(1, r.Prefix+r.Topic+"/#", r.QoS); err != nil {
		return failure(ctx, err)
	}
	return serveMQTT(ctx, w, func(p *packets.ControlPacket, out *bytes.Buffer) error {
		switch c := p.Content.(type) {
		case *packets.Suback:
			close(r.began)
		case *packets.Publish:
			if err := r.got(c); err != nil {
				return err
			}
			if c.QoS > 0 {
				return put(out, [...]byte{1: packets.PUBACK, 2: packets.PUBREC}[c.QoS], c.PacketID)
			}
		case *packets.Pubrel:
			return put(out, packets.PUBCOMP, c.PacketID)
		}
		return nil
	})
}

func (r *mqttLoading) got(c *packets.Publish) error {
	if len(c.Payload) != r.Size {
		return fmt.Errorf("%d bytes arrived, want %d", len(c.Payload), r.Size)
	}
	i := binary.BigEndian.Uint64(c.Payload)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case i >= uint64(len(r.sent)) || r.sent[i] == 0:
		return fmt.Errorf("number %d arrived, which was not sent", i)
	case r.seen[i] && r.QoS == 1:
		return nil
	case r.seen[i]:
		return fmt.Errorf("number %d arrived again", i)
	}
	r.seen[i] = true
	r.last = time.Since(r.start)
	r.took = append(r.took, r.last-r.sent[i])
	if len(r.took) == len(r.sent) {
		close(r.done)
	}
	<-r.window
	return nil
}

// serveMQTT gives each packet to handle, and writes its answers when nothing more is
// there to be read.
func serveMQTT(ctx context.Context, w *mqttWire, handle func(*packets.ControlPacket, *bytes.Buffer) error) error {
	in, out := bufio.NewReaderSize(w, 64<<10), bytes.Buffer{}
	for {
		p, err := packets.ReadPacket(in)
		if err != nil {
			return failure(ctx, err)
		}
		if err := handle(p, &out); err != nil {
			return err
		}
		if in.Buffered() > 0 || out.Len() == 0 {
			continue
		}
		if _, err := w.Write(out.Bytes()); err != nil {
			return failure(ctx, err)
		}
		out.Reset()
	}
}
