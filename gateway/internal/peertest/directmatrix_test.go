//go:build integration

package peertest

import (
	"os"
	"testing"
	"time"
)

func startDirectMatrix(t *testing.T, names ...string) *DirectMatrix {
	Require(t, "dendrite")
	start := time.Now()
	m, err := StartDirectMatrix(t.Context(), t.TempDir(), names...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d homeservers up after %v", len(names), time.Since(start))
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			for _, d := range m.Dendrites {
				t.Logf("%s:\n%s", d.Log, d.LogTail(60))
			}
		}
	})
	return m
}

// Three homeservers that reach each other without yggate do all that the
// conversation has.
func TestDirectMatrix(t *testing.T) {
	m := startDirectMatrix(t, "a.grid.test", "b.grid.test", "c.grid.test")
	alice, bob, carol := MatrixUser(t, m.Dendrites[0], "alice"), MatrixUser(t, m.Dendrites[1], "bob"), MatrixUser(t, m.Dendrites[2], "carol")
	if err := MatrixConversation(t.Context(), alice, bob, os.Stderr); err != nil {
		t.Fatal(err)
	}
	if _, err := MatrixGathering(t.Context(), os.Stderr, alice, bob, carol); err != nil {
		t.Fatal(err)
	}
}
