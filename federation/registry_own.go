package federation

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/yggate/yggate/store"
)

// ownRefresh is the age at which the own descriptor is issued anew without a
// change, so that peers that hear from us hold a fresh one.
const ownRefresh = DescriptorLifetime / 3

// OwnDescriptor returns what this grid tells a peer about itself, signed: only
// the protocols that the peer's policy allows. The same state gives the same
// bytes.
func (r *Registry) OwnDescriptor(ctx context.Context, forPeer GridID) ([]byte, error) {
	p := r.dir.Now().Peer(forPeer)
	if p == nil {
		return nil, fmt.Errorf("own descriptor for %s: %w", forPeer.Short(), ErrUnknownGrid)
	}
	return r.OwnDescriptorAs(ctx, p.Name)
}

// OwnDescriptorAs is OwnDescriptor for a grid that is to be known by a petname.
func (r *Registry) OwnDescriptorAs(ctx context.Context, petname string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ownDescriptor(ctx, petname, false)
}

// OwnDescriptorTo is OwnDescriptorAs for a grid that Introduce is about to make a peer by
// that petname. One that is known may have been told other things by another name.
func (r *Registry) OwnDescriptorTo(ctx context.Context, grid GridID, petname string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.dir.Now().Peer(grid)
	if p != nil && p.State != StateRemoved { // it keeps its name
		petname = p.Name
	}
	return r.ownDescriptor(ctx, petname, p != nil && !maps.Equal(p.Policy.Allow, r.policy(petname).Allow))
}

// ownDescriptor has the views of all peers count, and is a new one if forced.
func (r *Registry) ownDescriptor(ctx context.Context, petname string, force bool) ([]byte, error) {
	if err := r.bumpOwn(ctx, r.dir.Now(), force); err != nil {
		return nil, fmt.Errorf("own descriptor: %w", err)
	}
	row, err := store.Own(ctx, r.cfg.Store.Read())
	if err != nil {
		return nil, fmt.Errorf("own descriptor: %w", err)
	}
	d := r.describe(r.policy(petname).Allow)
	d.Seq, d.Issued, d.Expires = row.Seq, row.Issued.Unix(), row.Issued.Add(DescriptorLifetime).Unix()
	return signDescriptor(r.cfg.Identity.key, d)
}

// describe returns the own descriptor, limited to the allowed protocols, without
// its sequence number and times.
func (r *Registry) describe(allow map[Protocol]bool) *Descriptor {
	id := r.cfg.Identity
	d := &Descriptor{
		Version: descriptorVersion, Grid: id.ID(), Rot: id.Rot(), Key: GridKey(id.Key()), Next: id.next, Past: id.past,
		Name: r.cfg.Name, Nodes: r.cfg.Nodes, Revoked: r.cfg.Revoked,
	}
	if names := r.own[XMPP]; allow[XMPP] && len(names) > 0 {
		d.XMPP = &XMPPService{Domains: names, MaxStanza: r.cfg.MaxStanza}
	}
	if names := r.own[Matrix]; allow[Matrix] && len(names) > 0 {
		d.Matrix = &MatrixService{ServerNames: names}
	}
	if names := r.own[MQTT]; allow[MQTT] && len(names) > 0 {
		d.MQTT = &MQTTService{Prefixes: names}
	}
	return d
}

// bumpOwn gives the own descriptor a new sequence number if any peer's view of it
// changed, if it is getting old, or if forced. One number serves all views, so every view
// counts: a peer would refuse other content under a number it knows.
func (r *Registry) bumpOwn(ctx context.Context, snap *Snapshot, force bool) error {
	digest, err := r.ownDigest(snap)
	if err != nil {
		return err
	}
	id, now := r.cfg.Identity, r.cfg.Now()
	fresh := func(row store.OwnDescriptor, err error) (bool, error) {
		if errors.Is(err, sql.ErrNoRows) {
			return false, nil
		}
		// One that was issued before the clock was set back is of the future to peers.
		age := now.Sub(row.Issued)
		return !force && row.Grid == string(id.ID()) && row.Rot == id.Rot() && slices.Equal(row.Digest, digest[:]) &&
			age > -maxClockAhead/2 && age < ownRefresh, err
	}
	if ok, err := fresh(store.Own(ctx, r.cfg.Store.Read())); ok || err != nil {
		return err
	}
	return r.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		row, err := store.Own(context.Background(), tx)
		if ok, err := fresh(row, err); ok || err != nil {
			return err
		}
		// Never below the clock: a database restored from a backup must not
		// repeat numbers that peers have seen with other content.
		seq := max(row.Seq+1, uint64(max(now.Unix(), 0)))
		return store.PutOwn(tx, store.OwnDescriptor{
			Grid: string(id.ID()), Rot: id.Rot(), Seq: seq, Digest: digest[:], Issued: now.Truncate(time.Second),
		})
	})
}

func (r *Registry) ownDigest(snap *Snapshot) ([sha256.Size]byte, error) {
	type view struct {
		Peer  GridID
		Allow []Protocol
	}
	var views []view
	for _, p := range snap.Peers() {
		v := view{Peer: p.ID}
		for _, proto := range []Protocol{XMPP, Matrix, MQTT} {
			if p.Policy.Allow[proto] {
				v.Allow = append(v.Allow, proto)
			}
		}
		if len(v.Allow) > 0 {
			views = append(views, v)
		}
	}
	slices.SortFunc(views, func(a, b view) int { return slices.Compare([]byte(a.Peer), []byte(b.Peer)) })
	raw, err := json.Marshal(struct {
		Whole *Descriptor
		Views []view
	}{r.describe(map[Protocol]bool{XMPP: true, Matrix: true, MQTT: true}), views})
	return sha256.Sum256(raw), err
}
