package link

import (
	"fmt"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
)

// TestHellosFallTogether wants the hellos of a few links at one moment, those of
// very many spread, and none later than the heartbeat says.
func TestHellosFallTogether(t *testing.T) {
	const every = 3 * time.Second
	start := time.Unix(1_800_000_000, 123_456_789)
	for _, tc := range []struct{ links, least, most int }{{1, 1, 1}, {beatTogether - 1, 1, 1}, {beatTogether * 10, 5, 11}} {
		l := &Links{outbound: map[federation.GridID]*outbound{}}
		l.cfg.Timing.Heartbeat = every
		for i := range tc.links {
			l.outbound[federation.GridID(fmt.Sprint("grid ", i))] = nil
		}
		moments := map[time.Time]bool{}
		for id := range l.outbound {
			// Wherever in the interval it is asked, the answer is the same moment.
			for after := time.Duration(0); after < every; after += every / 7 {
				now := start.Add(after)
				d := l.untilBeat(id, now)
				if d <= 0 || d > every {
					t.Fatalf("%d links: next hello in %v, want at most %v", tc.links, d, every)
				}
				at := now.Add(d)
				if next := l.untilBeat(id, at); next != every {
					t.Fatalf("%d links: the hello after that in %v", tc.links, next)
				}
				for at.Sub(start) > every {
					at = at.Add(-every)
				}
				moments[at] = true
			}
		}
		if len(moments) < tc.least || len(moments) > tc.most {
			t.Errorf("%d links: hellos at %d moments, want %d to %d", tc.links, len(moments), tc.least, tc.most)
		}
	}
}
