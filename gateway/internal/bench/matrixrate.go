package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/event"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// sendersInRoom send into each room at the same time.
const sendersInRoom = 4

// rate sends from many senders into several rooms, as fast as the homeserver takes
// it, first on one system and then on the other.
func (m *matrixBench) rate(ctx context.Context) error {
	cost := &matrixCost{gatewayCost: gatewayCost{gateways: m.gateways}}
	if err := cost.begin(ctx); err != nil {
		return err
	}
	rates := map[*homes][]float64{}
	var ratios []float64
	systems := [2]*homes{m.direct, m.gated}
	const blocks = 4 // of a round
	for round := range m.o.rounds {
		var r [2][]float64
		for i := range blocks {
			for _, which := range order(i) {
				perSecond, err := systems[which].load(ctx, m.o.events, i/2%2)
				if err != nil {
					return fmt.Errorf("rate, %s: %w", systems[which].name, err)
				}
				r[which] = append(r[which], perSecond)
			}
			ratios = append(ratios, r[1][i]/r[0][i])
		}
		for which, h := range systems {
			rates[h] = append(rates[h], r[which]...)
		}
		fmt.Fprintf(m.o.out, "round %d  %d senders, %d rooms, %d blocks of %d events  direct %.0f/s  gateways %.0f/s\n",
			round+1, loadRooms*sendersInRoom, loadRooms, blocks, m.o.events, median(r[0]), median(r[1]))
	}
	if err := cost.end(ctx); err != nil {
		return err
	}
	fmt.Fprintf(m.o.out, "events/s  direct %.0f (%.0f to %.0f), gateways %.0f (%.0f to %.0f); ratio of a block and the one beside it: median %.2f, quartiles %.2f and %.2f of %d\n",
		median(rates[m.direct]), quantile(rates[m.direct], 0), quantile(rates[m.direct], 1),
		median(rates[m.gated]), quantile(rates[m.gated], 0), quantile(rates[m.gated], 1),
		median(ratios), quantile(ratios, 0.25), quantile(ratios, 0.75), len(ratios))
	cost.report(m.o, "under load")
	m.o.goals = append(m.o.goals, goal{what: "events/s against direct", have: median(ratios), want: 0.95, unit: "x"})
	return nil
}

// load sends events and waits until the other user has them all from /sync, each
// once. It returns how many there were a second.
func (h *homes) load(ctx context.Context, events, sender int) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	from, to := h.users[sender], h.users[1-sender]
	prefix := "load " + rand.Text() + " "
	seen := make([]bool, events)
	left, twice := events, -1
	mark := to.Mark()
	begun := time.Now()
	parts, ctx := errgroup.WithContext(ctx)
	var last time.Time
	parts.Go(func() error {
		e, err := to.AwaitAfter(ctx, mark, fmt.Sprintf("%d messages", events), func(e *peertest.MatrixEvent) bool {
			n, ours := number(e, prefix, events)
			if !ours {
				return false
			}
			if seen[n] {
				twice = n
				return true
			}
			seen[n] = true
			left--
			return left == 0
		})
		last = e.Time
		return err
	})
	var next atomic.Int64
	for i := range loadRooms * sendersInRoom {
		room := h.rooms[i%loadRooms]
		parts.Go(func() error {
			for n := next.Add(1) - 1; n < int64(events); n = next.Add(1) - 1 {
				if _, err := from.SendText(ctx, room, prefix+strconv.FormatInt(n, 10)); err != nil {
					return fmt.Errorf("send as %s: %w", from.UserID, err)
				}
			}
			return nil
		})
	}
	if err := parts.Wait(); err != nil {
		return 0, fmt.Errorf("%d events are missing: %w", left, err)
	}
	if twice >= 0 {
		return 0, fmt.Errorf("message %d came twice", twice)
	}
	return float64(events) / last.Sub(begun).Seconds(), nil
}

// number is which message of a load an event is.
func number(e *peertest.MatrixEvent, prefix string, events int) (n int, ours bool) {
	content, ok := e.Content.Parsed.(*event.MessageEventContent)
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutPrefix(content.Body, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	return n, err == nil && n >= 0 && n < events
}
