package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/federation/matrix"
	"github.com/yggate/yggate/federation/mqtt"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/gateway/admin"
)

// Bounds of one listing. Items are read with their bodies, of which those of the
// outbox have a bound in bytes of their own.
const (
	listedByDefault = 20
	maxListed       = 1000
	maxDeadListed   = 200
)

// outboxRoutes registers what the commands ask about what waits for peers.
func (g *gateway) outboxRoutes(mux *http.ServeMux) {
	type none struct{}
	item := func(r *http.Request) itemName {
		return itemName{r.PathValue("peer"), lane.Name(r.PathValue("lane")), r.PathValue("seq")}
	}
	admin.Handle(mux, "GET /v1/outbox", func(r *http.Request, _ none) (admin.Outbox, error) {
		return g.outbox(r.Context(), r.URL.Query().Get("peer"), r.URL.Query().Get("limit"))
	})
	admin.Handle(mux, "GET /v1/outbox/{peer}/{lane}/{seq}", func(r *http.Request, _ none) (admin.Item, error) {
		return g.queued(r.Context(), item(r), r.URL.Query().Has("body"))
	})
	admin.Handle(mux, "POST /v1/outbox/{peer}/{lane}/{seq}/drop", func(r *http.Request, _ none) (admin.Done, error) {
		return g.dropQueued(r.Context(), item(r))
	})
	admin.Handle(mux, "POST /v1/outbox/{peer}/drop", func(r *http.Request, _ none) (admin.Done, error) {
		return g.dropAll(r.Context(), r.PathValue("peer"))
	})
	admin.Handle(mux, "POST /v1/outbox/{peer}/retry", func(r *http.Request, _ none) (admin.Done, error) { return g.retryPeer(r.PathValue("peer")) })
	admin.Handle(mux, "POST /v1/outbox/retry", func(r *http.Request, _ none) (admin.Done, error) { return g.retryAll() })
}

// lanes returns what every durable lane of the edge holds.
func (g *gateway) lanes(ctx context.Context, e *edge) []admin.Lane {
	links := map[federation.GridID]link.State{}
	for _, st := range e.links.Status() {
		links[st.Peer] = st.State
	}
	now := g.registry.Directory().Now()
	all := []admin.Lane{}
	for _, st := range e.durable.Status(ctx) {
		out := admin.Lane{
			Peer: g.peerName(st.Peer), Lane: string(st.Lane), Dir: string(st.Dir), Items: st.Items, Bytes: st.Bytes,
			Oldest: st.Oldest, Streaming: st.Streaming, Link: string(cmp.Or(links[st.Peer], link.Down)),
		}
		switch p := now.Peer(st.Peer); {
		case p == nil:
			out.Link = string(federation.StateRemoved)
		case p.State != federation.StateActive:
			out.Link = string(p.State)
		case st.Dir == lane.DirOut:
			out.MaxItems, out.MaxBytes = int64(p.Policy.Limits.QueueItems), p.Policy.Limits.QueueBytes
		}
		all = append(all, out)
	}
	return all
}

// outbox lists what waits: all lanes and no item, or those of one peer and the
// first items.
func (g *gateway) outbox(ctx context.Context, peer, limit string) (admin.Outbox, error) {
	e := g.edge.Load()
	if e == nil {
		return admin.Outbox{}, errStandby
	}
	n, err := listLimit(limit, maxListed)
	if err != nil {
		return admin.Outbox{}, err
	}
	all := g.lanes(ctx, e)
	if peer == "" {
		return admin.Outbox{Lanes: all}, nil
	}
	p, err := g.named(peer)
	if err != nil {
		return admin.Outbox{}, err
	}
	out := admin.Outbox{Lanes: lanesOf(all, peer), Items: []admin.Item{}}
	items, err := e.durable.Queued(ctx, p.ID, n)
	if err != nil {
		return admin.Outbox{}, fmt.Errorf("list what waits for %s: %w", peer, err)
	}
	for i := range items {
		out.Items = append(out.Items, g.describeQueued(&items[i]))
	}
	return out, nil
}

