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

// localBack puts the questions to the local server that it did not hear.
func (p *peer) localBack(domains []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unheard := p.keep.unheard
	for of := range unheard.pairs {
		r, ok := replyWith(probeFor(of.from, of.to))
		if ok && !slices.Contains(domains, r.to) {
			continue
		}
		if ok && p.speaksFor(of.from) && !p.toLocal.offer(r) {
			return // at the next opportunity
		}
		unheard.remove(of)
	}
}

// askLater keeps what the local server was to be asked and did not hear.
func (a *Adapter) askLater(stanzas [][]byte) {
	now := a.cfg.Directory.Now()
	for _, stanza := range stanzas {
		top, err := frame.ParseTop(stanza)
		if err != nil || top.Kind != frame.Presence || string(top.Type) != "probe" {
			continue
		}
		if from := a.domainOfAddress(now, top.From); from.owner != nil {
			p := a.peerOf(from.owner)
			p.mu.Lock()
			p.keep.unheard.add(pair{bareOf(string(top.From)), bareOf(string(top.To))})
			p.mu.Unlock()
		}
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
