package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/pairing"
	"github.com/yggate/yggate/gateway/admin"
)

// serveAdmin answers the commands until ctx is done.
func (g *gateway) serveAdmin(ctx context.Context) error {
	l, err := admin.Listen(admin.SocketPath(g.conf.Load().State))
	if err != nil {
		return err
	}
	return serveHTTP(ctx, l, g.control())
}

// control is everything that the admin socket answers.
func (g *gateway) control() http.Handler {
	type none struct{}
	mux := http.NewServeMux()
	admin.Handle(mux, "GET /{$}", func(r *http.Request, _ none) (admin.Status, error) { return g.status(r.Context()), nil })
	admin.Handle(mux, "GET /v1/status", func(r *http.Request, _ none) (admin.Status, error) { return g.status(r.Context()), nil })
	admin.Handle(mux, "POST /v1/reload", func(r *http.Request, _ none) (admin.Done, error) { return g.reload(r.Context()) })
	admin.Handle(mux, "GET /v1/peers", func(r *http.Request, _ none) ([]admin.Peer, error) { return g.peers(r.Context()), nil })
	admin.Handle(mux, "GET /v1/peers/{name}", func(r *http.Request, _ none) (admin.Peer, error) { return g.peer(r.Context(), r.PathValue("name")) })
	admin.Handle(mux, "POST /v1/peers/{name}/{verb}", func(r *http.Request, _ none) (admin.Done, error) {
		return g.decide(r.Context(), r.PathValue("name"), r.PathValue("verb"))
	})
	admin.Handle(mux, "GET /v1/domains", func(r *http.Request, _ none) ([]admin.Domain, error) { return g.domains(), nil })
	admin.Handle(mux, "POST /v1/domains", func(r *http.Request, in admin.DomainRequest) (admin.Done, error) { return g.assign(r.Context(), in) })
	admin.Handle(mux, "GET /v1/route", func(r *http.Request, _ none) (admin.Route, error) {
		q := r.URL.Query()
		return g.route(admin.RouteRequest{Address: q.Get("address"), Protocol: q.Get("protocol")})
	})
	admin.Handle(mux, "POST /v1/invite", func(r *http.Request, in admin.InviteRequest) (admin.Invite, error) { return g.invite(r.Context(), in) })
	admin.Handle(mux, "GET /v1/invites", func(r *http.Request, _ none) ([]admin.ListedInvite, error) { return g.invites(r.Context()) })
	admin.Handle(mux, "POST /v1/invites/{id}/revoke", func(r *http.Request, _ none) (admin.Done, error) {
		return g.revoke(r.Context(), r.PathValue("id"))
	})
	admin.Handle(mux, "POST /v1/preview", func(r *http.Request, in admin.AcceptRequest) (admin.Preview, error) {
		return g.preview(r.Context(), in)
	})
	admin.Handle(mux, "POST /v1/accept", func(r *http.Request, in admin.AcceptRequest) (admin.Peer, error) { return g.accept(r.Context(), in) })
	g.outboxRoutes(mux)
	(&deadLetters{g: g}).routes(mux)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// errStandby is the answer to what only the primary can do.
var errStandby = errors.New("this node is on standby; ask the one that is primary")

// decide changes a peer's state.
func (g *gateway) decide(ctx context.Context, name, verb string) (admin.Done, error) {
	r := g.registry
	verbs := map[string]struct {
		do         func(context.Context, string) error
		done, next string
	}{
		"approve": {r.Approve, "is active: it may link, and holds the domains it claims that were free", "yggate peer show " + name},
		"pause":   {r.Pause, "is paused: nothing crosses, its domains stay its own", "yggate peer resume " + name + " ends it"},
		"resume":  {r.Resume, "is active again", "yggate status"},
		"block":   {r.Block, "is blocked by its key, and its domains are free", "yggate peer remove " + name + " lets it be invited again"},
		"remove":  {r.Remove, "is removed, and its domains are free", "yggate invite --name NAME makes it a peer again"},
	}
	v, ok := verbs[verb]
	if !ok {
		return admin.Done{}, fmt.Errorf("%q is nothing to do with a peer: %w", verb, admin.ErrNotFound)
	}
	if err := v.do(ctx, name); err != nil {
		if errors.Is(err, federation.ErrUnknownPeer) {
			err = fmt.Errorf("%w; `yggate peer list` shows all", err)
		}
		return admin.Done{}, err
	}
	g.log.Info("operator decided", "peer", name, "verb", verb)
	out := admin.Done{Done: name + " " + v.done + ".", Next: v.next}
	if verb == "approve" { // it may have claimed more since the operator last looked
		p, err := g.named(name)
		if err != nil {
			return admin.Done{}, err
		}
		for _, d := range g.claims(func(c federation.Claim) bool { return c.Grid == p.ID }) {
			out.More = append(out.More, d.Protocol+" "+d.Domain+": "+d.Status)
		}
	}
	return out, nil
}

// invite makes the string for another operator.
func (g *gateway) invite(ctx context.Context, in admin.InviteRequest) (admin.Invite, error) {
	text, err := g.pairing.Invite(ctx, in.Name, in.Expect, in.TTL)
	if err != nil {
		return admin.Invite{}, err
	}
	inv, err := pairing.Parse(text)
	if err != nil {
		return admin.Invite{}, fmt.Errorf("read the invite that was just made: %w", err)
	}
	return admin.Invite{ID: inv.ID(), Name: in.Name, Invite: text, Expires: inv.Expires, Reachable: len(inv.Peerings) > 0}, nil
}

// invites lists those that were made here.
func (g *gateway) invites(ctx context.Context) ([]admin.ListedInvite, error) {
	made, err := g.pairing.List(ctx)
	out := make([]admin.ListedInvite, len(made))
	for i, m := range made {
		out[i] = admin.ListedInvite{
			ID: m.ID, Name: m.Name, Expect: m.Expect, Created: m.Created, Expires: m.Expires,
			Status: string(m.Status), UsedBy: string(m.UsedBy),
		}
	}
	return out, err
}

// revoke makes an invite worthless.
func (g *gateway) revoke(ctx context.Context, id string) (admin.Done, error) {
	if err := g.pairing.Revoke(ctx, id); err != nil {
		return admin.Done{}, fmt.Errorf("%w; `yggate invite list` shows all", err)
	}
	g.log.Info("operator revoked an invite", "id", id)
	return admin.Done{Done: "The invite " + id + " is worthless now."}, nil
}

// look fetches what an invite stands for.
func (g *gateway) look(ctx context.Context, text string) (*pairing.Preview, *edge, error) {
	inv, err := pairing.Parse(text)
	if err != nil {
		return nil, nil, err
	}
	if err := inv.Expired(time.Now()); err != nil {
		return nil, nil, err
	}
	e := g.edge.Load()
	if e == nil {
		return nil, nil, errStandby
	}
	var shown *pairing.Preview
	err = g.patiently(ctx, func() (err error) {
		if err := e.mesh.try(ctx, inv.Peerings); err != nil {
			return err
		}
		shown, err = g.pairing.Preview(ctx, e.links, inv)
		return err
	})
	return shown, e, err
}

// patiently repeats a request until ctx is done for as long as the far end asks for
// patience, since it slows strangers down, and an operator who pairs is one; and for
// as long as it is not heard of: a mesh may take longer to find it than one attempt
// lasts. Nothing was done there, or the same may be done again.
func (g *gateway) patiently(ctx context.Context, request func() error) error {
	for {
		err := request()
		var refusal *pairing.Error
		busy := errors.As(err, &refusal) && refusal.Status == http.StatusTooManyRequests
		if !busy && !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
			return err
		}
		g.log.Info("the other grid is asked again", "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return err
		}
	}
}

