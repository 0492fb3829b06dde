package ygg

import (
	"fmt"
	"strings"
	"sync"
)

// links knows which peerings are up, from what core logs of them: that is all
// it tells of them when it happens. TestPeeringsAtRunTime would notice if the
// words changed.
type links struct {
	mu      sync.Mutex
	up      map[link]int
	changed chan struct{} // holds one token when something has changed
}

// link is a peering that is up. Its ends are in core's words.
type link struct {
	inbound       bool
	remote, local string
}

func newLinks() *links {
	return &links{up: map[link]int{}, changed: make(chan struct{}, 1)}
}

// logged takes a message of core, of which only the two about links matter.
func (l *links) logged(format string, args []any) {
	by := 0
	switch {
	case len(args) < 3:
		return
	case strings.HasPrefix(format, "Connected %s: %s, source %s"):
		by = 1
	case strings.HasPrefix(format, "Disconnected %s: %s, source %s"):
		by = -1
	default:
		return
	}
	k := link{inbound: fmt.Sprint(args[0]) == "inbound", remote: fmt.Sprint(args[1]), local: fmt.Sprint(args[2])}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.up[k] += by
	if l.up[k] == 0 {
		delete(l.up, k)
	}
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *links) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.up)
}

// list is a snapshot.
func (l *links) list() map[link]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ks := make(map[link]bool, len(l.up))
	for k := range l.up {
		ks[k] = true
	}
	return ks
}
