package session

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// subscriptions is what the session is to be subscribed to. The session's lock
// holds it.
type subscriptions struct {
	wanted  map[string]Subscription // nil until it was set
	known   map[string]bool         // filters that the broker may have a subscription of
	unsure  map[string]*request     // of those, what was last asked about them and has no answer
	refused map[string]refusal
	pending map[uint16]*request // by packet id, of this connection
}

// refusal is the broker's no to a subscription.
type refusal struct {
	err error
	at  time.Time // when it was last said
}

// connSubs is what of it is of a connection.
type connSubs struct {
	asked  map[string]Subscription // SUBSCRIBE was sent, or is about to be
	resume bool                    // the broker kept the session
	open   int                     // SUBSCRIBEs without answer, also those that are about to be sent
	told   bool                    // that none is open
}

// request is a SUBSCRIBE or UNSUBSCRIBE without answer.
type request struct {
	subs    []Subscription
	filters []string // to UNSUBSCRIBE
	at      time.Time
}

// filtersAtOnce is how many filters one packet names.
const filtersAtOnce = 64

func (b *subscriptions) load(st *State) {
	*b = subscriptions{known: map[string]bool{}, unsure: map[string]*request{}, refused: map[string]refusal{}, pending: map[uint16]*request{}}
	for _, f := range st.Filters {
		b.known[f] = true
	}
}

// lost is for a broker that has lost the session.
func (b *subscriptions) lost(d *diary) {
	for f := range b.known {
		b.cut(d, f)
	}
}

// cut is for a filter that the broker has no subscription of.
func (b *subscriptions) cut(d *diary, filter string) {
	delete(b.known, filter)
	delete(b.unsure, filter)
	d.lazily(Change{Op: CutFilter, Filter: filter})
}

// CheckFilter says what is wrong with a topic filter (MQTT 5 §4.7, §4.8.2).
func CheckFilter(filter string) error {
	if err := checkString(filter); err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(filter, "$share/"); ok {
		name, of, found := strings.Cut(rest, "/")
		if !found || name == "" || strings.ContainsAny(name, "+#") {
			return errors.New("a shared subscription is $share/NAME/FILTER")
		}
		filter = of
	}
	if filter == "" {
		return errors.New("empty")
	}
	levels := strings.Split(filter, "/")
	for i, level := range levels {
		switch {
		case level == "#" && i < len(levels)-1:
			return errors.New("# must be the last level")
		case level != "#" && level != "+" && strings.ContainsAny(level, "+#"):
			return errors.New("+ and # must stand alone in their level")
		}
	}
	return nil
}

func (s *Subscription) check() error {
	if err := CheckFilter(s.Filter); err != nil {
		return fmt.Errorf("topic filter %q: %w", s.Filter, err)
	}
	if s.QoS > 2 || s.RetainHandling > 2 {
		return fmt.Errorf("topic filter %q: QoS %d, retain handling %d: both are 0, 1 or 2", s.Filter, s.QoS, s.RetainHandling)
	}
	if s.NoLocal && strings.HasPrefix(s.Filter, "$share/") {
		return fmt.Errorf("topic filter %q: a shared subscription cannot be no-local", s.Filter)
	}
	return nil
}

// SetSubscriptions sets what the session is to be subscribed to, in place of what
// was set before, also by an earlier life of the process. It takes effect at once or with the next connection, and lasts.
// It fails for a filter that no broker would take, and then changes nothing.
func (s *Session) SetSubscriptions(subs []Subscription) error {
	wanted := make(map[string]Subscription, len(subs))
	for _, sub := range subs {
		if err := sub.check(); err != nil {
			return fmt.Errorf("subscribe: %w", err)
		}
		wanted[sub.Filter] = sub
	}
	s.mu.Lock()
	defer s.unlock()
	s.subs.wanted = wanted
	for f := range s.subs.refused {
		if _, ok := wanted[f]; !ok {
			delete(s.subs.refused, f)
		}
	}
	if s.conn != nil {
		s.ask(s.conn)
	}
	return nil
}

