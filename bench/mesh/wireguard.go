package main

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// wireguardMTU is what crosses the internet.
const wireguardMTU = 1420

// newWireGuard is wireguard-go with its own netstack at both ends: the other
// way to have an overlay in a process.
func newWireGuard() (subject, error) {
	var keys [2]*ecdh.PrivateKey
	var udp [2]uint16
	var err error
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, err
		}
		if udp[i], err = freeUDP(); err != nil {
			return nil, err
		}
	}
	var devs [2]*device.Device
	var nets [2]*netstack.Net
	for i := range devs {
		tun, tnet, err := netstack.CreateNetTUN([]netip.Addr{wireguardIP(i)}, nil, wireguardMTU)
		if err != nil {
			return nil, err
		}
		devs[i] = device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		nets[i] = tnet
		if err := devs[i].IpcSet(fmt.Sprintf(
			"private_key=%x\nlisten_port=%d\npublic_key=%x\nendpoint=127.0.0.1:%d\nallowed_ip=%s/32\n",
			keys[i].Bytes(), udp[i], keys[1-i].PublicKey().Bytes(), udp[1-i], wireguardIP(1-i),
		)); err != nil {
			return nil, fmt.Errorf("configure wireguard: %w", err)
		}
		if err := devs[i].Up(); err != nil {
			return nil, fmt.Errorf("start wireguard: %w", err)
		}
	}
	to := netip.AddrPortFrom(wireguardIP(0), port)
	l, err := nets[0].ListenTCPAddrPort(to)
	if err != nil {
		return nil, err
	}
	go serve(l)
	return &local{
		close: func() error { devs[0].Close(); devs[1].Close(); return nil },
		dial: func() (net.Conn, error) {
			return retry(func(ctx context.Context) (net.Conn, error) { return nets[1].DialContextTCPAddrPort(ctx, to) })
		},
	}, nil
}

func wireguardIP(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}) }

func freeUDP() (uint16, error) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return uint16(c.LocalAddr().(*net.UDPAddr).Port), c.Close()
}
