package ygg

import (
	"errors"
	"fmt"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// nic is the netstack's only interface.
const nic tcpip.NICID = 1

// Buffers of one stream, in bytes. The receive window starts at 1 MiB and
// grows to 4 MiB only while the application keeps up, which is enough for
// 300 Mbit/s at 100 ms; a stream that nobody reads holds no more than that.
const (
	defaultBuffer = 1 << 20
	largestBuffer = 4 << 20
)

// Keepalive finds a far end that went away without a word within a minute.
const (
	keepaliveIdle     = 30 * time.Second
	keepaliveInterval = 10 * time.Second
	keepaliveCount    = 3
)

// newStack is a TCP/IPv6 stack for one address whose only link is the bridge.
func newStack(b *bridge) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	if err := configure(s, b); err != nil {
		s.Destroy()
		return nil, fmt.Errorf("set up netstack: %w", err)
	}
	return s, nil
}

func configure(s *stack.Stack, b *bridge) error {
	// Reno halves its window on each loss; across a relay with a short queue
	// losses come in bursts, and cubic recovers from them sooner.
	cubic := tcpip.CongestionControlOption("cubic")
	for _, opt := range []tcpip.SettableTransportProtocolOption{
		&cubic,
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: largestBuffer},
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: defaultBuffer, Max: largestBuffer},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fmt.Errorf("option %T: %s", opt, err)
		}
	}
	if err := s.CreateNIC(nic, b); err != nil {
		return fmt.Errorf("create interface: %s", err)
	}
	self := tcpip.AddrFrom16(b.self)
	if err := s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: ipv6.ProtocolNumber, AddressWithPrefix: self.WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return fmt.Errorf("add address: %s", err)
	}
	s.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic})
	return nil
}

// setKeepalive makes a stream notice a far end that vanished.
func setKeepalive(ep tcpip.Endpoint) error {
	ep.SocketOptions().SetKeepAlive(true)
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	if err := ep.SetSockOpt(&idle); err != nil {
		return errors.New(err.String())
	}
	if err := ep.SetSockOpt(&interval); err != nil {
		return errors.New(err.String())
	}
	if err := ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount); err != nil {
		return errors.New(err.String())
	}
	return nil
}

func fullAddress(ip address.Address, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom16(ip), Port: port}
}