// syncSubscriptions is for a new connection.
func (s *Session) syncSubscriptions(c *conn) {
	c.subs = connSubs{asked: map[string]Subscription{}, resume: s.info.Resumed}
	clear(s.subs.pending)
	s.ask(c)
}

// ask brings the broker's subscriptions in line with what is wanted. With MQTT 5
// each connection subscribes anew, which a broker that was restored from an older
// state may need; with 3.1.1 that would have it send all retained messages again, and is
// done for what has no answer. What is not wanted any more goes last: a filter that takes
// the place of another is there first, and nothing is missed in between.
func (s *Session) ask(c *conn) {
	if s.subs.wanted == nil {
		return // what an earlier life subscribed to stays until it is known what is wanted
	}
	var add []Subscription
	for _, f := range slices.Sorted(maps.Keys(s.subs.wanted)) {
		sub := s.subs.wanted[f]
		if asked, ok := c.subs.asked[f]; ok && asked == sub {
			continue
		}
		c.subs.asked[f] = sub
		switch {
		case shared(f) && !s.info.Shared:
			// One that does not know them would take it for a subscription of "$share".
			s.refuse(sub, &Refused{What: "subscribe", Code: codeShared})
		case c.enc.version == V311 && c.subs.resume && s.subs.known[f] && s.subs.unsure[f] == nil:
		default:
			add = append(add, sub)
		}
	}
	for some := range slices.Chunk(add, filtersAtOnce) {
		s.subscribe(c, some)
	}
	var drop []string
	for f := range s.subs.known {
		if _, ok := s.subs.wanted[f]; !ok {
			drop = append(drop, f)
		}
	}
	slices.Sort(drop)
	for some := range slices.Chunk(drop, filtersAtOnce) {
		s.unsubscribe(c, some)
	}
	s.stand(c, false)
}

// shared says whether a filter is of a shared subscription.
func shared(filter string) bool { return strings.HasPrefix(filter, "$share/") }

// askAgain asks for what the broker refused a while ago.
func (s *Session) askAgain(c *conn, now time.Time) {
	s.mu.Lock()
	defer s.unlock()
	due := false
	for f, r := range s.subs.refused {
		if now.Sub(r.at) >= s.cfg.AskAgain {
			r.at = now
			s.subs.refused[f] = r
			delete(c.subs.asked, f)
			due = true
		}
	}
	if due && s.conn == c {
		s.ask(c)
	}
}

// stand tells the handler when no subscription is without answer any more; news says
// that one has just been answered.
func (s *Session) stand(c *conn, news bool) {
	if c.subs.open > 0 || c.subs.told && !news {
		return
	}
	c.subs.told = true
	refused := make(map[string]error, len(s.subs.refused))
	for f, r := range s.subs.refused {
		refused[f] = r.err
	}
	s.inbox.put(event{subs: &subscribed{refused}})
}

// subscribe sends SUBSCRIBE, once it is on disk that the broker may have it.
func (s *Session) subscribe(c *conn, subs []Subscription) {
	var changes []Change
	r := &request{}
	for _, sub := range subs {
		if !s.subs.known[sub.Filter] {
			s.subs.known[sub.Filter] = true
			changes = append(changes, Change{Op: AddFilter, Filter: sub.Filter})
		}
		s.subs.unsure[sub.Filter] = r // also when the connection ends before the answer
	}
	c.subs.open++
	s.diary.add(func() {
		s.mu.Lock()
		defer s.unlock()
		still := slices.DeleteFunc(slices.Clone(subs), func(sub Subscription) bool { return c.subs.asked[sub.Filter] != sub })
		switch {
		case s.conn != c:
		case len(still) > 0:
			r.subs = still
			s.request(c, r)
		default:
			c.subs.open--
			s.stand(c, true)
		}
	}, changes...)
}

