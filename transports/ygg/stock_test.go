package ygg

import (
	"context"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// stockHost stands for a host with a stock daemon and a TUN device: upstream's
// core and ipv6rwc, and a TCP stack that knows nothing of probes.
type stockHost struct {
	rwc  *ipv6rwc.ReadWriteCloser
	disp stack.NetworkDispatcher
}

func newStockHost(t *testing.T, peer string) (*core.Core, *stack.Stack) {
	t.Helper()
	cert, err := selfSigned(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := core.New(cert, quiet())
	if err != nil {
		t.Fatal(err)
	}
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	h := &stockHost{rwc: ipv6rwc.NewReadWriteCloser(c)}
	if err := s.CreateNIC(nic, h); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
		Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFromSlice(c.Address()).WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	s.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nic})
	done := make(chan struct{})
	go func() { defer close(done); h.read() }()
	// The reader first: Destroy takes the dispatcher away from under it.
	t.Cleanup(func() { c.Stop(); <-done; s.Destroy() })
	u, err := url.Parse(peer)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddPeer(u, ""); err != nil {
		t.Fatal(err)
	}
	return c, s
}

func (h *stockHost) read() {
	buf := make([]byte, 65535)
	for {
		n, err := h.rwc.Read(buf)
		if err != nil {
			return
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[:n])})
		h.disp.DeliverNetworkPacket(ipv6.ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

func (h *stockHost) WritePackets(l stack.PacketBufferList) (int, tcpip.Error) {
	for _, pkt := range l.AsSlice() {
		v := pkt.ToView()
		// As with a TUN device: what cannot be sent is lost.
		_, _ = h.rwc.Write(v.AsSlice())
		v.Release()
	}
	return l.Len(), nil
}

func (h *stockHost) Attach(d stack.NetworkDispatcher)             { h.disp = d }
func (h *stockHost) IsAttached() bool                             { return h.disp != nil }
func (h *stockHost) MTU() uint32                                  { return 1280 }
func (h *stockHost) Capabilities() stack.LinkEndpointCapabilities { return 0 }
func (h *stockHost) SetMTU(uint32)                                {}
func (h *stockHost) MaxHeaderLength() uint16                      { return 0 }
func (h *stockHost) LinkAddress() tcpip.LinkAddress               { return "" }
func (h *stockHost) SetLinkAddress(tcpip.LinkAddress)             {}
func (h *stockHost) Wait()                                        {}
func (h *stockHost) ARPHardwareType() header.ARPHardwareType      { return header.ARPHardwareNone }
func (h *stockHost) AddHeader(*stack.PacketBuffer)                {}
func (h *stockHost) ParseHeader(*stack.PacketBuffer) bool         { return true }
func (h *stockHost) Close()                                       {}
func (h *stockHost) SetOnCloseAction(func())                      {}

// TestStockHost opens streams to and from a node that answers no probe.
func TestStockHost(t *testing.T) {
	t.Parallel()
	relay := newURI()
	stockRelay(t, relay)
	n := start(t, Config{Peers: []string{relay}})
	c, s := newStockHost(t, relay)
	there := tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(c.Address()), Port: 80}
	l, err := gonet.ListenTCP(s, there, ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	to := publicKey(c.PublicKey()).addr(80)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := n.Dial(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	wantEcho(t, out)

	echo(t, n, 7)
	in, err := gonet.DialTCP(s, fullAddress(n.public.ip(), 7), ipv6.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	wantEcho(t, in)
	// Checksums are not verified on the way in, but made on the way out: the
	// stock stack would have dropped all of the above without them.
	if got := s.Stats().TCP.ChecksumErrors.Value(); got != 0 {
		t.Errorf("%d segments with a wrong checksum", got)
	}
}

// TestSchemes peers over every carrier that both ends of can be had here.
func TestSchemes(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"tcp", "tls", "quic", "ws", "unix"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			uri := strings.Replace(newURI(), "tcp", scheme, 1)
			if scheme == "unix" {
				uri = "unix://" + filepath.Join(t.TempDir(), "peer.sock")
			}
			wantPeering(t, uri, uri)
		})
	}
	t.Run("socks", func(t *testing.T) {
		uri := newURI()
		proxy := newProxy(t)
		wantPeering(t, uri, "socks://"+proxy+"/"+strings.TrimPrefix(uri, "tcp://"))
	})
}

func wantPeering(t *testing.T, listen, peer string) {
	t.Helper()
	a := start(t, Config{Listen: []string{listen}})
	<-a.ready
	b := start(t, Config{Peers: []string{peer}})
	echo(t, a, 7)
	c, err := dialIn(t, patience, b, a, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c)
	if raceDetector {
		return
	}
	if p := b.Status().Peerings; len(p) != 1 || p[0].URI != redact(peer) || p[0].Node != a.Self().Node {
		t.Errorf("peerings: %+v", p)
	}
}

// newProxy is a SOCKS5 proxy (RFC 1928) without authentication that connects to
// IPv4 addresses.
func newProxy(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", strings.TrimPrefix(newURI(), "tcp://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go proxyOne(c)
		}
	}()
	return l.Addr().String()
}

func proxyOne(c net.Conn) {
	defer c.Close()
	b := make([]byte, 10)
	if _, err := io.ReadFull(c, b[:2]); err != nil {
		return
	}
	if _, err := io.ReadFull(c, make([]byte, b[1])); err != nil {
		return
	}
	if _, err := c.Write([]byte{5, 0}); err != nil {
		return
	}
	if _, err := io.ReadFull(c, b); err != nil || b[3] != 1 {
		return
	}
	to := net.TCPAddr{IP: net.IP(b[4:8]), Port: int(b[8])<<8 | int(b[9])}
	far, err := net.DialTimeout("tcp", to.String(), 5*time.Second)
	if err != nil {
		return
	}
	defer far.Close()
	if _, err := c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0}); err != nil {
		return
	}
	go func() {
		defer c.Close()
		_, _ = io.Copy(c, far)
	}()
	_, _ = io.Copy(far, c)
}
