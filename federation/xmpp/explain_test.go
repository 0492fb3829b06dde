package xmpp

import (
	"fmt"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
)

func TestExplain(t *testing.T) {
	w := &world{dir: federation.NewDirectory()}
	w.publish(func(peers map[string]*federation.Peer, _ map[string]string) {
		peers["carol"].Name = "carol" // her link is down
	})
	a, err := New(Config{Directory: w.dir, Link: func(id federation.GridID) (bool, string) {
		return id != "carol", "heard 2s ago"
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ from, to, want string }{
		{"alice@a.grid", "bob@B.grid/x", "sender a.grid, domain b.grid, owner bob, state active, policy xmpp allowed, link heard 2s ago, deliver gateway of bob"},
		{"", "b.grid", "domain b.grid, owner bob, state active, policy xmpp allowed, link heard 2s ago, deliver gateway of bob"},
		{"", "alice@a.grid", "domain a.grid, deliver own server"},
		{"", "c.grid", "domain c.grid, owner carol, state active, policy xmpp allowed, link heard 2s ago!there is no live link to carol; messages wait for it, for 7 days at most (group chats 24 hours); all else fails at once"},
		{"", "d.grid", "domain d.grid, owner dave, state paused!nothing crosses to a peer that is paused; messages wait for it, for 7 days at most (group chats 24 hours); all else fails at once"},
		{"", "e.grid", "domain e.grid, owner erin, state active, policy xmpp not allowed!the peer's policy does not allow this protocol"},
		{"", "nowhere.grid", "domain nowhere.grid, owner !no approved grid holds nowhere.grid"},
		{"", "conflict.grid", "domain conflict.grid, owner bob!the claim on conflict.grid is conflict"},
		{"eve@c.grid", "b.grid", "sender c.grid!this grid has no such XMPP domain"},
	} {
		var hops []string
		for i, h := range a.Explain(c.from, c.to) {
			s := fmt.Sprintf("%s %s", h.Step, h.Value)
			if h.OK != (h.Problem == "") || h.OK == (h.Remedy != "") {
				t.Errorf("%s -> %s: hop %d %+v: ok, problem and remedy disagree", c.from, c.to, i, h)
			}
			if !h.OK {
				s += "!" + h.Problem
			}
			hops = append(hops, s)
		}
		if got := strings.Join(hops, ", "); got != c.want {
			t.Errorf("%q -> %q\n got %s\nwant %s", c.from, c.to, got, c.want)
		}
	}
	for _, bad := range []string{"", "@", "bob@", "bob@b grid", "bob@127.0.0.1"} {
		hops := a.Explain("", bad)
		if len(hops) != 1 || hops[0].OK || hops[0].Step != federation.StepDomain || hops[0].Remedy == "" {
			t.Errorf("%q: %+v", bad, hops)
		}
	}
}
