package mqtt

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// pair is a and b, of which a exports and b imports.
func pair(exports, imports []federation.MQTTRule) func(self, peer string) *federation.MQTTPolicy {
	return func(self, _ string) *federation.MQTTPolicy {
		if self == "a" {
			return &federation.MQTTPolicy{Exports: exports}
		}
		return &federation.MQTTPolicy{Imports: imports}
	}
}

func rulesOf(r ...federation.MQTTRule) []federation.MQTTRule { return r }

func names() []string { return []string{"a", "b"} }

// matches is the text of the standard (§4.7), and not the code that is tested.
func matches(filter, name string) bool {
	if name[0] == '$' && filter[0] != '$' {
		return false
	}
	f, n := strings.Split(filter, "/"), strings.Split(name, "/")
	for i, level := range f {
		if level == "#" {
			return true
		}
		if i >= len(n) || level != "+" && level != n[i] {
			return false
		}
	}
	return len(f) == len(n)
}

func randomLevels(r *rand.Rand, words ...string) string {
	levels := make([]string, 1+r.IntN(3))
	for i := range levels {
		levels[i] = words[r.IntN(len(words))]
	}
	if levels[0] == "" {
		levels[0] = "a"
	}
	return strings.Join(levels, "/")
}

func randomRules(r *rand.Rand) (rules []federation.MQTTRule) {
	for range r.IntN(6) {
		f := randomLevels(r, "a", "b", "+", "+", "", "grid")
		if r.IntN(3) == 0 {
			f += "/#"
		}
		rules = append(rules, rule(f, ""))
	}
	return rules
}

// A topic outside of the export or of the import never crosses, and all others do,
// once and in order: 10,000 of them, by 100 policies.
func TestOnlyWhatBothName(t *testing.T) {
	w := newWorld(t, names(), pair(nil, nil))
	a, b := w.grids["a"], w.grids["b"]
	r := rand.New(rand.NewPCG(1, 2))
	crossed, kept := 0, 0
	for round := range 100 {
		exports, imports := randomRules(r), randomRules(r)
		a.policy["b"], b.policy["a"] = allow(federation.MQTTPolicy{Exports: exports}), allow(federation.MQTTPolicy{Imports: imports})
		for _, g := range w.grids {
			g.publishPolicy()
			g.ready()
		}
		want := map[string][]string{}
		for i := range 100 {
			name := randomLevels(r, "a", "b", "c", "", "$s", "grid")
			one := func(rules []federation.MQTTRule, grid bool) bool {
				return slices.ContainsFunc(rules, func(x federation.MQTTRule) bool {
					return matches(x.Filter, name) && (!grid || !strings.HasPrefix(name, "grid/") || strings.HasPrefix(x.Filter, "grid/"))
				})
			}
			payload := fmt.Sprintf("%d.%d", round, i)
			if name[0] != '$' && one(exports, true) && one(imports, false) {
				want[name] = append(want[name], payload)
				crossed++
			} else {
				kept++
			}
			a.broker.client(name, payload, byte(1+i%2), false)
		}
		w.quiet()
		got := map[string][]string{}
		for _, m := range b.broker.messages("#") {
			got[m.Topic] = append(got[m.Topic], string(m.Payload))
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("exports %v, imports %v: got %v, want %v", exports, imports, got, want)
		}
		b.broker.mu.Lock()
		b.broker.log = nil
		b.broker.mu.Unlock()
	}
	if crossed < 300 || kept < 3000 {
		t.Errorf("%d crossed and %d did not: that proves little", crossed, kept)
	}
}

// What passes at QoS 0 keeps to the same rules, and waits for nobody.
func TestQoS0(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("x/#", "")), rulesOf(rule("x/y/#", "from/a/"))))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	for _, name := range []string{"x/z", "y", "x/y/1"} {
		a.client(name, "p", 0, false)
	}
	eventually(t, "QoS 0 passes", func() bool { return slices.Equal(b.got("#"), []string{"from/a/x/y/1=p"}) })
	w.link("a", "b", false)
	a.client("x/y/2", "gone", 0, false)
	a.client("x/y/3", "waits", 1, false)
	eventually(t, "both are safe or given up", func() bool { return a.unacked() == 0 })
	w.link("a", "b", true)
	eventually(t, "QoS 1 waits", func() bool { return slices.Equal(b.got("#"), []string{"from/a/x/y/1=p", "from/a/x/y/3=waits"}) })
}

