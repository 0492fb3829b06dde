package ygg

import (
	"crypto/ed25519"
	"testing"

	"github.com/yggdrasil-network/yggdrasil-go/src/core"
)

// TestQueueSwap holds two things: that the larger queue is in force, and that
// upstream still needs it. If the second fails, newCore can lose the exchange.
func TestQueueSwap(t *testing.T) {
	key := newKey(t)
	ours, err := newCore(key, quiet(), func(ed25519.PublicKey) {})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Stop()
	cert, err := selfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	stock, err := core.New(cert, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer stock.Stop()

	// The limit of the queue shows in the largest message, less its headers.
	const headers = 512
	if got := stock.PacketConn.MTU(); got >= 256<<10 {
		t.Errorf("stock queue has %d bytes by now: is the exchange still needed?", got)
	}
	if got := ours.PacketConn.MTU(); got > queueSize || got < queueSize-headers {
		t.Errorf("our queue has %d bytes, want %d less headers", got, queueSize)
	}
	if ours.PacketConn.IsClosed() {
		t.Error("the packet connection in use is closed")
	}
	if !ours.PublicKey().Equal(stock.PublicKey()) || ours.PacketConn.LocalAddr().String() != stock.PacketConn.LocalAddr().String() {
		t.Error("the exchanged packet connection has another key")
	}
}
