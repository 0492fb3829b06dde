package ygg

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"

	"github.com/yggdrasil-network/yggdrasil-go/src/address"

	"github.com/yggate/yggate/transports"
)

// Network is the name of this network in a transports.Addr.
const Network = "ygg"

// Config says who a node is and how it reaches the network.
type Config struct {
	// Key is the node's long-term Ed25519 key; the address follows from it.
	Key ed25519.PrivateKey
	// Peers are peering URIs to keep connected, as in yggdrasil.conf.
	Peers []string
	// Listen are the URIs on which other nodes may peer with this one.
	Listen []string
	// Multicast looks for peers on the local networks, and answers them.
	Multicast bool
	// Accept decides, by full key, which nodes may open streams to this one;
	// nil refuses all. It is asked for every SYN and must be quick. What it
	// refuses costs no endpoint and gets no answer. It is not asked for
	// streams that this node dials.
	Accept func(from transports.Addr) bool
	// Log gets what happens, never payloads; nil discards it.
	Log *slog.Logger
	// OnPeering, when not nil, is called after a peering came up or went down.
	OnPeering func()
}

// check refuses a configuration that cannot work, naming the entry at fault.
func (c *Config) check() error {
	if len(c.Key) != ed25519.PrivateKeySize {
		return fmt.Errorf("node key: %d bytes, want an ed25519 private key of %d", len(c.Key), ed25519.PrivateKeySize)
	}
	if !c.Key.Equal(ed25519.NewKeyFromSeed(c.Key.Seed())) {
		return errors.New("node key: its public half does not belong to its private half; create a new key")
	}
	seen := make(map[string]bool, len(c.Peers))
	for _, uri := range c.Peers {
		u, err := parsePeer(uri)
		if err != nil {
			return err
		}
		if id := peeringID(u); seen[id] {
			return fmt.Errorf("peer %q: listed twice (options after '?' do not make it another peering)", redact(uri))
		} else {
			seen[id] = true
		}
	}
	for _, uri := range c.Listen {
		if _, err := parseListen(uri); err != nil {
			return err
		}
	}
	return nil
}

// publicKey is a node's full key, the only identity that is trusted here.
type publicKey [ed25519.PublicKeySize]byte

func (k publicKey) addr(port uint16) transports.Addr {
	return transports.Addr{Net: Network, Node: fmt.Sprintf("%x", k[:]), Port: port}
}

func (k publicKey) ip() address.Address { return *address.AddrForKey(k[:]) }