// In a ring of three grids that export all to each other each message arrives once
// everywhere: with transit, and without.
func TestRingOfThree(t *testing.T) {
	for _, transit := range []bool{false, true} {
		all := rule("sensors/#", "")
		all.Transit = transit
		w := newWorld(t, []string{"a", "b", "c"}, func(string, string) *federation.MQTTPolicy {
			return &federation.MQTTPolicy{Exports: rulesOf(all), Imports: rulesOf(rule("#", "{1}"))}
		})
		want := map[string]int{}
		for i := range 50 {
			for name, g := range w.grids {
				payload := fmt.Sprintf("%s%d", name, i)
				g.broker.client("sensors/"+name, payload, byte(i%2+1), false)
				want["sensors/"+name+"="+payload] = 1
			}
		}
		for name, g := range w.grids {
			eventually(t, "all arrived at "+name, func() bool { return len(g.broker.got("sensors/#")) >= len(want) })
		}
		w.quiet()
		for name, g := range w.grids {
			got := map[string]int{}
			for _, m := range g.broker.got("sensors/#") {
				got[m]++
			}
			if !maps.Equal(got, want) {
				t.Errorf("transit %v: %s got %v", transit, name, got)
			}
		}
	}
}

// A ring in which each knows its neighbours alone: a message goes all the way round by
// transit, and stops.
func TestRingOfNeighbours(t *testing.T) {
	ring := []string{"a", "b", "c", "d", "e"}
	all := rule("x/#", "")
	all.Transit = true
	w := newWorld(t, ring, func(self, peer string) *federation.MQTTPolicy {
		i, j := slices.Index(ring, self), slices.Index(ring, peer)
		if d := (i - j + len(ring)) % len(ring); d != 1 && d != len(ring)-1 {
			return nil
		}
		return &federation.MQTTPolicy{Exports: rulesOf(all), Imports: rulesOf(rule("#", "{1}"))}
	})
	w.grids["a"].broker.client("x/y", "1", 2, false)
	for name, g := range w.grids {
		eventually(t, "it arrived at "+name, func() bool { return len(g.broker.got("#")) > 0 })
	}
	w.quiet()
	for name, g := range w.grids {
		if got := g.broker.got("#"); len(got) != 1 {
			t.Errorf("%s got %v", name, got)
		}
	}
}

// With MQTT 3.1.1 there is no path: what is imported lives below grid/, and is exported
// again only by a filter that says so; then it stops after some grids.
func TestOldBrokers(t *testing.T) {
	for _, again := range []bool{false, true} {
		exports := rulesOf(rule("#", ""))
		if again {
			exports = append(exports, rule("grid/#", ""))
		}
		w := newWorld(t, []string{"a", "b", "c"}, func(string, string) *federation.MQTTPolicy {
			return &federation.MQTTPolicy{Exports: exports, Imports: rulesOf(rule("#", "{1}"))}
		})
		for _, g := range w.grids {
			g.broker.info.Version = session.V311
			g.adapter.Up(g.broker.info)
			g.adapter.Subscribed(nil)
		}
		w.grids["a"].broker.client("x", "1", 1, false)
		for _, name := range []string{"b", "c"} {
			eventually(t, "it arrived at "+name, func() bool { return len(w.grids[name].broker.got("grid/a/x")) > 0 })
		}
		w.quiet()
		total := 0
		for _, g := range w.grids {
			total += len(g.broker.got("#"))
		}
		if !again && total != 3 || total > 12 {
			t.Errorf("again %v: %d publications", again, total)
		}
	}
}

