package main

import (
	"context"
	"crypto/rand"
	"fmt"
	rand2 "math/rand/v2"
	"slices"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// exchange sends a message as one of the two users and returns when both have it
// from /sync, with the milliseconds from before the send until the other had it.
func (h *homes) exchange(ctx context.Context, room id.RoomID, sender int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	from, to := h.users[sender], h.users[1-sender]
	text := "hello " + rand.Text()
	is := func(e *peertest.MatrixEvent) bool {
		content, ok := e.Content.Parsed.(*event.MessageEventContent)
		return ok && content.Body == text
	}
	before := [2]uint64{from.Mark(), to.Mark()}
	start := time.Now()
	if _, err := from.SendText(ctx, room, text); err != nil {
		return 0, fmt.Errorf("send as %s: %w", from.UserID, err)
	}
	got, err := to.AwaitAfter(ctx, before[1], "a message from "+from.UserID.String(), is)
	if err != nil {
		return 0, err
	}
	// The sender's server is done with it only then.
	_, err = from.AwaitAfter(ctx, before[0], "the own message of "+from.UserID.String(), is)
	return milliseconds(got.Time.Sub(start)), err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// latency sends one message at a time, one on each system in turn, so that
// whatever else the machine does happens to both.
func (m *matrixBench) latency(ctx context.Context) error {
	cost := &matrixCost{gatewayCost: gatewayCost{gateways: m.gateways}}
	if err := cost.begin(ctx); err != nil {
		return err
	}
	var direct, gated []float64
	for round := range m.o.rounds {
		var r [2][]float64
		for i := range m.o.pairs {
			for _, which := range order(i) {
				ms, err := []*homes{m.direct, m.gated}[which].exchange(ctx, []*homes{m.direct, m.gated}[which].rooms[0], i/2%2)
				if err != nil {
					return fmt.Errorf("latency, %s: %w", []*homes{m.direct, m.gated}[which].name, err)
				}
				r[which] = append(r[which], ms)
			}
		}
		direct, gated = append(direct, r[0]...), append(gated, r[1]...)
		fmt.Fprintf(m.o.out, "round %d  one message at a time, %d pairs  direct p50 %.2f p99 %.2f ms  gateways p50 %.2f p99 %.2f ms  difference %+.2f ms\n",
			round+1, m.o.pairs, median(r[0]), quantile(r[0], 0.99), median(r[1]), quantile(r[1], 0.99), median(r[1])-median(r[0]))
	}
	if err := cost.end(ctx); err != nil {
		return err
	}
	low, high := bootstrap(direct, gated)
	fmt.Fprintf(m.o.out, "one message at a time  direct p50 %.2f p99 %.2f ms, gateways p50 %.2f p99 %.2f ms (%d pairs)\n",
		median(direct), quantile(direct, 0.99), median(gated), quantile(gated, 0.99), len(direct))
	fmt.Fprintf(m.o.out, "p50 more than direct  %+.2f ms, 95%% of the resamples between %+.2f and %+.2f; median of the paired differences %+.2f ms\n",
		median(gated)-median(direct), low, high, median(differences(direct, gated)))
	cost.report(m.o, "one at a time")
	m.o.goals = append(m.o.goals, goal{what: "federated message, p50 more than direct", have: median(gated) - median(direct), want: 1.5, atMost: true, unit: "ms"})
	return nil
}

// order says which of two systems is first in pair number i: each follows the
// other as often as itself.
func order(i int) [2]int {
	if i%2 == 0 {
		return [2]int{0, 1}
	}
	return [2]int{1, 0}
}

func quantile(v []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// differences are b's figures less a's, pair by pair.
func differences(a, b []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = b[i] - a[i]
	}
	return d
}

// bootstrap says how sure the difference of the medians of b and a is: where 95 %
// of those differences lie when the pairs are drawn anew.
func bootstrap(a, b []float64) (low, high float64) {
	const draws = 1000
	random := rand2.New(rand2.NewPCG(1, 2)) // the same figures give the same answer
	var all []float64
	x, y := make([]float64, len(a)), make([]float64, len(a))
	for range draws {
		for i := range x {
			k := random.IntN(len(a))
			x[i], y[i] = a[k], b[k]
		}
		all = append(all, median(y)-median(x))
	}
	return quantile(all, 0.025), quantile(all, 0.975)
}
