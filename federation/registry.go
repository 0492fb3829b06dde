package federation

import (
	"context"
	"crypto/ed25519"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/yggate/yggate/store"
)

// RegistryConfig is what a Registry needs.
type RegistryConfig struct {
	Store    *store.Store
	Identity *Identity
	// Name is what this grid calls itself in its descriptor.
	Name string
	// Own are this grid's own domains per protocol, in any spelling; for MQTT,
	// its topic prefixes.
	Own map[Protocol][]string
	// MaxStanza is the largest XMPP stanza this grid takes, in bytes; 0 leaves
	// it unsaid.
	MaxStanza int
	// Nodes are this grid's nodes as its descriptor names them.
	Nodes []Node
	// Revoked are nodes of this grid that peers must refuse.
	Revoked []Hash
	// Policy returns what the peer of that name may do; nil allows nothing to
	// anyone. It is asked again on Reload.
	Policy func(petname string) Policy
	Log    *slog.Logger
	// Now is the clock; time.Now by default.
	Now func() time.Time
}

// Registry keeps what this grid knows of itself and of other grids: peers, their
// states, descriptors and domain claims. Each change is on disk before it takes
// effect, and then takes effect at once through the Directory.
type Registry struct {
	cfg RegistryConfig
	own map[Protocol][]string // normalised
	dir *Directory

	// mu makes persisting and publishing one step, so that no older state
	// is ever published over a newer one.
	mu sync.Mutex
	// unpublished says that the newest state could not be read, and so is in effect
	// on disk alone.
	unpublished bool
}

// Errors that the changes of a Registry tell apart.
var (
	// ErrUnknownPeer: there is no peer of that name.
	ErrUnknownPeer = errors.New("no such peer")
	// ErrIllegalState: the peer's state does not allow the change.
	ErrIllegalState = errors.New("not possible in the peer's state")
	// ErrBlocked: the operator has blocked the grid.
	ErrBlocked = errors.New("the grid is blocked here")
	// ErrNameTaken: the petname belongs to another grid.
	ErrNameTaken = errors.New("the name belongs to another peer")
)

// OpenRegistry reads the registry from the store and publishes it.
func OpenRegistry(ctx context.Context, cfg RegistryConfig) (*Registry, error) {
	r := &Registry{cfg: cfg, dir: NewDirectory()}
	if r.cfg.Log == nil {
		r.cfg.Log = slog.New(slog.DiscardHandler)
	}
	if r.cfg.Now == nil {
		r.cfg.Now = time.Now
	}
	var err error
	if r.own, err = normalizeOwn(cfg.Own); err != nil {
		return nil, fmt.Errorf("open registry: own domains: %w", err)
	}
	if err := r.change(ctx, r.dropOwnClaims); err != nil {
		return nil, fmt.Errorf("open registry: %w", err)
	}
	// A database that was restored from a backup may be behind what peers have
	// seen of this grid, and nothing in it tells; so every start counts up.
	if err := r.bumpOwn(ctx, r.dir.Now(), true); err != nil {
		return nil, fmt.Errorf("open registry: own descriptor: %w", err)
	}
	return r, nil
}

