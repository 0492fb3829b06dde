package xmpp

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// comebacks lets those who have something for a local server wait for it.
type comebacks struct {
	mu    sync.Mutex
	doors map[string]chan struct{} // by domain of this grid; closed when it is back
}

// LocalBack implements s2s.Handler: what waits for the server of an own domain is
// tried at once. The domain is normalised. It does not block.
func (a *Adapter) LocalBack(domain string) {
	back := a.domainsWith(domain)
	for _, d := range back {
		a.back.open(d)
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, p := range a.peers {
		p.localBack(back)
	}
}

// domainsWith are the domains whose server is that of an own domain.
func (a *Adapter) domainsWith(domain string) []string {
	for _, domains := range a.cfg.Servers {
		if slices.Contains(domains, domain) {
			return domains
		}
	}
	return []string{domain}
}

// localBack puts the questions to the local server that it did not hear, and has it
// told what else it has missed.
func (p *peer) localBack(domains []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &p.keep
	if k.in.owing > 0 {
		k.sayAt = time.Now()
		signal(p.wake)
	}
	for of := range k.unheard.pairs {
		r, ok := replyWith(probeFor(of.from, of.to))
		if ok && !slices.Contains(domains, r.to) {
			continue
		}
		if ok && p.speaksFor(of.from) && !p.toLocal.offer(r) {
			return // at the next opportunity
		}
		k.unheard.remove(of)
	}
}

// sayLater keeps what of the gateway's own presence the local server did not take.
func (p *peer) sayLater(stanzas [][]byte) {
	for _, stanza := range stanzas {
		top, err := frame.ParseTop(stanza)
		if err != nil || top.Kind != frame.Presence {
			continue
		}
		switch pr := readPresence(&top, stanza); pr.kind {
		case unavailable:
			p.oweIn(pr, stanza)
		case probe:
			p.mu.Lock()
			p.keep.unheard.add(pair{bareOf(pr.from), bareOf(pr.to)})
			p.mu.Unlock()
		}
	}
}

func (c *comebacks) open(domain string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if door := c.doors[domain]; door != nil {
		close(door)
		delete(c.doors, domain)
	}
}

// wait returns when the server of an own domain is back or the time has passed. It
// is false when ctx is done.
func (c *comebacks) wait(ctx context.Context, domain string, most time.Duration) bool {
	c.mu.Lock()
	if c.doors == nil {
		c.doors = map[string]chan struct{}{}
	}
	door := c.doors[domain]
	if door == nil {
		door = make(chan struct{})
		c.doors[domain] = door
	}
	c.mu.Unlock()
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-door:
	case <-timer.C:
	case <-ctx.Done():
		return false
	}
	return true
}
