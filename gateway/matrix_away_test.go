//go:build integration

package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

const (
	// matrixPromised is within what time everything is there after the link is up.
	matrixPromised = 5 * time.Second
	// awayEvents is how many are sent to a peer that is away.
	awayEvents = 50
	// After failures in a row Dendrite waits 2^failures seconds, times 0.8 to 1.4
	// (federationapi/statistics of v0.15.2). Outages last until it has failed this
	// often: it will not try again by itself for 51 seconds then.
	awayFailures = 6
	// Dendrite heeds one sign of life a minute of each server (FederationWakeups).
	// What is tested is not an outage that ends before that.
	awayLeast = 65 * time.Second
)

// away is how long a peer is away at least.
func away() time.Duration {
	if long() {
		return 5 * time.Minute
	}
	return awayLeast
}

// parlour is a room of two grids' users.
type parlour struct {
	*parish
	a, b       *peertest.Grid
	alice, bob *peertest.MatrixClient
	room       id.RoomID
}

func newParlour(t *testing.T) *parlour {
	t.Helper()
	p := &parlour{parish: newParish(t, "a", "b")}
	p.a, p.b, p.alice, p.bob = p.grids[0], p.grids[1], p.users[0], p.users[1]
	var err error
	if p.room, err = peertest.MatrixGathering(t.Context(), io.Discard, p.alice, p.bob); err != nil {
		t.Fatal(err)
	}
	return p
}

// post is numbered events from alice to bob.
type post struct {
	*parlour
	mark uint64
	ids  []id.EventID
}

func (p *parlour) post() *post { return &post{parlour: p, mark: p.bob.Mark()} }

// send sends n events.
func (m *post) send(t *testing.T, n int) {
	t.Helper()
	for range n {
		sent, err := m.alice.SendText(t.Context(), m.room, fmt.Sprintf("event %d", len(m.ids)))
		if err != nil {
			t.Fatal(err)
		}
		m.ids = append(m.ids, sent.EventID)
	}
}

// allArrive waits until bob has every event, and fails the test if that takes longer
// than late, or if there is one twice or out of order.
func (m *post) allArrive(t *testing.T, back time.Time, late time.Time) {
	t.Helper()
	ctx, cancel := context.WithDeadlineCause(t.Context(), late, fmt.Errorf("not there %v after the return", time.Until(late).Round(time.Second)))
	defer cancel()
	for i, e := range m.ids {
		if _, err := m.bob.AwaitEvent(ctx, m.room, e); err != nil {
			t.Fatalf("event %d of %d: %v", i, len(m.ids), err)
		}
	}
	took := time.Since(back)
	verdict := "within"
	if took > matrixPromised {
		verdict = "LATER THAN"
	}
	t.Logf("%d events; the last %v after the return, %s the promised %v", len(m.ids), took.Round(10*time.Millisecond), verdict, matrixPromised)
	m.mustBeOrderly(t)
}

// mustBeOrderly fails the test for what has arrived twice or out of order.
func (m *post) mustBeOrderly(t *testing.T) {
	t.Helper()
	numbers := map[id.EventID]int{}
	for i, e := range m.ids {
		numbers[e] = i
	}
	next := 0
	for _, e := range m.bob.Received() {
		n, ok := numbers[e.ID]
		if !ok || e.Seq <= m.mark || e.Type != event.EventMessage {
			continue
		}
		if n != next {
			t.Errorf("event %d arrived where %d should have", n, next)
		}
		next = n + 1
	}
	if next != len(m.ids) {
		t.Errorf("the last event that arrived is %d, want %d", next-1, len(m.ids)-1)
	}
}

// attempts are the times since then at which alice's homeserver has sent a transaction
// to b.grid.test. It must log at debug level.
func (p *parlour) attempts(t *testing.T, since time.Time) []time.Time {
	t.Helper()
	raw, err := os.ReadFile(p.a.Homeserver.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	var at []time.Time
	for _, m := range transactionLine.FindAllSubmatch(raw, -1) {
		when, err := time.Parse(time.RFC3339Nano, string(m[1]))
		if err != nil {
			t.Fatalf("the log of Dendrite is not what it was: %v", err)
		}
		if when.After(since) {
			at = append(at, when)
		}
	}
	return at
}

var transactionLine = regexp.MustCompile(`(?m)^time="([^"]+)".*Sending transaction .*b\.grid\.test`)

// backoff is how often the homeserver has failed among its attempts, and the earliest
// moment at which it will try by itself. An event that comes while an attempt fails
// has Dendrite try again at once, which it does not count.
func backoff(attempts []time.Time) (failures int, own time.Time) {
	for _, at := range attempts {
		if failures > 0 && at.Before(own) {
			continue
		}
		failures++
		own = at.Add(time.Duration(0.8 * math.Exp2(float64(failures)) * float64(time.Second)))
	}
	return failures, own
}

// untilBackoff waits until the homeserver has failed so often, and for so long, that
// only a wake can have it send soon. It returns the earliest moment at which it would
// try by itself.
func (p *parlour) untilBackoff(t *testing.T, since time.Time) time.Time {
	t.Helper()
	const window = 25 * time.Second // in which the peer is to come back
	for end := time.Now().Add(away() + 4*time.Minute); ; wait(t.Context(), 250*time.Millisecond) {
		failures, own := backoff(p.attempts(t, since))
		if failures >= awayFailures && time.Since(since) >= away() && time.Until(own) > window {
			t.Logf("away for %v; the homeserver has failed %d times and waits for %v or more", time.Since(since).Round(time.Second), failures, time.Until(own).Round(time.Second))
			return own
		}
		if time.Now().After(end) {
			t.Fatalf("the homeserver has failed %d times only", failures)
		}
	}
}

// TestMatrixPeerAway is what the wakes are for: what was sent while the peer was away is
// there in a moment when it is back, in order, and not after the backoff of the
// homeserver.
func TestMatrixPeerAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		leave, comeBack func(ctx context.Context, p *parlour) error
	}{
		"the far gateway": {
			func(_ context.Context, p *parlour) error { return p.b.Gateway.Stop() },
			func(ctx context.Context, p *parlour) error { return p.b.Gateway.Start(ctx) },
		},
		"the far homeserver": {
			func(_ context.Context, p *parlour) error { return p.b.Homeserver.Stop() },
			func(ctx context.Context, p *parlour) error { return p.b.Homeserver.Start(ctx) },
		},
		"the far gateway, killed": {
			func(_ context.Context, p *parlour) error { return p.b.Gateway.Kill() },
			func(ctx context.Context, p *parlour) error { return p.b.Gateway.Start(ctx) },
		},
		"the near gateway, killed": {
			func(_ context.Context, p *parlour) error { return p.a.Gateway.Kill() },
			func(ctx context.Context, p *parlour) error { return p.a.Gateway.Start(ctx) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newParlour(t)
			ctx := t.Context()
			p.settle(t)
			if err := c.leave(ctx, p); err != nil {
				t.Fatal(err)
			}
			gone, m := time.Now(), p.post()
			m.send(t, awayEvents)
			own := p.untilBackoff(t, gone)
			if err := c.comeBack(ctx, p); err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			p.up(t)
			t.Logf("the link is up %v after the start", time.Since(started).Round(10*time.Millisecond))
			up := time.Now()
			m.allArrive(t, up, own)
			for _, at := range p.attempts(t, started) {
				t.Logf("the homeserver sent %v after the link was up", at.Sub(up).Round(10*time.Millisecond))
			}
			p.lively(t)
		})
	}
}

