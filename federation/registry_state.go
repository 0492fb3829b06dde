package federation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/yggate/yggate/store"
)

// transition is a change of a peer's state by its operator.
type transition struct {
	verb string
	from []State
	to   State
}

var (
	approve = transition{"approve", []State{StatePending}, StateActive}
	pause   = transition{"pause", []State{StateActive}, StatePaused}
	resume  = transition{"resume", []State{StatePaused}, StateActive}
	block   = transition{"block", []State{StatePending, StateActive, StatePaused, StateRemoved}, StateBlocked}
	remove  = transition{"remove", []State{StatePending, StateActive, StatePaused, StateBlocked}, StateRemoved}
)

// Approve makes a pending peer active. Of the domains it claims, those that are
// free become its own, the others are in conflict.
func (r *Registry) Approve(ctx context.Context, petname string) error {
	return r.transit(ctx, petname, approve)
}

// Pause stops all traffic with an active peer and keeps its claims.
func (r *Registry) Pause(ctx context.Context, petname string) error {
	return r.transit(ctx, petname, pause)
}

// Resume undoes Pause.
func (r *Registry) Resume(ctx context.Context, petname string) error {
	return r.transit(ctx, petname, resume)
}

// Block refuses a grid for good: it gives its claims up, and no invite lets it
// back until the operator removes it.
func (r *Registry) Block(ctx context.Context, petname string) error {
	return r.transit(ctx, petname, block)
}

// Remove leaves only a tombstone of a peer. Its claims and its name are free, and
// a new invite, not one that it has used, may make it a peer again.
func (r *Registry) Remove(ctx context.Context, petname string) error {
	return r.transit(ctx, petname, remove)
}

func (r *Registry) transit(ctx context.Context, petname string, t transition) error {
	err := r.change(ctx, func(tx *sql.Tx) error {
		p, err := peerByName(tx, petname)
		if err != nil {
			return err
		}
		if !slices.Contains(t.from, State(p.State)) {
			return illegal(State(p.State), t)
		}
		if State(p.State) == StateRemoved { // its name may have found a new bearer
			if p.Name, err = freeName(tx, p); err != nil {
				return err
			}
		}
		p.State = string(t.to)
		if err := store.PutPeer(tx, p); err != nil {
			return err
		}
		switch t.to {
		case StateActive:
			err = r.grantClaims(tx, p, func(Claim) bool { return t.verb == approve.verb })
		case StateBlocked, StateRemoved:
			err = errors.Join(store.DeleteClaimsOf(tx, p.Grid), store.DeletePeeringsOf(tx, p.Grid), store.EndInvitesOf(tx, p.Grid, r.cfg.Now()))
		}
		if err != nil {
			return err
		}
		return r.audit(tx, "peer-"+t.verb, GridID(p.Grid), "%s", p.Name)
	})
	if err != nil {
		return fmt.Errorf("%s peer %q: %w", t.verb, petname, err)
	}
	r.cfg.Log.Info("peer "+string(t.to), "peer", petname)
	return nil
}

func illegal(s State, t transition) error {
	hints := map[State]string{
		StatePending: "approve it first",
		StateActive:  "it works already",
		StatePaused:  "resume it first",
		StateBlocked: "remove it and invite it anew to lift the block",
		StateRemoved: "invite it anew",
	}
	if s == t.to {
		return fmt.Errorf("%w: it is %s already", ErrIllegalState, s)
	}
	return fmt.Errorf("%w: it is %s; %s", ErrIllegalState, s, hints[s])
}

func peerByName(tx *sql.Tx, petname string) (store.Peer, error) {
	p, err := store.PeerByName(context.Background(), tx, petname)
	if errors.Is(err, sql.ErrNoRows) {
		return p, ErrUnknownPeer
	}
	return p, err
}

// freeName returns the peer's name if no other living peer has it. Names are unique, in
// listings, metrics and commands: a tombstone gives its name up and has its id for one.
func freeName(tx *sql.Tx, p store.Peer) (string, error) {
	for {
		other, err := store.PeerByName(context.Background(), tx, p.Name)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return p.Name, nil
		case err != nil:
			return "", err
		case other.Grid == p.Grid:
			return p.Name, nil
		case State(other.State) != StateRemoved:
			return "", fmt.Errorf("%q: %w", p.Name, ErrNameTaken)
		}
		if other.Name, err = idName(tx, GridID(other.Grid), p.Name); err != nil {
			return "", err
		}
		if err := store.PutPeer(tx, other); err != nil {
			return "", err
		}
	}
}

// idName returns as much of an id as no peer has for its name.
func idName(tx *sql.Tx, id GridID, taken string) (string, error) {
	for n := len(id.Short()); ; n++ {
		name := string(id[:min(n, len(id))])
		if _, err := store.PeerByName(context.Background(), tx, name); name != taken && errors.Is(err, sql.ErrNoRows) {
			return name, nil
		} else if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return "", err
		}
		if n >= maxPetname {
			return "", fmt.Errorf("name of removed peer %s: every one is taken: %w", id.Short(), ErrNameTaken)
		}
	}
}
