package ygg

import (
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"regexp"

	"github.com/Arceliar/ironwood/encrypted"
	"github.com/Arceliar/ironwood/network"
	"github.com/yggdrasil-network/yggdrasil-go/src/address"
	"github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/multicast"
)

// queueSize is the limit of ironwood's send and receive queues, in bytes, and
// with them of the largest message that a direct peer may send. core.New sets
// 128 KiB, which at our MTU is four packets: a burst of TCP then loses its head
// and the stream lives on retransmission time-outs.
const queueSize = 512 << 10

// lookupEvery is the least time between two searches for the path to a node, less
// than the pace at which dials search. Upstream's second would come on top of the
// seconds in which trees settle.
const lookupEvery = fastProbe * 3 / 4

// newCore starts a node without peerings, its packet connection replaced by one
// with a larger queue. core has no option for it, but embeds the connection as
// an exported field and reads it anew on each use, so it may be exchanged as
// long as nothing is peered. TestQueueSwap holds upstream to that.
// found is told of new ways to nodes.
func newCore(key ed25519.PrivateKey, log coreLog, found func(ed25519.PublicKey)) (*core.Core, error) {
	cert, err := selfSigned(key)
	if err != nil {
		return nil, fmt.Errorf("node certificate: %w", err)
	}
	c, err := core.New(cert, log, core.NodeInfoPrivacy(true))
	if err != nil {
		return nil, fmt.Errorf("start node: %w", err)
	}
	pc, err := encrypted.NewPacketConn(key,
		network.WithBloomTransform(func(k ed25519.PublicKey) ed25519.PublicKey {
			return address.SubnetForKey(k).GetKey()
		}),
		network.WithPeerMaxMessageSize(queueSize),
		network.WithPathThrottle(lookupEvery),
		network.WithPathNotify(found),
	)
	if err != nil {
		c.Stop()
		return nil, fmt.Errorf("open packet connection: %w", err)
	}
	stock := c.PacketConn
	c.PacketConn = pc
	if err := stock.Close(); err != nil {
		c.Stop()
		return nil, fmt.Errorf("close stock packet connection: %w", err)
	}
	return c, nil
}

// selfSigned is the certificate of TLS and QUIC peerings. It proves nothing:
// nodes are authenticated by the session above.
func selfSigned(key ed25519.PrivateKey) (*tls.Certificate, error) {
	cfg := config.NodeConfig{PrivateKey: config.KeyBytes(key)}
	if err := cfg.GenerateSelfSignedCertificate(); err != nil {
		return nil, err
	}
	return cfg.Certificate, nil
}

// startMulticast announces the node on every local network and peers with the
// nodes that announce themselves there.
func startMulticast(c *core.Core, log coreLog) (*multicast.Multicast, error) {
	m, err := multicast.New(c, log, multicast.MulticastInterface{
		Regex: regexp.MustCompile(".*"), Beacon: true, Listen: true,
	})
	if err != nil {
		return nil, fmt.Errorf("start multicast discovery: %w", err)
	}
	return m, nil
}
