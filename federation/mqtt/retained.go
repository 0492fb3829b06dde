package mqtt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/store"
)

// Retained messages. The store has, for each peer and topic, a hash of what the peer
// was last told that the topic holds. Whenever something may have been missed (the
// broker or the link comes up, exports change, an item is given up) all that the broker
// retains is compared with that, once both are up, and the differences are sent: as
// messages that say that they are not new (flagState), and empty ones for topics that
// hold nothing any more.
//
// A peer says, when its link and its broker come up, what it imports, as a digest. When
// that has changed since, it is told everything anew.

const (
	// importsRow is where the digest of what a peer imports stands among its topics.
	importsRow = ""
	// What is found to differ goes out in pieces of such a size.
	pieceItems = 1000
	pieceBytes = 4 << 20
	// compareAgain is the pause after a comparison that failed.
	compareAgain = 5 * time.Second
	// compareOld is how often messages are compared with a broker of MQTT 3.1.1, which
	// does not say of what is published just now whether it is retained.
	compareOld = 30 * time.Second
	// changeEvery is for how many times Config.Settle a peer is told nothing anew again
	// because it has said that it imports something else.
	changeEvery = 5
)

// rememberRetained notes what a peer will have retained when it has a batch.
func (a *Adapter) rememberRetained(ctx context.Context, id federation.GridID, batch []*outgoing) error {
	last := map[string]*outgoing{}
	for _, o := range batch {
		if o.retained != nil {
			last[o.topic] = o
		}
	}
	if len(last) == 0 {
		return nil
	}
	return a.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		for topic, o := range last {
			var err error
			if o.clear {
				err = a.cfg.Store.CutMQTTRetained(tx, string(id), topic)
			} else {
				err = a.cfg.Store.PutMQTTRetained(tx, string(id), store.MQTTRetained{Topic: topic, Hash: o.retained})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// doubtRetained notes that it is not known what a topic holds at the peer.
func (a *Adapter) doubtRetained(ctx context.Context, id federation.GridID, topic string) error {
	return a.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		return a.cfg.Store.PutMQTTRetained(tx, string(id), store.MQTTRetained{Topic: topic})
	})
}

// comesBack is told that a retained message of a topic is given back. Where the topic is
// among what is being stored it may be noted only after this that the peer will have it.
func (p *peer) comesBack(topic string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.ContainsFunc(p.storing, func(o *outgoing) bool { return o.retained != nil && o.topic == topic }) {
		if p.returned == nil {
			p.returned = map[string]bool{}
		}
		p.returned[topic] = true
	}
}

// doubtReturned takes back what was noted of topics that were given back before that.
func (p *peer) doubtReturned(ctx context.Context, batch []*outgoing) {
	var topics []string
	p.mu.Lock()
	p.endedLocked(batch[len(batch)-1])
	for _, o := range batch {
		if p.returned[o.topic] {
			delete(p.returned, o.topic)
			topics = append(topics, o.topic)
		}
	}
	p.mu.Unlock()
	for _, topic := range topics {
		if err := p.a.doubtRetained(ctx, p.id, topic); err != nil {
			p.a.log.Warn("a retained message that a peer did not get counts as told", "peer", p.name(), "topic", topic, "err", err)
		}
	}
	if len(topics) > 0 {
		p.reconcile()
	}
}

func (a *Adapter) forgetRetained(ctx context.Context, id federation.GridID) error {
	return a.cfg.Store.Write(ctx, func(tx *sql.Tx) error { return store.ForgetMQTTRetained(tx, string(id)) })
}

// reconcile has retained messages compared soon.
func (p *peer) reconcile() { signal(p.comparing) }

// compare does so whenever it is asked for, until ctx is done.
func (p *peer) compare(ctx context.Context) {
	tick := time.NewTicker(compareOld)
	defer tick.Stop()
	var unread *session.Unread
	for {
		select {
		case <-p.comparing:
		case <-tick.C:
			if !p.a.v311() && unread == nil {
				continue
			}
		case <-ctx.Done():
			return
		}
		err := p.noteImports(ctx)
		rest, read := time.Duration(0), false
		if err == nil {
			read, err = p.compareOnce(ctx)
		}
		if read { // so that a peer cannot have it done without end
			rest = p.a.cfg.Settle
		}
		was := unread
		if unread = nil; errors.As(err, &unread) {
			if was == nil || was.Error() != unread.Error() {
				p.a.log.Warn("the broker does not show all that it retains; what it keeps back is not compared with what a peer has, and nothing is cleared there", "peer", p.name(), "err", err)
			}
		} else if err != nil && ctx.Err() == nil {
			p.a.log.Info("retained messages could not be compared with what a peer has; it is tried again", "peer", p.name(), "err", err)
			rest = compareAgain
			p.reconcile()
		}
		if !pause(ctx, rest) {
			return
		}
	}
}

// told is what a peer was told of one topic.
type told struct {
	hash []byte
	seen bool // the broker has the topic
}

// compareOnce sends what differs; read says whether the broker was asked for it.
func (p *peer) compareOnce(ctx context.Context) (read bool, err error) {
	r := p.rules()
	if r == nil || !p.a.connected.Load() || !p.isUp() {
		return false, nil // once they are: what is given up meanwhile would be so again and again
	}
	p.beginCompare()
	defer p.endCompare()
	rows, err := p.a.cfg.Store.MQTTRetained(ctx, string(p.id))
	if err != nil {
		return false, fmt.Errorf("read what the peer was told: %w", err)
	}
	had := make(map[string]*told, len(rows))
	for _, row := range rows {
		had[row.Topic] = &told{hash: row.Hash}
	}
	if had[importsRow] == nil {
		return false, nil // it has never said that it imports anything
	}
	delete(had, importsRow)
	out := &piece{p: p}
	if filters := p.a.rules.Load().retained(func(id federation.GridID) bool { return id == p.id }); len(filters) > 0 {
		read = true
		err := p.a.broker.Snapshot(ctx, filters, func(m *session.Message) error { return p.differs(ctx, r, m, had, out) })
		if unread := (*session.Unread)(nil); errors.As(err, &unread) {
			return read, errors.Join(err, out.flush(ctx))
		}
		if err != nil {
			return read, fmt.Errorf("read what the broker retains: %w", err)
		}
	}
	for name, t := range had {
		if t.seen {
			continue
		}
		// With QoS 1 at least: it is not said again.
		env := envelope{Topic: name, QoS: 1, Flags: flagRetain | flagState, Path: []string{string(p.a.cfg.Self)}}
		o := &outgoing{peer: p, topic: name, durable: true, state: true, clear: true, retained: env.contentHash()}
		if !p.a.pack(r, o, &env, &session.Message{}) {
			continue
		}
		if err := out.add(ctx, o); err != nil {
			return read, err
		}
	}
	return read, out.flush(ctx)
}

// beginCompare has topics noted that change from now on, and those whose last change is
// not on disk yet.
func (p *peer) beginCompare() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.touched = map[string]bool{}
	p.leftOut, p.leftBefore = map[string]bool{}, p.leftOut
	for _, o := range slices.Concat(p.storing, p.keep.items) {
		if o.retained != nil {
			p.touched[o.topic] = true
		}
	}
}

