package federation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/yggate/yggate/store"
)

// AssignDomain decides a conflict: the peer, which must claim the domain, becomes
// its one holder, and whoever held it is in conflict.
func (r *Registry) AssignDomain(ctx context.Context, proto Protocol, domain, petname string) error {
	norm, err := NormalizeClaim(proto, domain)
	if err != nil {
		return fmt.Errorf("assign domain: %w", err)
	}
	err = r.change(ctx, func(tx *sql.Tx) error { return r.assign(tx, proto, norm, petname) })
	if err != nil {
		return fmt.Errorf("assign %s domain %q to %q: %w", proto, norm, petname, err)
	}
	r.cfg.Log.Info("domain assigned", "peer", petname, "domain", norm, "proto", proto)
	return nil
}

func (r *Registry) assign(tx *sql.Tx, proto Protocol, domain, petname string) error {
	if slices.Contains(r.own[proto], domain) {
		return errors.New("the domain is this grid's own; take it out of the configuration first")
	}
	p, err := peerByName(tx, petname)
	if err != nil {
		return err
	}
	if s := State(p.State); s != StateActive && s != StatePaused {
		return illegal(s, transition{to: StateActive})
	}
	claims, err := store.ClaimsOf(context.Background(), tx, p.Grid)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(claims, func(c store.Claim) bool { return c.Proto == string(proto) && c.Domain == domain })
	if i < 0 {
		return errors.New("the peer does not claim it; its operator must add it there first")
	}
	holder, err := store.ActiveClaim(context.Background(), tx, string(proto), domain)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	default:
		holder.Status = string(ClaimConflict)
		if err := store.PutClaim(tx, holder); err != nil {
			return err
		}
	}
	claims[i].Status = string(ClaimActive)
	if err := hold(tx, claims[i]); err != nil {
		return err
	}
	return r.audit(tx, "domain-assign", GridID(p.Grid), "%s %s from %q", proto, domain, holder.Grid)
}

// syncClaims makes a peer's claims those of its newest descriptor. What it no
// longer claims is given up; what is new is pending, unless it held that before; what
// would be our own is refused.
func (r *Registry) syncClaims(tx *sql.Tx, d *Descriptor) error {
	rows, err := store.ClaimsOf(context.Background(), tx, string(d.Grid))
	if err != nil {
		return err
	}
	type key struct{ proto, domain string }
	have := map[key]store.Claim{}
	for _, c := range rows {
		have[key{c.Proto, c.Domain}] = c
	}
	for _, c := range d.Claims() {
		k := key{string(c.Protocol), c.Domain}
		if slices.Contains(r.own[c.Protocol], c.Domain) {
			if err := r.audit(tx, "claim-refused", d.Grid, "%s %s is our own", c.Protocol, c.Domain); err != nil {
				return err
			}
			continue
		}
		if _, ok := have[k]; !ok {
			if err := r.addClaim(tx, store.Claim{Proto: k.proto, Domain: k.domain, Grid: string(d.Grid), Status: string(ClaimPending)}); err != nil {
				return err
			}
		}
		delete(have, k)
	}
	for _, c := range have { // no longer claimed
		if err := releaseClaim(tx, c); err != nil {
			return err
		}
	}
	return nil
}

// addClaim takes a claim down as pending. A name that the grid was the last to hold is
// its own again: its operator may have stopped a protocol for a while, and there is
// nothing new to approve.
func (r *Registry) addClaim(tx *sql.Tx, c store.Claim) error {
	held, err := store.TakeReleased(tx, c.Proto, c.Domain, c.Grid)
	switch {
	case err != nil:
		return err
	case held:
		return r.grant(tx, c)
	}
	return store.PutClaim(tx, c)
}

// maxReleased is how many names are remembered that a grid held and gave up, so that
// one that keeps changing its names does not fill the database.
const maxReleased = 2 * maxClaims

func releaseClaim(tx *sql.Tx, c store.Claim) error {
	if ClaimStatus(c.Status) != ClaimActive {
		return store.DeleteClaim(tx, c.Proto, c.Domain, c.Grid)
	}
	return store.ReleaseClaim(tx, c, maxReleased)
}

// grantClaims takes each pending claim of a peer for which approved says so, or
// which lies below a domain that the peer holds already, and makes it active, or
// conflict where another grid holds the domain.
func (r *Registry) grantClaims(tx *sql.Tx, p store.Peer, approved func(Claim) bool) error {
	rows, err := store.ClaimsOf(context.Background(), tx, p.Grid)
	if err != nil {
		return err
	}
	held := map[Protocol][]string{}
	for _, c := range rows {
		if ClaimStatus(c.Status) == ClaimActive {
			held[Protocol(c.Proto)] = append(held[Protocol(c.Proto)], c.Domain)
		}
	}
	for _, row := range rows {
		c := Claim{Protocol: Protocol(row.Proto), Domain: row.Domain, Grid: GridID(row.Grid), Status: ClaimStatus(row.Status)}
		below := slices.ContainsFunc(held[c.Protocol], func(h string) bool { return IsSubdomain(c.Domain, h) })
		if c.Status != ClaimPending || !below && !approved(c) {
			continue
		}
		if err := r.grant(tx, row); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) grant(tx *sql.Tx, c store.Claim) error {
	holder, err := store.ActiveClaim(context.Background(), tx, c.Proto, c.Domain)
	event, put := "claim-active", hold
	switch {
	case errors.Is(err, sql.ErrNoRows):
		c.Status = string(ClaimActive)
	case err != nil:
		return err
	default:
		c.Status = string(ClaimConflict)
		event, put = "claim-conflict", store.PutClaim
		r.cfg.Log.Warn("two grids claim one domain; the first keeps it until `yggate domain assign` decides",
			"domain", c.Domain, "proto", c.Proto, "holder", GridID(holder.Grid).Short(), "claimant", GridID(c.Grid).Short())
	}
	if err := put(tx, c); err != nil {
		return err
	}
	return r.audit(tx, event, GridID(c.Grid), "%s %s", c.Proto, c.Domain)
}

// hold writes an active claim down. Whoever held the domain before it has nothing to
// come back to: the newest holder was approved for it.
func hold(tx *sql.Tx, c store.Claim) error {
	if err := store.ForgetReleased(tx, c.Proto, c.Domain); err != nil {
		return err
	}
	return store.PutClaim(tx, c)
}

// dropOwnClaims takes from peers what has become our own by configuration.
func (r *Registry) dropOwnClaims(tx *sql.Tx) error {
	rows, err := store.Claims(context.Background(), tx)
	if err != nil {
		return err
	}
	for _, c := range rows {
		if !slices.Contains(r.own[Protocol(c.Proto)], c.Domain) {
			continue
		}
		if err := store.DeleteClaim(tx, c.Proto, c.Domain, c.Grid); err != nil {
			return err
		}
		if err := r.audit(tx, "claim-refused", GridID(c.Grid), "%s %s is our own", c.Proto, c.Domain); err != nil {
			return err
		}
	}
	return nil
}