// settle waits until nothing is under way any more from alice's homeserver.
func (p *parlour) settle(t *testing.T) {
	t.Helper()
	if err := peertest.MatrixExchange(t.Context(), p.room, p.alice, p.bob, io.Discard); err != nil {
		t.Fatal(err)
	}
}

// up waits for the link, both ways.
func (p *parlour) up(t *testing.T) {
	t.Helper()
	for _, side := range []struct {
		g    *peertest.Grid
		peer string
	}{{p.a, "b"}, {p.b, "a"}} {
		if _, err := side.g.AwaitUp(t.Context(), side.peer); err != nil {
			t.Fatal(err)
		}
	}
}

// lively wants that the two can talk.
func (p *parlour) lively(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := peertest.MatrixExchange(ctx, p.room, p.alice, p.bob, io.Discard); err != nil {
		t.Error(err)
	}
}

// TestMatrixCustody is for peers that are away more than they are there: the homeserver
// has given everything to its gateway, and need not be there when the peer is.
func TestMatrixCustody(t *testing.T) {
	t.Parallel()
	p := newParlour(t)
	ctx := t.Context()
	p.configure(t, p.a, "peers:\n  b: {matrix: {custody: true}}\n")
	p.lively(t)
	if err := p.b.Gateway.Stop(); err != nil {
		t.Fatal(err)
	}
	m := p.post()
	m.send(t, awayEvents/2)
	p.inCustody(t, m)
	if err := p.a.Gateway.Kill(); err != nil {
		t.Fatal(err)
	}
	m.send(t, awayEvents/2) // nobody takes them now
	if err := p.a.Gateway.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.inCustody(t, m)
	if err := p.a.Homeserver.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.b.Gateway.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.up(t)
	m.allArrive(t, time.Now(), time.Now().Add(patience))
	if err := p.a.Homeserver.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.lively(t)
}

// inCustody waits until alice's gateway has all of the post on disk.
func (p *parlour) inCustody(t *testing.T, m *post) {
	t.Helper()
	for end := time.Now().Add(2 * patience); ; wait(t.Context(), 200*time.Millisecond) {
		text := p.custody(t)
		missing := 0
		for i := range m.ids {
			if !strings.Contains(text, fmt.Sprintf(`"event %d"`, i)) {
				missing++
			}
		}
		if missing == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d events are not in custody", missing, len(m.ids))
		}
	}
}

// custody is the text of all transactions that wait for b.
func (p *parlour) custody(t *testing.T) string {
	t.Helper()
	var list admin.Outbox
	p.yggate(t, p.a, &list, "outbox", "list", "b", "--json", "--limit", "1000")
	var all strings.Builder
	for _, it := range list.Items {
		var item admin.Item
		p.yggate(t, p.a, &item, "outbox", "show", "b", it.Name, "--body", "--json")
		all.WriteString(item.Body)
	}
	return all.String()
}

// yggate runs a command that prints JSON.
func (p *parish) yggate(t *testing.T, g *peertest.Grid, into any, args ...string) {
	t.Helper()
	out, err := g.Gateway.Run(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("yggate %s: %v", strings.Join(args, " "), err)
	}
}

// configure adds to a gateway's configuration, as it was at first, and has it read.
func (p *parish) configure(t *testing.T, g *peertest.Grid, yaml string) {
	t.Helper()
	first := g.Gateway.Config + ".first"
	raw, err := os.ReadFile(first)
	if os.IsNotExist(err) {
		if raw, err = os.ReadFile(g.Gateway.Config); err == nil {
			err = os.WriteFile(first, raw, 0o600)
		}
	}
	if err == nil {
		err = os.WriteFile(g.Gateway.Config, append(raw, "\n"+yaml...), 0o600)
	}
	if err == nil {
		_, err = g.Gateway.Run(t.Context(), "reload")
	}
	if err != nil {
		t.Fatal(err)
	}
}
