package ygg

import (
	"encoding/binary"
	"maps"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/yggate/yggate/transports"
)

// packets counts what is sent in one test of the filter.
const packets = 500

// attacker is a stock node that sends packets of its own making.
type attacker struct {
	t    *testing.T
	core *core.Core
	key  publicKey
	to   *Node
	port uint16
	met  bool // there is a session
}

func newAttacker(t *testing.T, peer string, to *Node) *attacker {
	t.Helper()
	c := stockRelay(t, newURI())
	a := &attacker{t: t, core: c, key: publicKey(c.PublicKey()), to: to, port: 10000}
	u, err := parsePeer(peer)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddPeer(u, ""); err != nil {
		t.Fatal(err)
	}
	// ironwood handles sessions only while somebody reads.
	go func() {
		buf := make([]byte, 1<<16)
		for {
			if _, _, err := c.ReadFrom(buf); err != nil {
				return
			}
		}
	}()
	return a
}

// segment is an IPv6 packet with a TCP header from a port of its own.
func (a *attacker) segment(flags header.TCPFlags) []byte {
	a.port++
	p := make([]byte, header.IPv6MinimumSize+header.TCPMinimumSize)
	header.IPv6(p).Encode(&header.IPv6Fields{
		PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64,
		SrcAddr: tcpip.AddrFrom16(a.key.ip()), DstAddr: tcpip.AddrFrom16(a.to.public.ip()),
	})
	header.TCP(p[header.IPv6MinimumSize:]).Encode(&header.TCPFields{
		SrcPort: a.port, DstPort: 7, SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 65535,
	})
	return p
}

func (a *attacker) send(p []byte) {
	a.t.Helper()
	if _, err := a.core.WriteTo(p, types.Addr(a.to.public[:])); err != nil {
		a.t.Fatal(err)
	}
}

// flood sends n packets and waits until the last of them is in. Packets may be
// lost only before there is a session, so it makes one first.
func (a *attacker) flood(n int, packet func() []byte) {
	a.t.Helper()
	in := &a.to.bridge.received
	if !a.met {
		eventually(a.t, "a session with the attacker", func() bool {
			a.send([]byte{0})
			return in.Load() > 0
		})
		a.met = true
		// Those of the above that are still under way are counted out by one
		// that can be told from them.
		eventually(a.t, "what made the session has arrived", func() bool {
			before := in.Load()
			a.send([]byte{0})
			eventually(a.t, "a packet to arrive", func() bool { return in.Load() > before })
			return in.Load() == before+1
		})
	}
	for range n {
		before := in.Load()
		a.send(packet())
		// Not faster than the queues take it.
		eventually(a.t, "a packet to arrive", func() bool { return in.Load() > before })
	}
}

// TestRefusedKeyCostsNothing sends SYNs and worse from a key that Accept does
// not have, and looks for anything that is left of them.
func TestRefusedKeyCostsNothing(t *testing.T) {
	uri := newURI()
	var asked atomic.Int32
	n := start(t, Config{Listen: []string{uri}, Accept: func(transports.Addr) bool { asked.Add(1); return false }})
	echo(t, n, 7)
	<-n.ready
	a := newAttacker(t, uri, n)
	goroutines := runtime.NumGoroutine()
	a.flood(packets, func() []byte { return a.segment(header.TCPFlagSyn) })
	a.flood(10, func() []byte { return a.segment(header.TCPFlagAck) })
	a.flood(10, func() []byte { return append([]byte(nil), probeAsk[1:]...) })

	if asked.Load() < packets {
		t.Errorf("Accept was asked %d times for %d SYNs", asked.Load(), packets)
	}
	if got := n.stack.Stats().IP.PacketsReceived.Value(); got != 0 {
		t.Errorf("%d packets of a refused key reached the netstack", got)
	}
	if got := len(n.stack.RegisteredEndpoints()); got != 0 {
		t.Errorf("%d endpoints are there", got)
	}
	if r := n.table.key(a.key); r != nil {
		t.Error("a refused key is in the table")
	}
	if now := runtime.NumGoroutine(); now > goroutines+20 {
		t.Errorf("%d goroutines, %d before", now, goroutines)
	}
	if got := n.bridge.sent.Load(); got != 0 {
		t.Errorf("%d packets were sent to a refused key", got)
	}
}

// TestHalfOpenBounded floods from a key that is let in but never completes a
// handshake: another key's streams must open meanwhile, and the remains go away.
func TestHalfOpenBounded(t *testing.T) {
	t.Parallel()
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	echo(t, n, 7)
	<-n.ready
	a := newAttacker(t, uri, n)
	most := int32(0)
	a.flood(packets, func() []byte {
		if r := n.table.key(a.key); r != nil {
			most = max(most, r.pending.Load())
		}
		return a.segment(header.TCPFlagSyn)
	})
	const few = packets / 4
	if got := len(n.stack.RegisteredEndpoints()); got > few || got == 0 {
		t.Errorf("%d half-open endpoints, want 1 to %d", got, few)
	}
	if most > few {
		t.Errorf("%d handshakes of one node at a time, want at most %d", most, few)
	}
	other := start(t, Config{Peers: []string{uri}})
	c, err := dialIn(t, patience, other, n, 7)
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, c)
	c.Close()
	eventually(t, "half-open streams are given up", func() bool {
		r := n.table.key(a.key)
		return r != nil && r.pending.Load() == 0 && r.streams.Load() == 0 && r.inbound.Load() == 0
	})
}