// preview shows an invite and changes nothing.
func (g *gateway) preview(ctx context.Context, in admin.AcceptRequest) (admin.Preview, error) {
	shown, _, err := g.look(ctx, in.Invite)
	if err != nil {
		return admin.Preview{}, err
	}
	d := shown.Descriptor
	p := admin.Preview{
		Grid: string(d.Grid), Fingerprint: d.Grid.Fingerprint(), Name: cmp.Or(in.Name, shown.SuggestName()),
		Peerings: shown.Invite.Peerings, Expires: shown.Invite.Expires,
	}
	if len(shown.Invite.Nodes) > 0 {
		p.Node = shown.Invite.Nodes[0].ID()
	}
	now := g.registry.Directory().Now()
	if known := now.Peer(d.Grid); known != nil {
		p.Known = known.Name
	}
	for _, c := range d.Claims() {
		status := "free"
		switch owner := now.Owner(c.Protocol, c.Domain); {
		case now.Own(c.Protocol, c.Domain):
			status = "refused: it is this grid's own"
		case owner != nil && owner.ID != d.Grid:
			status = "in conflict with " + owner.Name
		}
		p.Domains = append(p.Domains, admin.Domain{Protocol: string(c.Protocol), Domain: c.Domain, Grid: string(d.Grid), Status: status})
	}
	return p, nil
}

// accept uses an invite.
func (g *gateway) accept(ctx context.Context, in admin.AcceptRequest) (admin.Peer, error) {
	shown, e, err := g.look(ctx, in.Invite)
	if err != nil {
		return admin.Peer{}, err
	}
	name := cmp.Or(in.Name, shown.SuggestName())
	if name == "" {
		return admin.Peer{}, errors.New("the other grid calls itself nothing that could be its name here: give it one with --name")
	}
	// It was asked once more, and may answer what it likes.
	for _, c := range shown.Descriptor.Claims() {
		if !slices.ContainsFunc(in.Domains, func(d admin.Domain) bool { return d.Protocol == string(c.Protocol) && d.Domain == c.Domain }) {
			return admin.Peer{}, fmt.Errorf("the other grid claims %s %s now, which was not shown before; nothing was changed: accept the invite anew to see what it claims", c.Protocol, c.Domain)
		}
	}
	var peer *federation.Peer
	var there federation.State
	err = g.patiently(ctx, func() (err error) {
		peer, there, err = g.pairing.Accept(ctx, e.links, shown, name)
		return err
	})
	if err != nil {
		return admin.Peer{}, err
	}
	e.mesh.kept(shown.Invite.Peerings)
	g.log.Info("invite accepted", "peer", peer.Name, "there", there)
	out, err := g.peer(ctx, peer.Name)
	out.There = string(there)
	return out, err
}
