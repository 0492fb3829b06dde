package s2s

import (
	"errors"
	"math"
	"testing"
	"time"
)

// loaded is a flight with hands of so many stanzas, all written.
func loaded(f *flight, sizes ...int) (hands []*hand) {
	for _, size := range sizes {
		h := &hand{size: size, done: make(chan struct{})}
		for range size {
			f.load([]item{{hand: h}})
		}
		f.load([]item{{}}) // of somebody who does not wait
		f.written(time.Minute)
		hands = append(hands, h)
	}
	return hands
}

func TestFlightAck(t *testing.T) {
	for _, before := range []uint32{0, 7, math.MaxUint32 - 4, math.MaxUint32} { // the count wraps
		f := &flight{managed: true, sent: before, acked: before}
		hands := loaded(f, 3, 2)
		for _, step := range []struct {
			h           uint32
			first, next int
		}{{0, 0, 0}, {1, 1, 0}, {2, 2, 0}, {4, 3, 0}, {4, 3, 0}, {5, 3, 1}, {7, 3, 2}} {
			if err := f.ack(before + step.h); err != nil {
				t.Fatal(err)
			}
			if hands[0].had != step.first || hands[1].had != step.next {
				t.Errorf("from %d, %d acknowledged: the hands have %d and %d, want %d and %d",
					before, step.h, hands[0].had, hands[1].had, step.first, step.next)
			}
			for i, h := range hands {
				if h.ended() != (h.had == h.size) {
					t.Errorf("from %d, %d acknowledged: hand %d has %d and ended %v", before, step.h, i, h.had, h.ended())
				}
			}
		}
		var count *countError
		for _, h := range []uint32{8, 6, 0} { // too many, and fewer than before
			if err := f.ack(before + h); !errors.As(err, &count) || count.sent != f.sent {
				t.Errorf("from %d, %d of 7 acknowledged after 7: %v", before, h, err)
			}
		}
	}
}

// TestFlightOfOthers acknowledges at once what went out over days before a hand.
func TestFlightOfOthers(t *testing.T) {
	f := &flight{managed: true, sent: 3 << 30}
	h := loaded(f, 2)[0]
	if err := f.ack(10); err != nil || h.had != 0 {
		t.Errorf("an early stanza acknowledged: the hand has %d: %v", h.had, err)
	}
	if err := f.ack(3<<30 + 2); err != nil || h.had != 2 {
		t.Errorf("all acknowledged: the hand has %d: %v", h.had, err)
	}
}

// TestFlightWithdrawn has a caller go away whose stanzas are out.
func TestFlightWithdrawn(t *testing.T) {
	f := &flight{managed: true}
	hands := loaded(f, 2, 2)
	if f.due().IsZero() {
		t.Error("nothing is due")
	}
	hands[0].end(errBroken)
	if err := f.ack(f.sent); err != nil {
		t.Fatal(err)
	}
	if hands[0].had != 0 || !errors.Is(hands[0].err, errBroken) || hands[1].had != 2 || hands[1].err != nil {
		t.Errorf("the hands have %d (%v) and %d (%v)", hands[0].had, hands[0].err, hands[1].had, hands[1].err)
	}
	last := loaded(f, 1)[0]
	last.end(errBroken)
	if !f.due().IsZero() {
		t.Error("something is due although nobody waits")
	}
}

// TestFlightAsks asks for no more acknowledgements than somebody waits for.
func TestFlightAsks(t *testing.T) {
	for _, managed := range []bool{true, false} {
		f, h := &flight{managed: managed}, &hand{size: 2, done: make(chan struct{})}
		for i, step := range []struct {
			it  item
			ask bool
		}{{item{}, false}, {item{hand: h}, false}, {item{hand: h}, managed}, {item{}, false}} {
			if ask := f.load([]item{step.it}); ask != step.ask {
				t.Errorf("managed %v, write %d: asks %v", managed, i, ask)
			}
		}
	}
}
