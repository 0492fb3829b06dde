package ygg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/core"
)

const (
	// watchEvery is how often the node looks after itself while something is
	// amiss or new, watchQuiet otherwise: each look wakes the process.
	watchEvery = 250 * time.Millisecond
	watchQuiet = time.Second
	// eager is for how long after the last peering was lost the others are
	// dialled every watchEvery; then only every retrySlow, which is kinder to
	// a peer that refuses us.
	eager     = 30 * time.Second
	retrySlow = 2 * time.Second
	// replaceTime bounds the wait for core to let go of a removed peering.
	replaceTime = 10 * time.Second
)

// open starts what the configuration lists.
func (n *Node) open() error {
	for _, uri := range n.cfg.Listen {
		u, err := parseListen(uri)
		if err != nil {
			return err
		}
		if _, err := n.core.Listen(u, ""); err != nil {
			return fmt.Errorf("listen %q: %w", redact(uri), err)
		}
	}
	n.peerMu.Lock()
	defer n.peerMu.Unlock()
	n.opened = true
	for _, u := range n.peers {
		if err := n.core.AddPeer(u, ""); err != nil {
			return fmt.Errorf("add peer %q: %w", redact(u.String()), err)
		}
	}
	return nil
}

// AddPeer keeps this node connected to a peering URI from now on. Before Run it
// is an addition to the configuration.
func (n *Node) AddPeer(uri string) error {
	u, err := parsePeer(uri)
	if err != nil {
		return fmt.Errorf("add %w", err)
	}
	id := peeringID(u)
	n.peerMu.Lock()
	defer n.peerMu.Unlock()
	if n.peers[id] != nil {
		return fmt.Errorf("add peer %q: already there; remove it first to change its options", redact(uri))
	}
	if n.opened {
		if err := n.addToCore(u); err != nil {
			return fmt.Errorf("add peer %q: %w", redact(uri), err)
		}
	}
	n.peers[id] = u
	return nil
}

// addToCore adds a peering. One that was removed a moment ago is still known
// to core until its goroutine has ended.
func (n *Node) addToCore(u *url.URL) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(replaceTime)
	defer late.Stop()
	for {
		select {
		case <-n.ended:
			return errNotRunning
		default:
		}
		err := n.core.AddPeer(u, "")
		if !errors.Is(err, core.ErrLinkAlreadyConfigured) {
			return err
		}
		select {
		case <-tick.C:
		case <-late.C:
			return fmt.Errorf("%w: its removal is not through after %v", err, replaceTime)
		}
	}
}

// RemovePeer gives up a peering and closes it. Options in uri do not matter.
func (n *Node) RemovePeer(uri string) error {
	u, err := parsePeer(uri)
	if err != nil {
		return fmt.Errorf("remove %w", err)
	}
	id := peeringID(u)
	n.peerMu.Lock()
	defer n.peerMu.Unlock()
	if n.peers[id] == nil {
		return fmt.Errorf("remove peer %q: no such peering; status lists them", redact(uri))
	}
	delete(n.peers, id)
	if !n.opened {
		return nil
	}
	// Whatever closing the connection says, the peering is given up.
	if err := n.core.RemovePeer(u, ""); err != nil && !errors.Is(err, core.ErrLinkNotConfigured) {
		n.log.Debug("close removed peering", "peer", redact(uri), "err", err)
	}
	return nil
}

// RetryPeersNow dials at once every peering that waits out a backoff.
func (n *Node) RetryPeersNow() {
	if n.running() {
		n.core.RetryPeersNow()
	}
}

// running says that the core is there to be used.
func (n *Node) running() bool {
	select {
	case <-n.ended:
		return false
	case <-n.ready:
		return true
	default:
		return false
	}
}

// peeredWithin says whether a peering came up in the last d.
func (n *Node) peeredWithin(d time.Duration) bool {
	return within(d, n.peered.Load(), time.Now().UnixNano())
}

// watch tells of peerings that come and go, redials while none is up, and keeps
// the paths to nodes with streams alive.
func (n *Node) watch(ctx context.Context) error {
	w := watcher{node: n, lost: time.Now()}
	tick := time.NewTimer(watchEvery)
	defer tick.Stop()
	var (
		quiet bool      // the next look is a long way off
		until time.Time // an unknown node may be about to come until then
	)
	hurry := func() {
		if quiet {
			quiet = false
			tick.Reset(watchEvery)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.links.changed:
			w.report()
			hurry()
		case <-n.stirred:
			until = time.Now().Add(fastTime)
			hurry()
		case now := <-tick.C:
			w.redial(now)
			if err := errors.Join(n.keepPaths(), n.nudge()); err != nil && ctx.Err() == nil {
				return fmt.Errorf("probe: %w", err)
			}
			n.table.sweep(now)
			quiet = n.links.count() > 0 && !n.peeredWithin(fastTime) && !now.Before(until) && !n.sought.any(now)
			if quiet {
				tick.Reset(watchQuiet)
			} else {
				tick.Reset(watchEvery)
			}
		}
	}
}

// keepPaths probes nodes with streams that have been silent, since ironwood
// mends a path or session only when it is used, and TCP alone uses it too
// rarely; and nodes that have not said yet when they started.
func (n *Node) keepPaths() error {
	for _, r := range n.table.inUse() {
		if r.heardWithin(keepProbe) && r.introduced() {
			continue
		}
		if !r.found.Load() && !n.lookForWay(r) {
			n.bridge.seek(r.key)
			continue
		}
		if err := n.bridge.probe(r, keepProbe); err != nil {
			return err
		}
	}
	return nil
}

// watcher compares the peerings of one moment with those of the next.
type watcher struct {
	node    *Node
	up      map[link]bool // at the last report
	lost    time.Time     // when the last of them went down, zero while one is up
	retried time.Time
}

// report logs what has changed since the last report and tells the owner.
func (w *watcher) report() {
	was := w.up
	w.up = w.node.links.list()
	for l := range w.up {
		if !was[l] {
			w.node.peered.Store(time.Now().UnixNano())
			select {
			case w.node.joined <- struct{}{}:
			default:
			}
			w.node.log.Info("peering up", "remote", l.remote, "inbound", l.inbound)
		}
	}
	for l := range was {
		if !w.up[l] {
			w.node.log.Info("peering down", "remote", l.remote, "inbound", l.inbound)
		}
	}
	if w.node.cfg.OnPeering != nil {
		w.node.cfg.OnPeering()
	}
}

// redial spares peerings the rest of their backoff while none is up.
func (w *watcher) redial(now time.Time) {
	switch {
	case w.node.links.count() > 0:
		w.lost = time.Time{}
		return
	case w.lost.IsZero():
		w.lost = now
	}
	if now.Sub(w.lost) < eager || now.Sub(w.retried) >= retrySlow {
		w.retried = now
		w.node.core.RetryPeersNow()
	}
}
