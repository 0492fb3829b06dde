package lane

import "time"

// Small writes are what a lane costs: each is a record of TLS, a frame of HTTP/2,
// a segment of TCP, a packet of the mesh and a wake-up for each of them, at both
// ends. So under load they are spaced out, and each carries what has gathered.
// The first after a pause goes at once: who sends a message now and then waits for
// nothing.
const (
	writeEvery = time.Millisecond
	ackEvery   = 5 * time.Millisecond
)

// pacer spaces out what one goroutine does.
type pacer struct {
	every time.Duration
	next  time.Time
}

// pause blocks until the next turn is due, or done is closed.
func (p *pacer) pause(done <-chan struct{}) {
	if wait := time.Until(p.next); wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-done:
		}
	}
	p.next = time.Now().Add(p.every)
}
