package matrix

import (
	"net/url"
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
)

func TestExplain(t *testing.T) {
	up := true
	s := newSide(t, func(c *Config) {
		c.Link = func(federation.GridID) (bool, string) { return up, "over tcp" }
	})
	// A hop is written step=value, and !problem where there is one.
	write := func(hops []federation.Hop) string {
		var parts []string
		for _, h := range hops {
			p := string(h.Step) + "=" + h.Value
			if h.Problem != "" {
				p += " !" + h.Problem
				if h.Remedy == "" {
					p += " (no remedy)"
				}
			}
			if h.OK != (h.Problem == "") {
				p += " (OK is wrong)"
			}
			parts = append(parts, p)
		}
		return strings.Join(parts, "; ")
	}
	check := func(from, to, want string) {
		t.Helper()
		if got := write(s.a.Explain(from, to)); !strings.Contains(got, want) || strings.Contains(got, "(") && !strings.Contains(want, "(") {
			t.Errorf("%s -> %s:\n got %s\nwant %s", from, to, got, want)
		}
	}
	const way = "domain=b.grid; owner=bob; state=active; policy=matrix allowed; server=b.grid takes part; "
	check("@alice:a.grid", "@bob:b.grid", "sender=a.grid; "+way+"link=over tcp; deliver=gateway of bob, live")
	check("", "b.grid", way)
	check("", "#room:B.grid", way)
	check("", "!id:b.grid", way+"room=!id:b.grid; ")
	check("", "!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM", "domain=!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM !the id names no server")
	check("", "@bob:[::1]", "domain=[::1] !")
	check("@x:z.grid", "b.grid", "sender=z.grid !this grid has no such Matrix server")
	check("", "@alice:a.grid", "domain=a.grid; deliver=own homeserver")
	check("", "matrix.org", "owner= !no approved grid holds matrix.org")
	up = false
	check("", "b.grid", "link=over tcp !there is no live link to bob; requests fail at once")
	up = true
	s.bob.Policy.Matrix.Custody = true
	s.publish("b.grid")
	check("", "b.grid", "deliver=gateway of bob, transactions by way of the disk here (custody)")
	s.bob.Policy.Matrix.DenyRooms = map[string]bool{"!id:b.grid": true}
	s.publish("b.grid")
	check("", "!id:b.grid", "room=!id:b.grid !the configuration does not let this room cross")
	s.bob.Policy.Matrix.DenyServers = map[string]bool{"b.grid": true}
	s.publish("b.grid")
	check("", "b.grid", "server=b.grid !the configuration does not let b.grid take part")
	s.a.cfg.UpstreamProxy = &url.URL{Host: "127.0.0.1:3128"}
	check("", "matrix.org", "deliver=upstream proxy 127.0.0.1:3128, because no peer holds matrix.org")
}
