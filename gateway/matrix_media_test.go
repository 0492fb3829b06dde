//go:build integration

package gateway_test

import (
	"testing"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// mediaGrowth is how much memory each gateway may take for media of any size.
const mediaGrowth = 16 << 20

// TestMatrixMedia has media pass that is far larger than what a gateway may hold.
func TestMatrixMedia(t *testing.T) {
	t.Parallel()
	p := newParish(t, "a", "b")
	ctx := t.Context()
	alice, bob := p.users[0], p.users[1]
	size := int64(32 << 20)
	if long() {
		size = 100 << 20
	}
	// The first way: keys, connections, a descriptor or two.
	small, err := alice.UploadRandom(ctx, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := bob.DownloadRandom(ctx, small); err != nil {
		t.Fatal(err)
	}
	media, err := alice.UploadRandom(ctx, size)
	if err != nil {
		t.Fatal(err)
	}
	before := make([]peertest.Memory, len(p.grids))
	for i, g := range p.grids {
		if err := g.Gateway.ResetPeak(); err != nil {
			t.Fatal(err)
		}
		if before[i], err = g.Gateway.Memory(); err != nil {
			t.Fatal(err)
		}
	}
	begun := time.Now()
	if err := bob.DownloadRandom(ctx, media); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begun)
	t.Logf("%d MiB in %v: %.0f MiB/s", size>>20, took.Round(time.Millisecond), float64(size>>20)/took.Seconds())
	for i, g := range p.grids {
		after, err := g.Gateway.Memory()
		if err != nil {
			t.Fatal(err)
		}
		growth := after.Peak - before[i].RSS
		t.Logf("memory of gateway %s: %.1f MiB, grew by %.1f MiB at most", g.Name, mib(before[i].RSS), mib(growth))
		if growth > mediaGrowth {
			t.Errorf("memory of gateway %s grew by %.1f MiB, at most %d are allowed", g.Name, mib(growth), mediaGrowth>>20)
		}
	}
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