// listLimit reads how many to list; none is the default.
func listLimit(text string, high int) (int, error) {
	if text == "" || text == "0" {
		return listedByDefault, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > high {
		return 0, fmt.Errorf("a limit of %.20q: want a number from 1 to %d", text, high)
	}
	return n, nil
}

// lanesOf returns the lanes of the peer of that name.
func lanesOf(all []admin.Lane, peer string) []admin.Lane {
	of := []admin.Lane{}
	for _, l := range all {
		if l.Peer == peer {
			of = append(of, l)
		}
	}
	return of
}

// named returns the peer of that name.
func (g *gateway) named(name string) (*federation.Peer, error) {
	for _, p := range g.registry.Directory().Now().Peers() {
		if p.Name == name {
			return p, nil
		}
	}
	return nil, fmt.Errorf("peer %q: %w; `yggate peer list` shows all", name, admin.ErrNotFound)
}

// peerName is what the operator calls a grid, or the short id of one that is gone.
func (g *gateway) peerName(id federation.GridID) string {
	if p := g.registry.Directory().Now().Peer(id); p != nil {
		return p.Name
	}
	return id.Short()
}

// itemName is an item of the outbox as a command names it.
type itemName struct {
	peer string
	lane lane.Name
	seq  string
}

func (n itemName) String() string { return string(n.lane) + "/" + n.seq }

// resolve finds the peer and reads the number.
func (n itemName) resolve(g *gateway) (*edge, *federation.Peer, uint64, error) {
	e := g.edge.Load()
	if e == nil {
		return nil, nil, 0, errStandby
	}
	p, err := g.named(n.peer)
	if err != nil {
		return nil, nil, 0, err
	}
	seq, err := strconv.ParseUint(n.seq, 10, 64)
	if err != nil {
		return nil, nil, 0, fmt.Errorf("%.40q does not name an item; `yggate outbox list %s` shows names such as chat/42", n.String(), n.peer)
	}
	return e, p, seq, nil
}

// explain adds to an error of the lanes what there is to do.
func (n itemName) explain(err error) error {
	switch {
	case errors.Is(err, lane.ErrNoItem):
		return fmt.Errorf("item %s for %s: %w: it has arrived, or was given up (`yggate outbox list --dead %s`)", n, n.peer, admin.ErrNotFound, n.peer)
	case errors.Is(err, lane.ErrSent):
		return fmt.Errorf("item %s for %s: %w, which may have it already; it waits again, and can be dropped, if the link goes down before the peer acknowledges it", n, n.peer, err)
	}
	return fmt.Errorf("item %s for %s: %w", n, n.peer, err)
}

// queued shows one item.
func (g *gateway) queued(ctx context.Context, name itemName, body bool) (admin.Item, error) {
	e, p, seq, err := name.resolve(g)
	if err != nil {
		return admin.Item{}, err
	}
	q, err := e.durable.QueuedItem(ctx, p.ID, name.lane, seq)
	if err != nil {
		return admin.Item{}, name.explain(err)
	}
	out := g.describeQueued(&q)
	if body {
		out.Body = bodyText(out.Protocol, q.Item.Body)
	}
	return out, nil
}

// dropQueued gives one item up.
func (g *gateway) dropQueued(ctx context.Context, name itemName) (admin.Done, error) {
	e, p, seq, err := name.resolve(g)
	if err != nil {
		return admin.Done{}, err
	}
	if err := e.durable.Drop(ctx, p.ID, name.lane, seq); err != nil {
		return admin.Done{}, name.explain(err)
	}
	g.log.Info("operator dropped an item", "peer", p.Name, "id", name.String())
	told := "its sender is told with an error"
	switch name.lane {
	case lane.Bulk:
		told = "the homeserver is not told, since Matrix has no way to"
	case lane.MQTT:
		told = "its publisher is not told, since MQTT has no way to"
	}
	return admin.Done{
		Done: fmt.Sprintf("%s is no longer sent to %s; %s.", name, p.Name, told),
		Next: "yggate outbox list --dead " + p.Name,
	}, nil
}

// dropAll gives up everything for a peer that is not on its way.
func (g *gateway) dropAll(ctx context.Context, peer string) (admin.Done, error) {
	e := g.edge.Load()
	if e == nil {
		return admin.Done{}, errStandby
	}
	p, err := g.named(peer)
	if err != nil {
		return admin.Done{}, err
	}
	n, err := e.durable.DropAll(ctx, p.ID)
	if err != nil {
		return admin.Done{}, fmt.Errorf("drop what waits for %s, of which %d are given up: %w; try it again", p.Name, n, err)
	}
	g.log.Info("operator dropped all items", "peer", p.Name, "count", n)
	done := admin.Done{Done: fmt.Sprintf("%d items are no longer sent to %s; their senders are told with an error, but for Matrix and MQTT, which have none.", n, p.Name)}
	if n == 0 {
		done.Done = fmt.Sprintf("Nothing was dropped: nothing waits for %s that is not on its way.", p.Name)
	} else {
		done.Next = "yggate outbox list --dead " + p.Name
	}
	return done, nil
}

// retryPeer has the link to a peer dialled now.
func (g *gateway) retryPeer(name string) (admin.Done, error) {
	e := g.edge.Load()
	if e == nil {
		return admin.Done{}, errStandby
	}
	p, err := g.named(name)
	if err != nil {
		return admin.Done{}, err
	}
	if p.State != federation.StateActive {
		return admin.Done{}, fmt.Errorf("peer %s is %s, and nothing is sent to it; `yggate peer show %s` tells more", p.Name, p.State, p.Name)
	}
	if up, detail := e.linkState(p.ID); up {
		return admin.Done{Done: fmt.Sprintf("The link to %s is %s: what waits is under way.", p.Name, detail), Next: "yggate outbox list " + p.Name}, nil
	}
	e.links.Wake(p.ID)
	return admin.Done{Done: p.Name + " is dialled now.", Next: "yggate status --wait 30s --up " + p.Name}, nil
}

// retryAll has every link that is down dialled now.
func (g *gateway) retryAll() (admin.Done, error) {
	e := g.edge.Load()
	if e == nil {
		return admin.Done{}, errStandby
	}
	e.wake()
	return admin.Done{Done: "Every peer whose link is down is dialled now.", Next: "yggate status"}, nil
}

func (g *gateway) describeQueued(q *lane.Queued) admin.Item {
	out := admin.Item{
		Name: fmt.Sprintf("%s/%d", q.Lane, q.Seq), Peer: g.peerName(q.Peer), Lane: string(q.Lane), Seq: q.Seq,
		Protocol: string(q.Item.Kind), Taken: q.Item.At, Expires: q.Item.Expires, Sent: q.Sent,
	}
	describeBody(&out, q.Item.Body)
	return out
}

// describeBody tells whose an item is and whom it is for, and nothing of what is
// within. What cannot be read is shown without that; it was read before it was put.
func describeBody(out *admin.Item, body []byte) {
	out.Bytes = len(body)
	switch out.Protocol {
	case string(federation.XMPP):
		if top, err := frame.ParseTop(body); err == nil {
			out.Stanza, out.Type, out.ID = string(top.Name), string(top.Type), string(top.ID)
			out.From, out.To = string(top.From), string(top.To)
		}
	case string(federation.Matrix):
		if t, err := matrix.ReadTransaction(body); err == nil {
			out.Stanza, out.ID, out.From, out.To = "transaction", t.ID, t.Origin, t.Server
		}
	case string(federation.MQTT):
		if m, err := mqtt.ReadItem(body); err == nil {
			out.Stanza, out.Type, out.To = "publish", fmt.Sprintf("qos %d", m.QoS), m.Topic
			if m.Reply {
				out.Stanza = "reply"
			}
			if m.Retain {
				out.Type += " retain"
			}
		}
	}
}

// bodyText is what stands in an item, for people.
func bodyText(protocol string, body []byte) string {
	if protocol == string(federation.Matrix) {
		if t, err := matrix.ReadTransaction(body); err == nil {
			return string(t.Body)
		}
	}
	if protocol == string(federation.MQTT) {
		if m, err := mqtt.ReadItem(body); err == nil {
			return string(m.Payload)
		}
	}
	return string(body)
}
