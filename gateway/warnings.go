package gateway

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/store"
)

const (
	// An outbox that is fuller than this, in percent of its quota, is warned of.
	fullOutbox = 80
	// longWait is how old what waits may become before it is warned of.
	longWait = 24 * time.Hour
)

// warn adds to a status what the operator should look at.
func (g *gateway) warn(ctx context.Context, st *admin.Status) {
	add := func(format string, args ...any) { st.Warnings = append(st.Warnings, fmt.Sprintf(format, args...)) }
	if s := st.Store; s.State != string(store.HealthOK) {
		add("the store is %s, and nothing is acknowledged until it takes writes again: %s", s.State, s.Fix)
	}
	warnOfMQTT(st.MQTT, add)
	for _, p := range st.Peers {
		for _, l := range p.Lanes {
			warnOfLane(l, add)
		}
	}
	var err error
	if st.Untold, err = g.untold(ctx); err != nil {
		add("%v", err)
	}
	for _, u := range st.Untold {
		add("messages to %s were given up, and since %s not all of their senders could be told: your server must take the errors (`yggate outbox list --dead %s`)",
			u.Peer, u.Since.Local().Format("2006-01-02 15:04"), u.Peer)
	}
}

// warnOfLane warns of what is much or old.
func warnOfLane(l admin.Lane, add func(format string, args ...any)) {
	if over(l.Items, l.MaxItems) || over(l.Bytes, l.MaxBytes) {
		add("the lane %s to %s is nearly full (%d of %d items, %d of %d bytes); beyond that senders get an error: `yggate outbox list %s`, and limits in the configuration",
			l.Lane, l.Peer, l.Items, l.MaxItems, l.Bytes, l.MaxBytes, l.Peer)
	}
	if l.Oldest.IsZero() || time.Since(l.Oldest) < longWait {
		return
	}
	if l.Dir == "in" {
		add("what came from %s on the lane %s has waited for your server for over a day: `yggate status` shows the streams with it", l.Peer, l.Lane)
		return
	}
	add("messages have waited for %s on the lane %s for over a day: `yggate outbox list %s`", l.Peer, l.Lane, l.Peer)
}

// over says whether a quota is used up but for a little. Zero is no quota.
func over(used, quota int64) bool {
	return quota > 0 && float64(used)*100 > float64(quota)*fullOutbox
}

// storeStatus tells how the database is.
func (g *gateway) storeStatus() admin.Store {
	h := g.store.Health()
	out := admin.Store{State: string(h.State), Since: h.Since, Error: h.Err, Checking: h.Checking, Fix: storeFix(h.State, g.conf.Load().Database())}
	out.Bytes, out.WALBytes = g.databaseBytes()
	return out
}

// databaseBytes returns the sizes of the database and of its write-ahead log. A
// file that cannot be looked at counts nothing; Health tells what is wrong.
func (g *gateway) databaseBytes() (file, wal int64) {
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	path := g.conf.Load().Database()
	return size(path), size(path + "-wal")
}

// storeFix says what to do about a state of the database.
func storeFix(state store.HealthState, path string) string {
	switch state {
	case store.HealthFull:
		return "make room on the disk of " + path + "; it then goes on by itself"
	case store.HealthLocked:
		return "end what else has " + path + " open, such as sqlite3 or a backup; it then goes on by itself"
	case store.HealthDamaged:
		return "stop the gateway and restore " + path + " from the backup, or save what can be read as docs/delivery.md has it"
	case store.HealthFailing:
		return "look whether the disk of " + path + " fails or is mounted read-only; once it takes writes it goes on by itself"
	}
	return ""
}
