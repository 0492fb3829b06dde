package ygg

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestFirstDialThroughRelay has a node dial another that does not know it, at the
// very moment at which it joins the network behind a stock relay, as whoever
// accepts an invite does. Without nudges these dials hang for as long as they go
// on trying.
func TestFirstDialThroughRelay(t *testing.T) {
	if raceDetector {
		t.Skip("ironwood's list of sessions, which nudges go by, has a data race of its own")
	}
	for i := range 3 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			keys := []ed25519.PrivateKey{newKey(t), newKey(t), newKey(t)}
			slices.SortFunc(keys, func(a, b ed25519.PrivateKey) int {
				return bytes.Compare(a[ed25519.SeedSize:], b[ed25519.SeedSize:])
			})
			low, middle, high := keys[0], keys[1], keys[2]
			relay := newURI()
			stockRelayAs(t, middle, relay)
			// The one with the lower key is the one that probes often; and being
			// the lowest it becomes the root of the tree, which moves all others.
			called := start(t, Config{Key: high, Peers: []string{relay}, Accept: everyone})
			echo(t, called, 7)
			eventually(t, "a place in the tree", func() bool { return called.Status().Up && len(called.core.GetTree()) > 1 })
			caller := start(t, Config{Key: low, Peers: []string{relay}, Accept: everyone})
			began := time.Now()
			c, err := dialIn(t, 20*time.Second, caller, called, 7)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			t.Logf("stream open %v after the node began to join", time.Since(began).Round(10*time.Millisecond))
			wantEcho(t, c)
		})
	}
}
