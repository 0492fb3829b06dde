package federation

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/yggate/yggate/store"
)

// AcceptDescriptor takes a newer descriptor of a grid that is known here, which is
// how new nodes, domains and a rotated key are learnt. It returns ErrUnknownGrid
// for a stranger, ErrBlocked, ErrPeerNotActive for a tombstone, ErrRollback for an
// older one, and ErrBadDescriptor. The very bytes that are known are taken again
// without a change.
//
// A domain that the grid never held waits for AssignDomain, unless it lies below one
// that the grid holds already.
func (r *Registry) AcceptDescriptor(ctx context.Context, raw []byte) (*Descriptor, error) {
	d, err := ParseDescriptor(raw, r.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("accept descriptor: %w", err)
	}
	if p := r.dir.Now().Peer(d.Grid); p != nil && p.State != StateBlocked && p.State != StateRemoved && r.known(ctx, d, raw) {
		return d, nil
	}
	err = r.change(ctx, func(tx *sql.Tx) error {
		p, err := store.PeerByGrid(context.Background(), tx, string(d.Grid))
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return ErrUnknownGrid
		case err != nil:
			return err
		case State(p.State) == StateBlocked:
			return ErrBlocked
		case State(p.State) == StateRemoved:
			return fmt.Errorf("%w: it was removed", ErrPeerNotActive)
		}
		if err := r.takeDescriptor(tx, &p, d, raw); err != nil {
			return err
		}
		if err := store.PutPeer(tx, p); err != nil {
			return err
		}
		if err := r.syncClaims(tx, d); err != nil {
			return err
		}
		if State(p.State) == StatePending {
			return nil
		}
		return r.grantClaims(tx, p, func(Claim) bool { return false })
	})
	if err != nil {
		return nil, fmt.Errorf("accept descriptor of %s: %w", d.Grid.Short(), r.auditRefusal(ctx, d, err))
	}
	return d, nil
}

// known says whether exactly this descriptor is the one on record.
func (r *Registry) known(ctx context.Context, d *Descriptor, raw []byte) bool {
	p, err := store.PeerByGrid(ctx, r.cfg.Store.Read(), string(d.Grid))
	return err == nil && p.Rot == d.Rot && p.Seq == d.Seq && slices.Equal(p.Envelope, raw)
}

// auditRefusal records why a rightly signed descriptor was not taken: an old one
// may be a replay, one with another history a stolen key.
func (r *Registry) auditRefusal(ctx context.Context, d *Descriptor, why error) error {
	if !errors.Is(why, ErrRollback) && !errors.Is(why, errForeignKey) {
		return why
	}
	err := r.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		return r.audit(tx, "descriptor-refused", d.Grid, "rot %d seq %d: %v", d.Rot, d.Seq, why)
	})
	return errors.Join(why, err)
}

var errForeignKey = fmt.Errorf("%w: its keys do not continue those known of the grid; ask its operator by another way whether a key was stolen", ErrBadDescriptor)

// storedDescriptor reads a descriptor that was accepted before. Whether it came
// from the future was judged then; a clock set back since does not matter.
func storedDescriptor(raw []byte) (*Descriptor, error) { return ParseDescriptor(raw, noExpiry) }

// onRecord returns of the descriptor on record what the next one has to continue. That
// is all it reads: by rules that have become stricter since it was accepted it may be
// none any more, and the next one is what mends that.
func onRecord(p *store.Peer) (*Descriptor, error) {
	var env envelope
	if err := json.Unmarshal(p.Envelope, &env); err != nil {
		return nil, err
	}
	var payload struct {
		Next Hash `json:"next"`
	}
	if err := json.Unmarshal(env.Payload, &payload); err != nil {
		return nil, err
	}
	return &Descriptor{Grid: GridID(p.Grid), Rot: p.Rot, Seq: p.Seq, Key: p.Key, Next: payload.Next}, nil
}

// takeDescriptor checks that d continues what is known of the peer and puts it in.
func (r *Registry) takeDescriptor(tx *sql.Tx, p *store.Peer, d *Descriptor, raw []byte) error {
	old, err := onRecord(p)
	if err != nil {
		return fmt.Errorf("descriptor on record: %w", err)
	}
	if err := d.continues(old); err != nil {
		return err
	}
	if d.Rot == old.Rot && d.Seq == old.Seq && !slices.Equal(raw, p.Envelope) {
		return fmt.Errorf("%w: other content under the same number", ErrRollback)
	}
	if d.Rot > old.Rot {
		if err := r.audit(tx, "key-rotated", d.Grid, "rot %d", d.Rot); err != nil {
			return err
		}
		r.cfg.Log.Warn("a peer has a new grid key, as its old one had announced", "peer", p.Name, "rot", d.Rot)
	}
	p.Key, p.Rot, p.Seq, p.Envelope = d.Key, d.Rot, d.Seq, raw
	return nil
}

