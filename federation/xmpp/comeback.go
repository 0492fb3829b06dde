package xmpp

import (
	"context"
	"slices"
	"sync"
	"time"
)

// comebacks lets those who have something for a local server wait for it.
type comebacks struct {
	mu    sync.Mutex
	doors map[string]chan struct{} // by domain of this grid; closed when it is back
}

// LocalBack implements s2s.Handler: what waits for the server of an own domain is
// tried at once. The domain is normalised. It does not block.
func (a *Adapter) LocalBack(domain string) {
	for _, d := range a.domainsWith(domain) {
		a.back.open(d)
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
