//go:build integration

package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// flow is one publisher at grid a, in order, and what a client of grid b gets.
type flow struct {
	t     *testing.T
	count int // published
	mu    sync.Mutex
	got   []int
}

// TestMQTTFaults kills gateways while messages flow: none is lost, their order is kept,
// and at QoS 2 each comes once.
func TestMQTTFaults(t *testing.T) {
	t.Parallel()
	e := newEstate(t, shareAll, "", "a", "b")
	a, b := e.grids[0], e.grids[1]
	kill := func(grids ...*peertest.Grid) func() {
		return func() {
			for _, g := range grids {
				check(t, g.Gateway.Kill())
			}
			for _, g := range grids {
				check(t, g.Gateway.Start(t.Context()))
			}
		}
	}
	for _, fault := range []struct {
		name string
		do   func()
	}{
		{"none", func() {}}, {"near gateway", kill(a)}, {"far gateway", kill(b)}, {"both gateways", kill(a, b)},
	} {
		for qos := 1; qos <= 2; qos++ {
			f := e.flow(a, b, qos, 600, fault.do)
			f.judge(fmt.Sprintf("%s, QoS %d", fault.name, qos), qos)
		}
	}
}

// flow publishes numbers at 200 a second, and has the fault done after a third of them.
func (e *estate) flow(from, to *peertest.Grid, qos, count int, fault func()) *flow {
	e.t.Helper()
	f := &flow{t: e.t, count: count}
	topic := fmt.Sprintf("flow/%d", time.Now().UnixNano())
	ctx, cancel := context.WithCancel(e.t.Context())
	defer cancel()
	f.watch(ctx, to, topic)
	e.awaitSubscribers(to, "grid/a/house/"+topic)
	pub := exec.CommandContext(ctx, "mosquitto_pub", "-h", from.Broker.MQTT.Addr().String(), "-V", "5", "-l", "-q", strconv.Itoa(qos), "-t", "house/"+topic)
	in, err := pub.StdinPipe()
	if err == nil {
		err = pub.Start()
	}
	if err != nil {
		e.t.Fatal(err)
	}
	done := make(chan struct{})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := range count {
		<-tick.C
		if i == count/3 {
			go func() { defer close(done); fault() }()
		}
		if _, err := fmt.Fprintln(in, i); err != nil {
			e.t.Fatal(err)
		}
	}
	if err := in.Close(); err != nil {
		e.t.Fatal(err)
	}
	if err := pub.Wait(); err != nil {
		e.t.Fatal(err)
	}
	<-done
	// The last one is the last: order is kept within a topic.
	for end := time.Now().Add(time.Minute); f.last() != count-1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			break
		}
	}
	return f
}

// watch takes what arrives until ctx is done.
func (f *flow) watch(ctx context.Context, to *peertest.Grid, topic string) {
	f.t.Helper()
	// With its own receive maximum of 20, mosquitto_sub 2.0.11 leaves when many come at
	// once at QoS 2.
	sub := exec.CommandContext(ctx, "mosquitto_sub", "-h", to.Broker.MQTT.Addr().String(), "-V", "5", "-i", "watcher", "-q", "2", "-t", "grid/a/house/"+topic,
		"-D", "CONNECT", "receive-maximum", "65535")
	out, err := sub.StdoutPipe()
	if err == nil {
		err = sub.Start()
	}
	if err != nil {
		f.t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			n, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
			if err != nil {
				f.t.Error(err)
			}
			f.mu.Lock()
			f.got = append(f.got, n)
			f.mu.Unlock()
		}
		_ = sub.Wait() // it is killed
	}()
}

func (f *flow) last() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.got) == 0 {
		return -1
	}
	return f.got[len(f.got)-1]
}

// judge counts what was lost, came twice, or before its time.
func (f *flow) judge(what string, qos int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := make([]int, f.count)
	high, early := -1, 0
	for _, n := range f.got {
		if seen[n]++; seen[n] == 1 {
			if n < high {
				early++
			}
			high = max(high, n)
		}
	}
	lost, twice := 0, 0
	for _, n := range seen {
		switch {
		case n == 0:
			lost++
		case n > 1:
			twice += n - 1
		}
	}
	f.t.Logf("%s: %d published, %d lost, %d twice, %d out of order", what, f.count, lost, twice, early)
	if lost > 0 || early > 0 || qos == 2 && twice > 0 {
		f.t.Errorf("%s: lost %d, twice %d, out of order %d", what, lost, twice, early)
	}
}
