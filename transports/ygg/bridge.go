package ygg

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Arceliar/ironwood/encrypted"
	"github.com/Arceliar/ironwood/types"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// chunk is the size of the netstack's buffers for full packets.
	chunk = 32 << 10
	// mtu lets a packet and core's type byte before it fill one chunk. 32 KiB
	// measured best through relays with stock queues; it is local, since TCP
	// agrees on segment sizes end to end.
	mtu = chunk - 1
	// readAhead is how many packets may wait to be handled, 4 MiB at most.
	readAhead = 128
)

// bridge carries IPv6 packets between the netstack and the overlay. It is the
// netstack's only link, and the one reader of the packet connection, which core
// itself would read with one copy more and answer strangers' questions from.
type bridge struct {
	pc     *encrypted.PacketConn
	self   address.Address
	table  *table
	accept func(publicKey) bool
	log    *slog.Logger
	// started is told in probes, Unix nanoseconds.
	started int64

	in chan packet
	// received counts packets, those of core's own protocol and those that are
	// dropped here included; sent those of the netstack, probes and their answers;
	// dropped those that found the queue full.
	received, sent, dropped atomic.Uint64

	mu   sync.RWMutex
	disp stack.NetworkDispatcher
	bufs sync.Pool
}

var _ stack.LinkEndpoint = (*bridge)(nil)

func newBridge(pc *encrypted.PacketConn, self publicKey, t *table, accept func(publicKey) bool, log *slog.Logger) *bridge {
	b := &bridge{pc: pc, self: self.ip(), table: t, accept: accept, log: log, started: time.Now().UnixNano(), in: make(chan packet, readAhead)}
	b.bufs.New = func() any { buf := make([]byte, chunk); return &buf }
	return b
}

// packet is a packet as it was read, its type included, and who sent it.
type packet struct {
	from publicKey
	view *buffer.View
}

// read queues packets for handle until the packet connection is closed. It does
// nothing else, and drops what the queue has no room for: handling a packet may
// send one, and ironwood takes none while it waits for its reader. Nor must it
// set a read deadline: ironwood panics after one has passed.
func (b *bridge) read() error {
	defer close(b.in)
	view := buffer.NewViewSize(chunk)
	defer func() { view.Release() }()
	for {
		n, from, err := b.pc.ReadFrom(view.AsSlice())
		if err != nil {
			return fmt.Errorf("read packets: %w", err)
		}
		b.received.Add(1)
		addr, ok := from.(types.Addr)
		if !ok || len(addr) != len(publicKey{}) || n < 2 || view.AsSlice()[0] != sessionTraffic {
			continue // not least core's own protocol: node info and debug questions
		}
		p := packet{from: publicKey(addr)}
		if n > chunk/2 {
			p.view, view = view, buffer.NewViewSize(chunk)
			p.view.CapLength(n)
		} else {
			// A small packet must not hold a large chunk in a receive queue.
			p.view = buffer.NewViewWithData(view.AsSlice()[:n])
		}
		select {
		case b.in <- p:
		default:
			b.dropped.Add(1)
			p.view.Release()
		}
	}
}

// handle answers probes and gives the netstack what may reach it.
func (b *bridge) handle() error {
	for p := range b.in {
		msg := p.view.AsSlice()
		r := b.table.key(p.from)
		if msg[1]>>4 != header.IPv6Version {
			err := b.handleProbe(msg, p.from, r)
			p.view.Release()
			if err != nil {
				return fmt.Errorf("answer probe: %w", err)
			}
			continue
		}
		if b.admit(msg[1:], p.from, r) == nil {
			p.view.Release()
			continue
		}
		p.view.TrimFront(1)
		b.deliver(p.view)
	}
	return nil
}