// A request and its reply cross without an export of the reply; others do not.
func TestReply(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("ask/#", "")), rulesOf(rule("ask/#", ""))))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	ask := &session.Message{Topic: "ask/time", Payload: []byte("?"), QoS: 1}
	ask.ResponseTopic, ask.Correlation = "replies/7", []byte{0, 1, 255}
	a.publish(ask, false)
	eventually(t, "the request arrives", func() bool { return len(b.got("ask/#")) == 1 })
	asked := b.messages("ask/#")[0]
	if asked.ResponseTopic != "grid/a/reply/replies/7" || !slices.Equal(asked.Correlation, ask.Correlation) {
		t.Fatalf("%+v", asked)
	}
	for qos := range byte(3) {
		re := &session.Message{Topic: asked.ResponseTopic, Payload: []byte{'0' + qos}, QoS: qos}
		re.Correlation = asked.Correlation
		b.publish(re, false)
		eventually(t, "the reply arrives", func() bool { return slices.Contains(a.got("replies/7"), fmt.Sprintf("replies/7=%d", qos)) })
	}
	if m := a.messages("replies/#")[0]; !slices.Equal(m.Correlation, ask.Correlation) {
		t.Errorf("%+v", m)
	}
	b.client("grid/a/reply/other/topic", "x", 1, false)
	b.client("grid/nobody/reply/replies/7", "x", 1, false)
	b.client("grid/a/reply/$SYS/x", "x", 1, false)
	w.quiet()
	if got := a.got("#"); len(got) != 4 {
		t.Errorf("a has %v", got)
	}
	// A reply that took too long is none.
	p := w.grids["a"].adapter.peer(gridID("b"))
	p.asked.put(askedKey("replies/7"), time.Now().Add(-replyFor-time.Second))
	b.client(asked.ResponseTopic, "late", 1, false)
	w.quiet()
	if got := a.got("#"); len(got) != 4 {
		t.Errorf("a has %v", got)
	}
}

// The properties of a message are the same at the far side, but for its way and the
// time that it waited.
func TestProperties(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("#", "")), rulesOf(rule("#", "in/"))))
	a, b := w.grids["a"], w.grids["b"].broker
	expiry, short := uint32(1000), uint32(1)
	m := &session.Message{Topic: "x", Payload: []byte("p"), QoS: 2}
	m.Properties = session.Properties{
		UTF8: true, Expiry: &expiry, ContentType: "text/plain", Correlation: []byte("c"),
		User: []session.UserProperty{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}, {Key: "", Value: ""}},
	}
	w.link("a", "b", false)
	a.broker.publish(m, false)
	gone := &session.Message{Topic: "gone", QoS: 1}
	gone.Expiry = &short
	a.broker.publish(gone, false)
	eventually(t, "they wait", func() bool { return a.wire.waiting(gridID("b")) == 2 })
	a.wire.mu.Lock()
	for i := range a.wire.queue[gridID("b")] {
		a.wire.queue[gridID("b")][i].At = time.Now().Add(-100 * time.Second)
	}
	a.wire.mu.Unlock()
	w.link("a", "b", true)
	w.quiet()
	if got := b.got("#"); !slices.Equal(got, []string{"in/x=p"}) {
		t.Fatalf("got %v", got)
	}
	got := b.messages("#")[0]
	if got.Expiry == nil || *got.Expiry > 900 || *got.Expiry < 800 {
		t.Errorf("expiry %v, want what is left", got.Expiry)
	}
	got.Expiry = m.Expiry
	way := got.User[len(got.User)-2:]
	got.User = got.User[:len(got.User)-2]
	if !reflect.DeepEqual(got.Properties, m.Properties) || got.QoS != 2 || got.Retain {
		t.Errorf("%+v, want %+v", got, m)
	}
	if way[0] != (session.UserProperty{Key: PathProperty, Value: string(a.id)}) || way[1].Key != OriginProperty {
		t.Errorf("the way is %v", way)
	}
}

// A peer may be told less than there is: QoS and retain are bounded on both sides.
func TestBoundedByRules(t *testing.T) {
	out, in := rule("#", ""), rule("#", "")
	out.QoS, in.Retain, in.As = 1, false, "in/"
	w := newWorld(t, names(), pair(rulesOf(out), rulesOf(in)))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	a.client("x", "p", 2, true)
	eventually(t, "it arrives", func() bool { return len(b.got("#")) == 1 })
	if m := b.messages("#")[0]; m.QoS != 1 || m.Retain {
		t.Errorf("%+v", m)
	}
}