func (p *peer) endCompare() {
	p.mu.Lock()
	p.touched = nil
	p.mu.Unlock()
}

// differs looks at one message that the broker retains.
func (p *peer) differs(ctx context.Context, r *peerRules, m *session.Message, had map[string]*told, out *piece) error {
	if _, _, ok := replyTopic(m.Topic); ok {
		return nil
	}
	tr, user := traceOf(m)
	for _, e := range p.a.rules.Load().exportsOf(m.Topic) {
		if e.peer.id != p.id || !e.Retain || p.a.exportable(e, m.Topic, &tr) != "" {
			continue
		}
		m.Retain = true
		o := p.a.outgoingState(e, m, &tr, user)
		if o == nil {
			continue
		}
		t := had[o.topic]
		if t == nil {
			t = &told{}
			had[o.topic] = t
		}
		if again := t.seen; again || bytes.Equal(t.hash, o.retained) {
			t.seen = true
			continue
		}
		t.seen = true
		if err := out.add(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// outgoingState is outgoing for what is retained and was not published just now.
func (a *Adapter) outgoingState(e *export, m *session.Message, tr *trace, user []session.UserProperty) *outgoing {
	o := a.outgoing(e, m, tr, user, flagState)
	if o != nil {
		o.state = true
		o.item.ID = nil
	}
	return o
}

// piece are messages that differ from what the peer was told, on their way to it.
type piece struct {
	p     *peer
	items []*outgoing
	bytes int
}

func (c *piece) add(ctx context.Context, o *outgoing) error {
	c.items = append(c.items, o)
	c.bytes += len(o.item.Body)
	if len(c.items) < pieceItems && c.bytes < pieceBytes {
		return nil
	}
	return c.flush(ctx)
}

// flush sends what is still true after a moment, and returns when it is on disk. What
// was published a moment ago comes by itself.
func (c *piece) flush(ctx context.Context) error {
	if len(c.items) == 0 {
		return nil
	}
	if !pause(ctx, c.p.a.cfg.Settle) {
		return ctx.Err()
	}
	var mu sync.Mutex
	var failed error
	left, stored := len(c.items), make(chan struct{})
	for _, o := range c.items {
		o.done = func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			}
			if left--; left == 0 {
				close(stored)
			}
		}
		c.p.queue(o)
	}
	select {
	case <-stored:
	case <-ctx.Done(): // what waits for the disk then may have no end
		return ctx.Err()
	}
	c.items, c.bytes = nil, 0
	return failed
}

// GiveBack implements lane.Recipient for a message that a peer does not get. Its
// publisher cannot be told: MQTT has no word for it. It is counted, and stays among the
// dead letters; what was retained is compared again.
func (a *Adapter) GiveBack(ctx context.Context, owner *federation.Peer, it lane.Item, why error) error {
	if owner == nil {
		return nil
	}
	env, err := decodeEnvelope(it.Body)
	if err != nil {
		return nil // it was encoded before it was put
	}
	a.metrics.dropped.WithLabelValues(owner.Name, "out", reasonOf(why)).Inc()
	gone := owner.State == federation.StateBlocked || owner.State == federation.StateRemoved
	if gone || env.Kind != kindPublish || !env.has(flagRetain) {
		return nil // of one that is gone all is forgotten
	}
	p := a.peer(owner.ID)
	p.comesBack(env.Topic)
	if err := a.doubtRetained(ctx, owner.ID, env.Topic); err != nil {
		return fmt.Errorf("note that a peer did not get a retained message: %w", err)
	}
	p.reconcile()
	return nil
}

// tellImports has the peer told soon what is imported from it.
func (p *peer) tellImports() { signal(p.importing) }

// imports does so whenever it is asked for, until ctx is done.
func (p *peer) imports(ctx context.Context) {
	for {
		select {
		case <-p.importing:
		case <-ctx.Done():
			return
		}
		r, info := p.rules(), p.a.info.Load()
		if r == nil || info == nil || !p.isUp() || len(r.order) == 0 {
			continue
		}
		env := envelope{Kind: kindImports, Payload: r.digest(info.Life)}
		body, err := env.encode()
		if err == nil {
			err = p.a.eph.Send(ctx, p.id, lane.Eph, lane.Item{Kind: federation.MQTT, Body: body})
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		p.a.log.Debug("the peer could not be told what is imported from it; it is tried again", "peer", p.name(), "err", err)
		if pause(ctx, time.Second) {
			p.tellImports()
		}
	}
}

// digest names what is imported from a peer, and the life of the broker's session: a
// broker that has lost that has most likely lost what was imported, too.
func (p *peerRules) digest(life string) []byte {
	h := sha256.New()
	fmt.Fprintf(h, "%q\n", life)
	for _, m := range p.policy.Imports {
		fmt.Fprintf(h, "%q %q %d %v\n", m.Filter, m.As, m.QoS, m.Retain)
	}
	return h.Sum(nil)[:16]
}

// heardImports has what a peer says that it imports noted before the next comparison.
// That is where the work is: a peer may say it as often as it likes.
func (a *Adapter) heardImports(id federation.GridID, digest []byte) error {
	if len(digest) == 0 || len(digest) > sha256.Size {
		return fmt.Errorf("a digest of %d bytes", len(digest))
	}
	p := a.peer(id)
	p.mu.Lock()
	p.heard = digest
	p.mu.Unlock()
	p.reconcile()
	return nil
}

// noteImports makes all that the peer was told unknown where it has said since that it
// imports something else. Within changeEvery that is put off.
func (p *peer) noteImports(ctx context.Context) error {
	p.mu.Lock()
	digest := p.heard
	p.mu.Unlock()
	if digest == nil {
		return nil
	}
	row, err := p.a.cfg.Store.MQTTRetainedOf(ctx, string(p.id), importsRow)
	if err != nil || bytes.Equal(row.Hash, digest) {
		return err
	}
	if wait := time.Until(p.doubted.Add(changeEvery * p.a.cfg.Settle)); wait > 0 {
		time.AfterFunc(wait, p.reconcile)
		return nil
	}
	p.doubted = time.Now()
	return p.a.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		if err := store.DoubtMQTTRetained(tx, string(p.id)); err != nil {
			return err
		}
		return p.a.cfg.Store.PutMQTTRetained(tx, string(p.id), store.MQTTRetained{Topic: importsRow, Hash: digest})
	})
}
