package ygg

import (
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestRepliesUnderLoad has the netstack answer a flood of segments while it
// sends as well. Whoever reads packets must not wait for a packet to be sent:
// ironwood takes none while it waits for its reader.
func TestRepliesUnderLoad(t *testing.T) {
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	echo(t, n, 7)
	<-n.ready
	a := newAttacker(t, uri, n)
	// A SYN makes it known; what follows gets a reset each.
	a.flood(1, func() []byte { return a.segment(header.TCPFlagSyn) })
	var wg sync.WaitGroup
	for range 4 {
		rst := a.segment(header.TCPFlagAck)
		wg.Go(func() {
			for range 5000 {
				a.send(rst)
			}
		})
	}
	wg.Wait()
	other := start(t, Config{Peers: []string{uri}})
	c, err := dialIn(t, patience, other, n, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c)
	before := n.bridge.received.Load()
	a.send([]byte{0})
	eventually(t, "packets are read still", func() bool { return n.bridge.received.Load() > before })
}