// continues checks that d may follow old: the order of (rot, seq), and
// pre-rotation. Under one key next is fixed; a rotation must start with the key
// that old announced, which only the recovery sheet gives. What comes after that
// key in the history of d was checked by ParseDescriptor.
func (d *Descriptor) continues(old *Descriptor) error {
	switch {
	case d.Rot < old.Rot || d.Rot == old.Rot && d.Seq < old.Seq:
		return ErrRollback
	case d.Rot == old.Rot:
		if !ed25519.PublicKey(d.Key).Equal(ed25519.PublicKey(old.Key)) || d.Next != old.Next {
			return errForeignKey
		}
	default:
		successor := d.Key
		if d.Rot > old.Rot+1 {
			successor = d.Past[old.Rot+1].Key
		}
		if HashKey(ed25519.PublicKey(successor)) != old.Next {
			return errForeignKey
		}
	}
	return nil
}

// Introduction makes another grid a peer.
type Introduction struct {
	// Name is the operator's name for it.
	Name string
	// Envelope is its descriptor, as signed.
	Envelope []byte
	// Expect are the domains that the operator expects it to claim, as
	// NormalizeExpected writes them. One covers what lies below it, and claims
	// for every protocol.
	Expect []string
	// Confirmed is the descriptor that the operator was shown and said yes to,
	// if there was one: the grid and the domains in it are approved.
	Confirmed *Descriptor
	// With is run in the same transaction, if set: what must happen together
	// with the introduction or not at all.
	With func(tx *sql.Tx) error
}

// Introduce makes a grid a peer, or revives one that was removed. It becomes
// active if it claims nothing but expected or confirmed domains, and something was
// expected or confirmed at all; else it is pending and waits for Approve. A
// grid that is a peer already keeps its name, and its state unless it was pending.
func (r *Registry) Introduce(ctx context.Context, in Introduction) (*Peer, error) {
	fail := func(err error) (*Peer, error) { return nil, fmt.Errorf("introduce peer %q: %w", in.Name, err) }
	if err := CheckPetname(in.Name); err != nil {
		return fail(err)
	}
	d, err := ParseDescriptor(in.Envelope, r.cfg.Now())
	if err != nil {
		return fail(err)
	}
	if d.Grid == r.ID() {
		return fail(errors.New("that is this grid itself"))
	}
	if in.Confirmed != nil && in.Confirmed.Grid != d.Grid {
		return fail(errors.New("it is not the grid that was confirmed"))
	}
	err = r.change(ctx, func(tx *sql.Tx) error {
		if in.With != nil {
			if err := in.With(tx); err != nil {
				return err
			}
		}
		return r.introduce(tx, in, d)
	})
	if err != nil {
		return fail(r.auditRefusal(ctx, d, err))
	}
	p := r.dir.Now().Peer(d.Grid)
	r.cfg.Log.Info("peer introduced", "peer", p.Name, "state", p.State, "grid", p.ID)
	return p, nil
}

func (r *Registry) introduce(tx *sql.Tx, in Introduction, d *Descriptor) error {
	p, err := store.PeerByGrid(context.Background(), tx, string(d.Grid))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		p = store.Peer{
			Grid: string(d.Grid), Name: in.Name, State: string(StatePending), Created: r.cfg.Now(),
			Key: d.Key, Rot: d.Rot, Seq: d.Seq, Envelope: in.Envelope,
		}
		if p.Name, err = freeName(tx, p); err != nil {
			return err
		}
	case err != nil:
		return err
	case State(p.State) == StateBlocked:
		return ErrBlocked
	default:
		if State(p.State) == StateRemoved {
			p.Name, p.State, p.Created = in.Name, string(StatePending), r.cfg.Now()
			if p.Name, err = freeName(tx, p); err != nil {
				return err
			}
		}
		if err := r.takeDescriptor(tx, &p, d, in.Envelope); err != nil {
			return err
		}
	}
	expected := func(c Claim) bool {
		return slices.ContainsFunc(in.Expect, func(e string) bool { return c.isExpected(e) }) ||
			in.Confirmed != nil && slices.Contains(in.Confirmed.Claims(), Claim{c.Protocol, c.Domain, c.Grid, ClaimPending})
	}
	asExpected := (len(in.Expect) > 0 || in.Confirmed != nil) && !slices.ContainsFunc(d.Claims(), func(c Claim) bool { return !expected(c) })
	if State(p.State) == StatePending && asExpected {
		p.State = string(StateActive)
	}
	if err := store.PutPeer(tx, p); err != nil {
		return err
	}
	if err := r.syncClaims(tx, d); err != nil {
		return err
	}
	if err := r.audit(tx, "peer-introduced", d.Grid, "%s is %s", p.Name, p.State); err != nil {
		return err
	}
	if State(p.State) == StatePending {
		return nil
	}
	return r.grantClaims(tx, p, expected)
}
