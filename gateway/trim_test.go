package gateway

import "testing"

// TestTrimmer wants memory to be given back after work, once, and not during it.
func TestTrimmer(t *testing.T) {
	const mib = 1 << 20
	var tr trimmer
	allocated := uint64(0)
	for i, step := range []struct {
		more uint64
		due  bool
	}{
		{100 * mib, false}, // start-up
		{2 * mib, true},    // quiet
		{2 * mib, false},
		{2 * mib, false},
		{50 * mib, false}, // work
		{60 * mib, false},
		{3 * mib, true}, // quiet again
		{3 * mib, false},
		{3 * mib, false},
		{3 * mib, false},
		{3 * mib, false},
		{3 * mib, false}, // 15 MiB since
		{3 * mib, true},
		{0, false},
	} {
		allocated += step.more
		if got := tr.due(allocated); got != step.due {
			t.Errorf("look %d, after %d bytes more: due %v, want %v", i, step.more, got, step.due)
		}
	}
}
