package session

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A broker of MQTT 3.1.1 is not given more than any takes; see receiveMax3.
func TestFewUnderWayWith311(t *testing.T) {
	d := newDialogue(t, Config{Version: V311})
	var script strings.Builder
	script.WriteString("accept\n< 10*\n> 20 02 01 00\n")
	for i := range receiveMax3 + 1 {
		fmt.Fprintf(&script, "publish 1 k%d\n", i)
	}
	script.WriteString(strings.Repeat("< 32*\n", receiveMax3))
	d.play(script.String())
	if st := d.s.Status(); st.InFlight != receiveMax3 || st.Waiting != 1 {
		t.Errorf("%d under way and %d waiting", st.InFlight, st.Waiting)
	}
	d.play("> 40 02 00 01\n< 32*")
}

// What ended a connection that stood is in the log.
func TestEndIsLogged(t *testing.T) {
	var log logged
	d := newDialogue(t, Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	d.play("accept\n< 10*\n> 20 03 01 00 00\nclose\naccept\n< 10*\n> 20 03 01 00 00")
	if !strings.Contains(log.String(), "the broker closed the connection") {
		t.Errorf("the log says %s", log.String())
	}
}

// logged is a log that may be read.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// What a broker may hold of an earlier life counts among what it is given: mosquitto
// acknowledges one too many, in MQTT 3.1.1 as if it had taken it, and drops it.
func TestHeldFromBefore(t *testing.T) {
	for name, c := range map[string]struct {
		cfg     Config
		connack string
		most    int
		again   string // PUBREL for what is completed
	}{
		"MQTT 3.1.1":                   {Config{Version: V311}, "> 20 02 01 00\n", receiveMax3, "< 62 02 21 f3\n"},
		"MQTT 5 and receive maximum 3": {Config{}, "> 20 06 01 00 03 21 00 03\n", 3, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			journal := newMemory()
			var publish, rec strings.Builder
			for i := range c.most - 1 {
				id := uint16(lowIDs + 1 + i)
				journal.st.Out[id] = OutState{hashKey(fmt.Sprint("k", i)), Begun, uint64(i + 1)}
				fmt.Fprintf(&publish, "publish 2 k%d\n< 3c .. 00 01 74 %04x*\n", i, id)
				fmt.Fprintf(&rec, "> 50 02 %04x\n< 62 02 %04x\n", id, id)
			}
			journal.st.Out[lowIDs+500] = OutState{hashKey("completed"), Completed, 499}
			journal.st.Out[lowIDs+501] = OutState{hashKey("received"), Received, 500}
			c.cfg.Journal = journal
			d := newDialogue(t, c.cfg)
			d.play("accept\n< 10*\n" + c.connack + c.again + "< 62 02 21 f4\n" + "publish 1 a\npublish 2 b\n")
			if st := d.s.Status(); st.Waiting != 2 {
				t.Errorf("%d messages wait, want 2", st.Waiting)
			}
			d.play("close\naccept\n< 10*\n" + c.connack + c.again + "< 62 02 21 f4\n" + publish.String() + rec.String())
			// As soon as one is completed the next may begin.
			d.play("> 70 02 20 00\n< 32*\n> 70 02 21 f4\n< 34 .. 00 01 74 21 f5*\ndone k0")
		})
	}
}

