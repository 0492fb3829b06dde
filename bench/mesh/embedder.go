package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

// stockNode is upstream's core as it comes.
func stockNode() (*core.Core, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := certificate(key)
	if err != nil {
		return nil, err
	}
	return core.New(cert, nil)
}

func certificate(key ed25519.PrivateKey) (*tls.Certificate, error) {
	cfg := config.NodeConfig{PrivateKey: config.KeyBytes(key)}
	if err := cfg.GenerateSelfSignedCertificate(); err != nil {
		return nil, err
	}
	return cfg.Certificate, nil
}

// embedded is a netstack on a stock node through upstream's ipv6rwc, with its
// default MTU of 1280, as programs that embed a node have it.
type embedded struct {
	rwc  *ipv6rwc.ReadWriteCloser
	disp stack.NetworkDispatcher
}

// newEmbedder is two of them that peer over loopback TCP.
func newEmbedder() (subject, error) {
	uri, err := freeURI()
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	var cores [2]*core.Core
	var stacks [2]*stack.Stack
	for i := range cores {
		if cores[i], err = stockNode(); err != nil {
			return nil, err
		}
		if stacks[i], err = embed(cores[i]); err != nil {
			return nil, err
		}
	}
	if _, err := cores[0].Listen(u, ""); err != nil {
		return nil, err
	}
	if err := cores[1].AddPeer(u, ""); err != nil {
		return nil, err
	}
	to := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFromSlice(cores[0].Address()), Port: port}
	l, err := gonet.ListenTCP(stacks[0], to, ipv6.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	go serve(l)
	return &local{
		close: func() error {
			for i := range cores {
				cores[i].Stop() // ends the reader, which delivers to the stack
				stacks[i].Destroy()
			}
			return nil
		},
		dial: func() (net.Conn, error) {
			return retry(func(ctx context.Context) (net.Conn, error) {
				return gonet.DialContextTCP(ctx, stacks[1], to, ipv6.ProtocolNumber)
			})
		},
	}, nil
}

// retry dials until it works: a SYN that is sent before the path is there is
// lost, and the next one of the same attempt comes too late.
func retry(dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	late := time.Now().Add(setupTime)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		c, err := dial(ctx)
		cancel()
		if err == nil || time.Now().After(late) {
			return c, err
		}
	}
}

func embed(c *core.Core) (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	e := &embedded{rwc: ipv6rwc.NewReadWriteCloser(c)}
	if err := s.CreateNIC(1, e); err != nil {
		return nil, errors.New(err.String())
	}
	self := tcpip.AddrFromSlice(c.Address())
	if err := s.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol: ipv6.ProtocolNumber, AddressWithPrefix: self.WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return nil, fmt.Errorf("add address: %s", err)
	}
	s.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: 1})
	go e.read()
	return s, nil
}

func (e *embedded) read() {
	buf := make([]byte, 65535)
	for {
		n, err := e.rwc.Read(buf)
		if err != nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[:n])})
		e.disp.DeliverNetworkPacket(ipv6.ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

func (e *embedded) WritePackets(l stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range l.AsSlice() {
		v := pkt.ToView()
		_, err := e.rwc.Write(v.AsSlice())
		v.Release()
		if err != nil {
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return l.Len(), nil
}

func (e *embedded) Attach(d stack.NetworkDispatcher)             { e.disp = d }
func (e *embedded) IsAttached() bool                             { return e.disp != nil }
func (e *embedded) MTU() uint32                                  { return uint32(e.rwc.MTU()) }
func (e *embedded) Capabilities() stack.LinkEndpointCapabilities { return 0 }
func (e *embedded) SetMTU(uint32)                                {}
func (e *embedded) MaxHeaderLength() uint16                      { return 0 }
func (e *embedded) LinkAddress() tcpip.LinkAddress               { return "" }
func (e *embedded) SetLinkAddress(tcpip.LinkAddress)             {}
func (e *embedded) Wait()                                        {}
func (e *embedded) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (e *embedded) AddHeader(*stack.PacketBuffer)                {}
func (e *embedded) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (e *embedded) Close()                                       {}
func (e *embedded) SetOnCloseAction(func())                      {}
