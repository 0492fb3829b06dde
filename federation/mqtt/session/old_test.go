package session

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
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