// A broker that was killed may hold what it had released: it is asked to release the
// messages again that were completed last, in their order, if it cannot say, or says,
// that it holds too much.
func TestReleasedOnceMore(t *testing.T) {
	const (
		old    = "accept\n< 10*\n> 20 02 01 00\n"
		up     = "accept\n< 10*\n> 20 03 01 00 00\n"
		k      = "publish 2 k\n< 34 .. 00 01 74 20 00*\n> 50 02 20 00\n< 62 02 20 00\n> 70 02 20 00\ndone k\n"
		l      = "publish 2 l\n< 34 .. 00 01 74 20 01*\n> 50 02 20 01\n< 62 02 20 01\n> 70 02 20 01\ndone l\n"
		again  = "< 62 02 20 00\n< 62 02 20 01\n> 70 02 20 00\n> 70 02 20 01\n"
		m      = "publish 1 m\n< 32*\n> 40 02 00 01\ndone m\n"
		refuse = "publish 2 n\n< 34 .. 00 01 74 20 02*\n> 50 03 20 02 97\nclose\n"
	)
	for name, c := range map[string]struct {
		version byte
		script  string
	}{
		"MQTT 3.1.1":               {V311, old + k + l + "close\n" + old + again + m},
		"MQTT 3.1.1, session lost": {V311, old + k + l + "close\naccept\n< 10*\n> 20 02 00 00\n" + m},
		"MQTT 5":                   {V5, up + k + l + "close\n" + up + m},
		"MQTT 5, too much":         {V5, up + k + l + refuse + up + again + m + "close\n" + up + strings.ReplaceAll(m, "00 01\n", "00 02\n")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newDialogue(t, Config{Version: c.version}).play(c.script)
		})
	}
}

// Of what was completed long ago the broker is not asked.
func TestReleasedOnceMoreIsBounded(t *testing.T) {
	journal := newMemory()
	for i := range againMost + 1 {
		journal.st.Out[uint16(lowIDs+1+i)] = OutState{hashKey(fmt.Sprint("k", i)), Completed, uint64(i + 1)}
	}
	newDialogue(t, Config{Version: V311, Journal: journal}).play("accept\n< 10*\n> 20 02 01 00\n< 62 02 20 01\n< 62 02 20 02")
}

// What a broker that has lost the session held of an earlier life no longer counts.
func TestHeldByNobody(t *testing.T) {
	journal := newMemory()
	for i := range receiveMax3 {
		journal.st.Out[uint16(lowIDs+1+i)] = OutState{hashKey(fmt.Sprint("k", i)), Begun, uint64(i + 1)}
	}
	d := newDialogue(t, Config{Version: V311, Journal: journal})
	d.play("accept\n< 10*\n> 20 02 00 00\n" + strings.Repeat("publish 1\n", receiveMax3) + strings.Repeat("< 32*\n", receiveMax3))
}

// Others do not wait for ever for what nobody sends again. The broker releases it.
func TestHeldForNobody(t *testing.T) {
	journal := newMemory()
	for i := range 3 {
		journal.st.Out[uint16(lowIDs+1+i)] = OutState{hashKey(fmt.Sprint("k", i)), Begun, uint64(i + 1)}
	}
	const up = "accept\n< 10*\n> 20 06 01 00 03 21 00 03\n"
	d := newDialogue(t, Config{Journal: journal, AckTimeout: 100 * time.Millisecond})
	d.play(up + "publish 1 a\n< 62 02 20 00\n< 62 02 20 01\n< 62 02 20 02\n< 32*\n> 70 02 20 00\n> 70 02 20 01\n> 70 02 20 02\n> 40 02 00 01\ndone a\n")
	// Should it be sent again after all, it is a new message.
	d.play("publish 2 k1\n< 34 .. 00 01 74 20 03*\n> 50 02 20 03\n< 62 02 20 03\n> 70 02 20 03\ndone k1")
}

// A message at QoS 0 that waits for the writer does not wait for that of a connection that
// has ended.
func TestWaitsForNoEndedConnection(t *testing.T) {
	d := newDialogue(t, Config{})
	d.play("accept\n< 10*\n> 20 03 01 00 00\npublish 1 k\n< 32*") // it is up
	for range 10 {
		sent := make(chan error, 1)
		var queued atomic.Int32
		go func() {
			for range 64 { // far more than may wait for the writer, and be written at a time
				if err := d.s.Send(t.Context(), "", &Message{Topic: "t", Payload: make([]byte, most0/8)}, func(error) {}); err != nil {
					sent <- err
					return
				}
				queued.Add(1)
			}
			sent <- nil
		}()
		for end := time.Now().Add(patience); queued.Load() < 8; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d messages are queued", queued.Load())
			}
		}
		d.conn.Close()
		select {
		case err := <-sent:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Fatal("it waits for ever")
		}
		d.play("accept\n< 10*\n> 20 03 01 00 00\n< 3a*")
	}
}