// A peer that lies about its way, or sends what is no message, gets nothing across.
func TestHostileItems(t *testing.T) {
	w := newWorld(t, names(), pair(nil, rulesOf(rule("#", "in/"))))
	a, b := w.grids["a"], w.grids["b"]
	body := func(change func(*envelope)) []byte {
		e := envelope{Topic: "x", QoS: 1, Path: []string{string(a.id)}}
		change(&e)
		e.Version = max(e.Version, 1)
		return must(envelopeEnc.Marshal(&e))
	}
	for what, raw := range map[string][]byte{
		"no path":         body(func(e *envelope) { e.Path = nil }),
		"another's path":  body(func(e *envelope) { e.Path = []string{string(gridID("c"))} }),
		"a loop":          body(func(e *envelope) { e.Path = []string{string(b.id), string(a.id)} }),
		"a wildcard":      body(func(e *envelope) { e.Topic = "x/#" }),
		"a system topic":  body(func(e *envelope) { e.Topic = "$SYS/x" }),
		"NUL":             body(func(e *envelope) { e.Topic = "a\x00b" }),
		"QoS 3":           body(func(e *envelope) { e.QoS = 3 }),
		"a version":       body(func(e *envelope) { e.Version = 2 }),
		"half a property": body(func(e *envelope) { e.User = []string{"k"} }),
		"a bad response":  body(func(e *envelope) { e.Response = "+" }),
		"a long path":     body(func(e *envelope) { e.Path = slices.Repeat(e.Path, 17) }),
		"no reply asked":  body(func(e *envelope) { e.Kind = kindReply }),
		"a kind":          body(func(e *envelope) { e.Kind = 9 }),
		"imports, stored": body(func(e *envelope) { e.Kind = kindImports }),
		"nothing":         nil,
		"noise":           {0xff, 0x00},
	} {
		items := []lane.Item{{Kind: federation.MQTT, Source: "1.1", Body: raw}}
		if n, err := b.hand(t.Context(), b.peerOf("a"), items); n != 1 || err != nil {
			t.Errorf("%s: %d settled, %v", what, n, err)
		}
		if err := b.adapter.Deliver(t.Context(), b.peerOf("a"), items[0]); err != nil && what != "imports, stored" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := b.broker.got("#"); len(got) != 0 {
		t.Errorf("published %v", got)
	}
	good := []lane.Item{{Kind: federation.MQTT, Source: "1.2", Body: body(func(*envelope) {})}}
	if n, err := b.hand(t.Context(), b.peerOf("a"), good); n != 1 || err != nil || len(b.broker.got("in/x")) != 1 {
		t.Errorf("a good one: %d, %v, %v", n, err, b.broker.got("#"))
	}
}

// The topics of a peer's state follow the link.
func TestState(t *testing.T) {
	w := newWorld(t, names(), func(string, string) *federation.MQTTPolicy {
		return &federation.MQTTPolicy{Exports: rulesOf(rule("#", "")), Imports: rulesOf(rule("#", "")), Availability: []federation.MQTTAvailability{{Topic: "zigbee/bridge", Online: "1", Offline: "0"}}}
	})
	b, self := w.grids["a"].broker, "$grid/self/state"
	holds := func(peer, bridge string) func() bool {
		return func() bool {
			return b.holds("$grid/b/state")["$grid/b/state"] == peer && b.holds("#")["zigbee/bridge"] == bridge
		}
	}
	eventually(t, "b is online", holds("online", "1"))
	eventually(t, "a itself is online", func() bool { return b.holds(self)[self] == "online" })
	w.link("a", "b", false)
	eventually(t, "b is offline", holds("offline", "0"))
	w.link("a", "b", true)
	eventually(t, "b is online again", holds("online", "1"))
	w.grids["a"].adapter.Up(b.info)
	w.grids["a"].adapter.Subscribed(nil) // all is compared
	b.client("zigbee/device", "x", 1, true)
	eventually(t, "another topic crosses", func() bool {
		return len(w.grids["b"].broker.got("grid/a/zigbee/device"))+len(w.grids["b"].broker.got("zigbee/device")) > 0
	})
	w.quiet()
	if got := w.grids["b"].broker.messages("zigbee/bridge"); slices.ContainsFunc(got, func(m *session.Message) bool { return len(m.User) > 0 }) {
		t.Errorf("what tells about b crossed to b: %+v", got)
	}
	// A peer that is no peer any more is not online either, whatever was said last.
	kept := w.grids["a"].policy["b"]
	delete(w.grids["a"].policy, "b")
	w.grids["a"].publishPolicy()
	eventually(t, "b is offline when it is gone", holds("offline", "0"))
	w.grids["a"].policy["b"] = kept
	w.grids["a"].publishPolicy()
	w.link("a", "b", true)
	eventually(t, "b is back", holds("online", "1"))
	w.grids["a"].adapter.Farewell(t.Context())
	if !holds("offline", "0")() || b.holds(self)[self] != "offline" {
		t.Error("no farewell")
	}
}

// A grid that is a peer under the name of one that is gone has the last word on the
// topics of its state, however late the other's end is told.
func TestStateOfWhoHasTheNameNow(t *testing.T) {
	policy := &federation.MQTTPolicy{Availability: []federation.MQTTAvailability{{Topic: "zigbee/bridge", Online: "1", Offline: "0"}}}
	w := newWorld(t, names(), func(string, string) *federation.MQTTPolicy { return policy })
	a := w.grids["a"]
	online := func() bool {
		all := a.broker.holds("#")
		return a.broker.holds("$grid/b/state")["$grid/b/state"] == "online" && all["zigbee/bridge"] == "1"
	}
	eventually(t, "b is online", online)
	was := a.adapter.rules.Load()
	p := a.peerOf("b")
	p.ID = gridID("another b")
	a.dir.Publish(federation.NewSnapshot([]*federation.Peer{p}, nil, nil))
	eventually(t, "the other b is known", func() bool { return a.adapter.rules.Load().peers[p.ID] != nil })
	a.adapter.PeerUp(p.ID)
	eventually(t, "the other b is online", online)
	for name, now := range map[string]*rules{
		"both in one change":        a.adapter.rules.Load(),
		"with no b for some moment": newRules(federation.NewSnapshot(nil, nil, nil), DefaultState),
	} {
		a.adapter.tellGone(t.Context(), was, now)
		eventually(t, name+": b is online", online)
	}
}

// What tells about peers does not cross, wherever it is, and no peer can write there.
func TestOwnTopics(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("#", "")), rulesOf(rule("#", "{1}"))))
	r := newRules(w.grids["a"].dir.Now(), "up/")
	for name, want := range map[string]int{"up/b/state": 0, "upper/x": 1, "$grid/b/state": 0, "x": 1} {
		if got := len(r.exportsOf(name)); got != want {
			t.Errorf("%s goes to %d peers, want %d", name, got, want)
		}
	}
	w.grids["b"].adapter.rules.Store(newRules(w.grids["b"].dir.Now(), "up/"))
	a, b := w.grids["a"].broker, w.grids["b"].broker
	a.client("up/a/state", "a lie", 1, true)
	a.client("x", "true", 1, false)
	eventually(t, "another topic crosses", func() bool { return slices.Contains(b.got("#"), "x=true") })
	w.quiet()
	if got := b.got("up/#"); len(got) > 0 {
		t.Errorf("a peer told about itself: %q", got)
	}
}

// Where a message has been it does not go again, nor further than it may.
func TestExportable(t *testing.T) {
	w := newWorld(t, names(), pair(rulesOf(rule("#", "")), nil))
	a := w.grids["a"]
	e := a.adapter.rules.Load().exportsOf("x")[0]
	for _, c := range []struct {
		path    []string
		transit bool
		want    string
	}{
		{nil, false, ""},
		{[]string{string(a.id)}, true, "loop"},
		{[]string{"c", string(gridID("b"))}, true, "loop"},
		{[]string{"c"}, false, "transit"},
		{[]string{"c"}, true, ""},
		{slices.Repeat([]string{"c"}, maxPath), true, "loop"},
	} {
		e.Transit = c.transit
		if got := a.adapter.exportable(e, "x", &trace{path: c.path}); got != c.want {
			t.Errorf("%v, transit %v: %q, want %q", c.path, c.transit, got, c.want)
		}
	}
}
