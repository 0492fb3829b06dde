package mqtt

import (
	"slices"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// What route says is what is done.
func TestExplain(t *testing.T) {
	w := newWorld(t, []string{"a", "b", "c", "d"}, func(self, peer string) *federation.MQTTPolicy {
		once := rule("x/#", "all/{1}")
		once.Retain = false
		switch peer {
		case "b":
			return &federation.MQTTPolicy{Exports: rulesOf(rule("x/#", ""), rule("deep/#", "{1}"))}
		case "c":
			return &federation.MQTTPolicy{Exports: rulesOf(once, rule("#", ""))}
		}
		return &federation.MQTTPolicy{Exports: rulesOf(rule("paused/#", ""), rule("denied", ""))}
	})
	a := w.grids["a"].adapter
	a.cfg.Link = func(id federation.GridID) (bool, string) { return id != gridID("c"), "as it is" }
	for _, c := range []struct {
		topic string
		ok    bool
		want  []string // each in a hop
	}{
		{"x/y", false, []string{"b gets it as x/y", "gateway of b", "c gets it as all/y", "never retained", "no live link to c"}},
		{"mqtt:deep/x", false, []string{"b gets it as x,", "c gets it as deep/x"}},
		{"deep", false, []string{"it would become no topic"}},
		{"$SYS/x", false, []string{"never cross"}},
		{"a/+", false, []string{"+ and # are for filters"}},
		{"", false, []string{"is empty"}},
		{"grid/b/reply/r", true, []string{"a reply to b", "gateway of b"}},
		{"grid/nobody/reply/r", false, []string{"no active peer nobody"}},
		{"grid/b/x", false, []string{"only by a filter that begins with grid/"}},
	} {
		hops := a.Explain(c.topic)
		var texts []string
		ok := true
		for _, h := range hops {
			ok = ok && h.OK
			texts = append(texts, h.Value+" "+h.Problem)
		}
		if ok != c.ok {
			t.Errorf("%q: ok %v: %q", c.topic, ok, texts)
		}
		for _, want := range c.want {
			if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(s, want) }) {
				t.Errorf("%q: %q, want %q", c.topic, texts, want)
			}
		}
	}
	a.Subscribed(map[string]error{"x/#": &session.Refused{What: "subscribe", Code: 0x87}})
	if hops := a.Explain("x/y"); !strings.Contains(hops[len(hops)-1].Problem, "not authorized") {
		t.Errorf("%+v", hops)
	}
	if hops := a.Explain("deep/x"); strings.Contains(hops[len(hops)-1].Problem, "not authorized") {
		t.Errorf("%+v", hops)
	}
	delete(w.grids["a"].policy, "c")
	w.grids["a"].policy["d"] = federation.Policy{MQTT: w.grids["a"].policy["d"].MQTT}
	w.grids["a"].publishPolicy()
	for topic, want := range map[string]string{"denied": "does not allow mqtt", "nowhere": "in no export"} {
		if hops := a.Explain(topic); !strings.Contains(hops[len(hops)-1].Problem, want) {
			t.Errorf("%q: %+v, want %q", topic, hops, want)
		}
	}
}