// unsubscribe sends UNSUBSCRIBE, behind the SUBSCRIBEs that wait for the disk.
func (s *Session) unsubscribe(c *conn, filters []string) {
	for _, f := range filters {
		delete(c.subs.asked, f)
	}
	s.diary.add(func() {
		s.mu.Lock()
		defer s.unlock()
		still := slices.DeleteFunc(slices.Clone(filters), func(f string) bool { _, again := c.subs.asked[f]; return again })
		if s.conn == c && len(still) > 0 {
			r := &request{filters: still}
			for _, f := range still {
				s.subs.unsure[f] = r
			}
			s.request(c, r)
		}
	})
}

func (s *Session) request(c *conn, r *request) {
	id := s.out.take(1, s.subs.pending)
	if id == 0 {
		s.calls = append(s.calls, func() { go c.leave(codeUnspecified, errors.New("no packet id is free for a subscription")) })
		return
	}
	r.at = time.Now()
	s.subs.pending[id] = r
	err := c.send(func(e encoder) error {
		if r.filters != nil {
			return e.unsubscribe(id, r.filters)
		}
		return e.subscribe(id, r.subs)
	})
	if err != nil { // which takes a fault in the codec
		s.calls = append(s.calls, func() { go c.leave(codeUnspecified, err) })
	}
}

// subscribed takes SUBACK and UNSUBACK.
func (s *Session) subscribed(c *conn, p *packet) error {
	r := s.subs.pending[p.id]
	if r == nil || (p.kind == typeUnsuback) != (r.filters != nil) {
		return breach(codeProtocol, "packet of type %d for packet id %d, which nothing was asked with", p.kind, p.id)
	}
	delete(s.subs.pending, p.id)
	if p.kind == typeUnsuback {
		for _, f := range r.filters {
			if _, again := c.subs.asked[f]; !again && s.subs.known[f] {
				s.subs.cut(s.diary, f)
			}
		}
		return nil
	}
	if len(p.codes) != len(r.subs) {
		return breach(codeMalformed, "SUBACK with %d codes for %d filters", len(p.codes), len(r.subs))
	}
	for i, code := range p.codes {
		if s.subs.unsure[r.subs[i].Filter] == r {
			delete(s.subs.unsure, r.subs[i].Filter)
		}
		s.granted(r.subs[i], code, p.text)
	}
	c.subs.open--
	s.stand(c, true)
	s.pump()
	return nil
}

func (s *Session) granted(sub Subscription, code byte, text string) {
	if code >= codeUnspecified {
		s.refuse(sub, &Refused{What: "subscribe", Code: code, Text: text})
		return
	}
	if code < sub.QoS {
		s.log.Warn("the MQTT broker grants a lower QoS than asked for", "filter", sub.Filter, "asked", sub.QoS, "granted", code)
	}
	if _, was := s.subs.refused[sub.Filter]; was {
		delete(s.subs.refused, sub.Filter)
		s.log.Info("the MQTT broker takes a subscription that it had refused", "filter", sub.Filter)
	}
}

// refuse notes that the broker does not take a subscription. The log has each reason
// once.
func (s *Session) refuse(sub Subscription, err error) {
	if s.subs.known[sub.Filter] { // with MQTT 3.1.1 it would not be asked for on the next connection
		s.subs.cut(s.diary, sub.Filter)
	}
	if now, ok := s.subs.wanted[sub.Filter]; !ok || now != sub {
		return
	}
	was, again := s.subs.refused[sub.Filter]
	s.subs.refused[sub.Filter] = refusal{err, time.Now()}
	if !again || was.err.Error() != err.Error() {
		s.log.Warn("the MQTT broker refuses a subscription: what it is about does not cross. Give the gateway's user the right to read it; it is asked for again",
			"filter", sub.Filter, "err", err)
	}
}

func (b *subscriptions) overdue(now time.Time, after time.Duration) bool {
	for _, r := range b.pending {
		if now.Sub(r.at) > after {
			return true
		}
	}
	return false
}
