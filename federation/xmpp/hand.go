package xmpp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/xmpp/frame"
)

const (
	// A run is what the local server is handed in one go.
	runStanzas = 64
	runBytes   = 64 << 10
	// handFor is how long Hand keeps trying a local server that takes nothing,
	// before it leaves the next attempt to the lane. While it tries, it begins at
	// once when the server is back.
	handFor = 30 * time.Second
)

// Hand implements lane.Recipient: it checks messages from a peer by the policy of
// now and gives them to the local server. What policy refuses, and what the server
// will never take (see verdict), is answered to its sender over lane.Chat.
func (a *Adapter) Hand(ctx context.Context, from *federation.Peer, items []lane.Item, done func(settled int, err error)) {
	done(a.hand(ctx, from, items))
}

func (a *Adapter) hand(ctx context.Context, from *federation.Peer, items []lane.Item) (settled int, err error) {
	p := a.peerOf(from)
	until := time.Now().Add(handFor)
	for settled < len(items) {
		now := a.cfg.Directory.Now()
		if owner := now.Peer(from.ID); owner != nil && owner.State == federation.StatePaused {
			return settled, fmt.Errorf("hand to the local server: %w", federation.ErrPeerNotActive)
		}
		r, rule, no := a.runOf(now, from, items[settled:])
		if no != nil {
			p.refused(from, rule, r.incoming, no)
			if err := p.answer(ctx, from, &items[settled], newCause(no.Code, no.Text)); err != nil {
				return settled, err
			}
			settled++
			continue
		}
		n, err := p.handRun(ctx, from, r)
		settled += n
		if err == nil {
			continue
		}
		if n > 0 {
			until = time.Now().Add(handFor)
		}
		if !time.Now().Before(until) || !a.back.wait(ctx, r.addressee, localPause) {
			return settled, fmt.Errorf("hand to the local server of %s: %w", r.addressee, err)
		}
	}
	return settled, nil
}

// run is items for one stream with the local server.
type run struct {
	incoming // of the first item
	items    []lane.Item
	tops     []frame.Top
}

// runOf checks items from the first, up to one that does not belong on the same
// stream or is refused. If that is the first, why is said.
func (a *Adapter) runOf(now *federation.Snapshot, from *federation.Peer, items []lane.Item) (r run, rule string, no *lane.Refusal) {
	size := 0
	for i := range items {
		in, rule, no := a.admit(now, from, items[i].Body)
		if i == 0 {
			if r.incoming = in; no != nil {
				return r, rule, no
			}
		}
		size += len(items[i].Body)
		if no != nil || i > 0 && size > runBytes || i == runStanzas || in.sender != r.sender || in.addressee != r.addressee {
			break
		}
		r.items, r.tops = items[:i+1], append(r.tops, in.top)
	}
	return r, "", nil
}

// handRun gives a run to the local server, one at a time of the same stream, and
// says how many of its items are settled.
func (p *peer) handRun(ctx context.Context, from *federation.Peer, r run) (settled int, err error) {
	t := p.trialOf(pair{r.sender, r.addressee})
	if err := t.begin(ctx); err != nil {
		return 0, err
	}
	defer t.end()
	now := time.Now()
	stanzas := make([][]byte, t.most(len(r.items)))
	for i := range stanzas {
		stanzas[i] = p.a.stamped(&r.items[i], &r.tops[i], r.sender, now)
	}
	n, err := p.a.local.Hand(ctx, r.sender, r.addressee, stanzas...)
	p.gave(from, r, n)
	t.passed(n)
	switch {
	case ctx.Err() != nil:
		return n, ctx.Err()
	case err == nil && n < len(stanzas):
		err = errors.New("it took only some")
	case err == nil:
		return n, nil
	}
	p.log(from).Debug("the local server does not take messages", "domain", r.addressee, "waiting", len(r.items)-n, "err", err)
	head := &r.items[n]
	c, never := t.failed(head, len(stanzas)-n, lifeOf(head, from), r.addressee, err)
	if !never {
		return n, err
	}
	p.log(from).Warn("a message that the local server will not take goes back to its sender", "domain", r.addressee, "condition", c.condition, "err", err)
	if err := p.answer(ctx, from, head, c); err != nil {
		return n, err
	}
	t.singly = max(t.singly-1, 0)
	return n + 1, nil
}

// lifeOf is until when the local server is tried with an item, by the clock of the
// peer's gateway.
func lifeOf(it *lane.Item, from *federation.Peer) time.Time {
	if !it.Expires.IsZero() {
		return it.Expires
	}
	return it.At.Add(ttlOf(from))
}

// ttlOf is how long a message to or from a peer may wait.
func ttlOf(p *federation.Peer) time.Duration {
	if p != nil && p.Policy.Limits.TTL > 0 {
		return p.Policy.Limits.TTL
	}
	return federation.DefaultLimits().TTL
}

// gave accounts for the first n items of a run, which the local server has.
func (p *peer) gave(from *federation.Peer, r run, n int) {
	if n == 0 {
		return
	}
	count := p.counters(from)
	for i := range n {
		top := &r.tops[i]
		count.in[top.Kind].Inc()
		if top.Kind == frame.Presence { // not from a gateway such as this, but no harm
			p.noteIn(readPresence(top, r.items[i].Body), r.items[i].Body)
		}
	}
	p.handed.add(pair{r.sender, r.addressee}, r.items[:n])
}

// answer tells the sender of an item why it was not delivered, and returns when
// that is on disk, or nobody can be told or waits to be.
func (p *peer) answer(ctx context.Context, from *federation.Peer, it *lane.Item, c cause) error {
	top, err := frame.ParseTop(it.Body)
	if err != nil || !worthAnswer(&top, it.Body) {
		return nil
	}
	body, ok := frame.ErrorReply(it.Body, c.condition, c.kind, clip(c.text), "")
	if !ok {
		return nil
	}
	r, ok := replyWith(body)
	if !ok {
		return nil
	}
	stored := make(chan error, 1)
	err = p.a.outbox.Put(ctx, p.id, lane.Chat, func(err error) { stored <- err }, lane.Item{
		ID: answerID(it.Source), Kind: federation.XMPP, Conv: convOf(r.from, r.to), Body: body,
	})
	if err == nil {
		select {
		case err = <-stored:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if errors.Is(err, federation.ErrPeerNotActive) {
		p.lost("answer to a grid that is no peer any more", 1)
		return nil
	}
	if err != nil {
		return fmt.Errorf("answer the sender: %w", err)
	}
	p.a.metrics.bounced.WithLabelValues(p.label(from), "in", c.condition).Inc()
	return nil
}

// answerID names the answer to an item, for good: should this life of the gateway
// end before the item is settled, the next gives the same answer once more, and the
// peer drops it.
func answerID(source string) []byte {
	const prefix = "re:"
	if source == "" {
		return nil
	}
	if len(prefix)+len(source) > lane.MaxID {
		sum := sha256.Sum256([]byte(source))
		source = hex.EncodeToString(sum[:16])
	}
	return []byte(prefix + source)
}
