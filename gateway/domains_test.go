package gateway

import (
	"strings"
	"testing"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/admin"
)

// An address goes to what explains its protocol, whole and as it was written.
func TestRouteByProtocol(t *testing.T) {
	const x, m, q = federation.XMPP, federation.Matrix, federation.MQTT
	for _, c := range []struct {
		runs               []federation.Protocol
		address, asked, to string // to: the protocol, or a part of the error
	}{
		{[]federation.Protocol{x, m}, "u@b.grid", "", "xmpp"},
		{[]federation.Protocol{x, m}, "b.grid", "", "xmpp"},
		{[]federation.Protocol{x, m}, "b.grid", "matrix", "matrix"},
		{[]federation.Protocol{x, m}, "b.grid:8448", "", "matrix"},
		{[]federation.Protocol{x, m}, "b.grid/a:b", "", "xmpp"},
		{[]federation.Protocol{x, m}, "room@muc.b.grid/nick:1", "", "xmpp"},
		{[]federation.Protocol{x, m}, "@u:b.grid", "", "matrix"},
		{[]federation.Protocol{x, m}, "#room@x:b.grid", "", "matrix"},
		{[]federation.Protocol{x, m}, "!id:b.grid:8448", "", "matrix"},
		{[]federation.Protocol{x, m}, "!WcRmoFnSpLMCcMVqQg", "", "matrix"},
		{[]federation.Protocol{x, m}, "", "", "xmpp"},
		{[]federation.Protocol{x, m, q}, "mqtt:sensors/x", "", "mqtt"},
		{[]federation.Protocol{x, m, q}, "sensors/x", "mqtt", "mqtt"},
		{[]federation.Protocol{x, m, q}, "sensors/x", "", "xmpp"},
		{[]federation.Protocol{q}, "sensors/x", "", "mqtt"},
		{[]federation.Protocol{x}, "mqtt:sensors/x", "", "which this gateway does not run"},
		{[]federation.Protocol{m}, "b.grid", "", "matrix"},
		{[]federation.Protocol{m}, "u@b.grid", "", "which this gateway does not run"},
		{[]federation.Protocol{x}, "b.grid", "", "xmpp"},
		{[]federation.Protocol{x}, "@u:b.grid", "", "which this gateway does not run"},
		{[]federation.Protocol{x}, "b.grid", "smtp", `protocol "smtp" is not known`},
	} {
		e := &edge{explain: map[federation.Protocol]func(string) []federation.Hop{}}
		for _, proto := range c.runs {
			e.explain[proto] = func(address string) []federation.Hop {
				return []federation.Hop{
					{Step: federation.StepDomain, OK: true, Value: string(proto) + " " + address},
					{Step: federation.StepOwner, Problem: "no", Remedy: "do"},
				}
			}
		}
		g := &gateway{}
		g.edge.Store(e)
		r, err := g.route(admin.RouteRequest{Address: c.address, Protocol: c.asked})
		if err != nil {
			if !strings.Contains(err.Error(), c.to) || c.to == "xmpp" || c.to == "matrix" {
				t.Errorf("%q with %v: %v", c.address, c.runs, err)
			}
			continue
		}
		if r.OK || len(r.Hops) != 2 || r.Hops[0].Text != c.to+" "+c.address || r.Hops[1].Text != "no" || r.Hops[1].Fix != "do" {
			t.Errorf("%q with %v: %+v, want %s", c.address, c.runs, r, c.to)
		}
	}
}