func normalizeOwn(own map[Protocol][]string) (map[Protocol][]string, error) {
	out := map[Protocol][]string{}
	for proto, names := range own {
		if len(names) == 0 {
			continue
		}
		if proto == MQTT {
			out[proto] = names
			if err := checkPrefixes(names); err != nil {
				return nil, err
			}
			continue
		}
		for _, name := range names {
			norm, err := NormalizeClaim(proto, name)
			if err != nil {
				return nil, err
			}
			out[proto] = append(out[proto], norm)
		}
		if err := checkClaims(proto, out[proto]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Directory returns the directory that this registry publishes to.
func (r *Registry) Directory() *Directory { return r.dir }

// ID returns this grid's own id.
func (r *Registry) ID() GridID { return r.cfg.Identity.ID() }

// Reload asks Policy again for every peer and publishes the result. Where the
// policy changes what peers are told about this grid, the own descriptor gets a
// new sequence number.
func (r *Registry) Reload(ctx context.Context) error {
	return r.change(ctx, func(*sql.Tx) error { return nil })
}

// change persists what fn does and publishes the outcome, and that of an earlier change
// if it could not be published then, even where fn fails: it may fail because there is
// nothing left to change.
func (r *Registry) change(ctx context.Context, fn func(tx *sql.Tx) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	failed := r.cfg.Store.Write(ctx, fn)
	if failed != nil && !r.unpublished {
		return failed
	}
	// It is on disk: from here on the caller's patience must not decide whether
	// the Directory says so.
	ctx = context.WithoutCancel(ctx)
	snap, err := r.snapshot(ctx)
	if r.unpublished = err != nil; r.unpublished {
		return errors.Join(failed, fmt.Errorf("it is on disk, and takes effect with the next change or `yggate reload`: publish: %w", err))
	}
	r.dir.Publish(snap)
	if err := r.bumpOwn(ctx, snap, false); err != nil {
		return errors.Join(failed, fmt.Errorf("own descriptor: %w", err))
	}
	return failed
}

// snapshot reads peers and claims. The descriptors of those that did not change
// are taken from the snapshot before.
func (r *Registry) snapshot(ctx context.Context) (*Snapshot, error) {
	rows, err := store.Peers(ctx, r.cfg.Store.Read())
	if err != nil {
		return nil, fmt.Errorf("read peers: %w", err)
	}
	claimRows, err := store.Claims(ctx, r.cfg.Store.Read())
	if err != nil {
		return nil, fmt.Errorf("read claims: %w", err)
	}
	before := r.dir.Now()
	var peers []*Peer
	for _, row := range rows {
		p := &Peer{
			ID: GridID(row.Grid), Name: row.Name, Key: ed25519.PublicKey(row.Key), State: State(row.State),
			Policy: r.policy(row.Name), Created: row.Created, LastHeard: row.LastHeard,
		}
		if old := before.Peer(p.ID); old != nil && old.Descriptor != nil &&
			old.Descriptor.Rot == row.Rot && old.Descriptor.Seq == row.Seq {
			p.Descriptor = old.Descriptor
		} else if p.Descriptor, err = storedDescriptor(row.Envelope); err != nil {
			// It was verified when it was accepted; only a later yggate with
			// stricter rules gets here.
			r.cfg.Log.Warn("descriptor cannot be read; the peer cannot be dialled until it sends a new one", "peer", row.Name, "err", err)
			p.Descriptor = nil
		}
		peers = append(peers, p)
	}
	claims := make([]Claim, 0, len(claimRows))
	for _, c := range claimRows {
		claims = append(claims, Claim{Protocol: Protocol(c.Proto), Domain: c.Domain, Grid: GridID(c.Grid), Status: ClaimStatus(c.Status)})
	}
	return NewSnapshot(peers, claims, r.own), nil
}

func (r *Registry) policy(name string) Policy {
	if r.cfg.Policy == nil {
		return Policy{}
	}
	return r.cfg.Policy(name)
}

// Heard notes when something was last heard from a peer. It is for listings after
// a restart and does not publish.
func (r *Registry) Heard(ctx context.Context, id GridID, at time.Time) error {
	if err := r.cfg.Store.Write(ctx, func(tx *sql.Tx) error { return store.SetHeard(tx, string(id), at) }); err != nil {
		return fmt.Errorf("note peer as heard: %w", err)
	}
	return nil
}

// audit records what an operator may want to find out about later.
func (r *Registry) audit(tx *sql.Tx, event string, grid GridID, format string, args ...any) error {
	return store.AppendAudit(tx, event, string(grid), fmt.Sprintf(format, args...))
}