// TestForgedPackets sends what must not pass even from a key that is let in.
func TestForgedPackets(t *testing.T) {
	t.Parallel()
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	echo(t, n, 7)
	<-n.ready
	a := newAttacker(t, uri, n)
	always := map[string]func([]byte) []byte{
		"another node's address": func(p []byte) []byte { p[23] ^= 1; return p },
		"the /64 of another":     func(p []byte) []byte { p[8] |= 1; return p },
		"not for this node":      func(p []byte) []byte { p[39] ^= 1; return p },
		"SYN behind a header": func(p []byte) []byte {
			out := append([]byte(nil), p[:40]...)
			out[6] = 60 // destination options
			out = append(out, byte(header.TCPProtocolNumber), 0, 1, 4, 0, 0, 0, 0)
			binary.BigEndian.PutUint16(out[4:], header.TCPMinimumSize+8)
			return append(out, p[40:]...)
		},
		"UDP":       func(p []byte) []byte { p[6] = 17; return p },
		"cut off":   func(p []byte) []byte { return p[:50] },
		"no header": func(p []byte) []byte { return p[:39] },
		"version 4": func(p []byte) []byte { p[0] = 0x45; return p },
		"empty":     func([]byte) []byte { return nil },
	}
	stranger := maps.Clone(always)
	stranger["ACK, no SYN"] = func(p []byte) []byte {
		header.TCP(p[40:]).SetFlags(uint8(header.TCPFlagAck))
		return p
	}
	arrived := func() uint64 { return n.stack.Stats().IP.PacketsReceived.Value() }
	for name, forge := range stranger {
		a.flood(5, func() []byte { return forge(a.segment(header.TCPFlagSyn)) })
		if got := arrived(); got != 0 {
			t.Fatalf("%s: %d packets reached the netstack", name, got)
		}
	}
	if r := n.table.key(a.key); r != nil {
		t.Error("forged packets made their sender known")
	}
	// The same segment unforged passes, so the above was not for another reason.
	a.flood(1, func() []byte { return a.segment(header.TCPFlagSyn) })
	eventually(t, "a true SYN arrives", func() bool { return arrived() == 1 })
	// Being known does not make the sender's forgeries any better.
	for name, forge := range always {
		a.flood(5, func() []byte { return forge(a.segment(header.TCPFlagSyn)) })
		if got := arrived(); got != 1 {
			t.Fatalf("%s, from a known node: %d packets reached the netstack", name, got-1)
		}
	}
}

// TestAcceptByKey has one key let in and another not, at the same node.
func TestAcceptByKey(t *testing.T) {
	t.Parallel()
	uri := newURI()
	friend, stranger := newNode(t, Config{Peers: []string{uri}}), newNode(t, Config{Peers: []string{uri}})
	n := start(t, Config{Listen: []string{uri}, Accept: func(a transports.Addr) bool { return a == friend.Self() }})
	echo(t, n, 7)
	run(t, friend)
	run(t, stranger)
	c, err := dialIn(t, patience, friend, n, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c)
	eventually(t, "the stranger is peered", func() bool { return stranger.Status().Up })
	if c, err := dialIn(t, 3*time.Second, stranger, n, 7); err == nil {
		c.Close()
		t.Error("a stranger's stream opened")
	}
	// This node may still dial whom it would not let in.
	echo(t, stranger, 8)
	out, err := dialIn(t, patience, n, stranger, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	wantEcho(t, out)
	// Which does not let the other in by the way.
	if c, err := dialIn(t, time.Second, stranger, n, 7); err == nil {
		c.Close()
		t.Error("a stranger's stream opened while this node had one to it")
	}
	wantEcho(t, c)
}

// TestReplyRate asks far more often than answers are given.
func TestReplyRate(t *testing.T) {
	t.Parallel()
	uri := newURI()
	n := start(t, Config{Listen: []string{uri}})
	<-n.ready
	a := newAttacker(t, uri, n)
	ask := append(append([]byte(nil), probeAsk[1:]...), make([]byte, 8)...)
	began := time.Now()
	a.flood(packets, func() []byte { return ask })
	got := n.bridge.sent.Load() // before the time is taken
	if most := uint64(time.Since(began)/replyEvery) + 2; got == 0 || got > most {
		t.Errorf("%d answers to %d probes, want 1 to %d", got, packets, most)
	}
}