// deliver gives the netstack one packet, and the view with it.
func (b *bridge) deliver(v *buffer.View) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)})
	defer pkt.DecRef()
	// The session's MAC is a stronger check than TCP's sum.
	pkt.RXChecksumValidated = true
	b.mu.RLock()
	disp := b.disp
	b.mu.RUnlock()
	if disp != nil {
		disp.DeliverNetworkPacket(ipv6.ProtocolNumber, pkt)
	}
}

// admit decides whether a packet may reach the netstack and returns its sender,
// or nil. Only TCP and ICMPv6 straight after the IPv6 header pass, so that no
// extension header hides a SYN; the source must be the address of the key that
// the session has proven; a SYN, and whatever comes from a key that nothing is
// open with, must be accepted.
func (b *bridge) admit(p []byte, from publicKey, r *remote) *remote {
	if len(p) < header.IPv6MinimumSize || address.Address(p[24:40]) != b.self {
		return nil
	}
	syn := false
	switch tcpip.TransportProtocolNumber(p[6]) {
	case header.TCPProtocolNumber:
		if len(p) < header.IPv6MinimumSize+header.TCPMinimumSize {
			return nil
		}
		flags := header.TCP(p[header.IPv6MinimumSize:]).Flags()
		syn = flags&(header.TCPFlagSyn|header.TCPFlagAck) == header.TCPFlagSyn
	case header.ICMPv6ProtocolNumber:
	default:
		return nil
	}
	now := time.Now()
	if r == nil {
		// A stranger becomes known by a SYN, not by a stray segment.
		if !syn || address.Address(p[8:24]) != from.ip() || !b.accept(from) {
			return nil
		}
		var err error
		if r, err = b.table.add(from); err != nil {
			b.log.Debug("stream refused", "peer", from.addr(0).Node, "err", err)
			return nil
		}
	} else if address.Address(p[8:24]) != r.ip || (syn || !r.inUse(now)) && !b.accept(from) {
		return nil
	}
	r.hear(now)
	return r
}

// WritePackets sends what the netstack has built. The one copy puts the packet
// behind core's type byte in one piece, as ironwood takes it. Packets to nodes
// that are not known, such as the netstack's multicast, are dropped.
func (b *bridge) WritePackets(l stack.PacketBufferList) (int, tcpip.Error) {
	buf := b.bufs.Get().(*[]byte)
	defer b.bufs.Put(buf)
	n := 0
	for _, pkt := range l.AsSlice() {
		msg := append((*buf)[:0], sessionTraffic)
		for _, s := range pkt.AsSlices() {
			msg = append(msg, s...)
		}
		*buf = msg[:0]
		n++
		if len(msg) < 1+header.IPv6MinimumSize {
			continue
		}
		r := b.table.ip(address.Address(msg[25:41]))
		if r == nil {
			continue
		}
		b.sent.Add(1)
		if err := b.send(msg, r); err != nil {
			return n, &tcpip.ErrClosedForSend{}
		}
	}
	return n, nil
}

// send copies msg into ironwood's queue; the only errors left are those of a
// closed connection, since keys and sizes are right by construction.
func (b *bridge) send(msg []byte, r *remote) error {
	_, err := b.pc.WriteTo(msg, r.to)
	return err
}

func (b *bridge) Attach(d stack.NetworkDispatcher) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.disp = d
}

func (b *bridge) IsAttached() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.disp != nil
}

func (b *bridge) MTU() uint32 { return mtu }

func (b *bridge) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// The rest of stack.LinkEndpoint has no meaning on a link without frames.

func (b *bridge) SetMTU(uint32)                           {}
func (b *bridge) MaxHeaderLength() uint16                 { return 0 }
func (b *bridge) LinkAddress() tcpip.LinkAddress          { return "" }
func (b *bridge) SetLinkAddress(tcpip.LinkAddress)        {}
func (b *bridge) Wait()                                   {}
func (b *bridge) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (b *bridge) AddHeader(*stack.PacketBuffer)           {}
func (b *bridge) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (b *bridge) Close()                                  {}
func (b *bridge) SetOnCloseAction(func())                 {}
