// Package pairing makes two grids meet. One operator makes an invite, one string;
// the other accepts it. Both sides then prove that they know the invite's secret,
// bound to the TLS session in which each proves its grid key, and become peers.
//
// The inviting side serves two paths, Handler, which are all that an unknown grid
// key reaches. The accepting side calls Preview, shows the result to its operator,
// and then calls Accept. From then on Run on either side keeps the other's
// descriptor up to date.
package pairing

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
)

// InviteLifetime is how long an invite can be used where its maker says nothing.
const InviteLifetime = 72 * time.Hour

// An invite that is good for long is one that leaks.
const maxInviteLifetime = 30 * 24 * time.Hour

// inviteKept is how long a dead invite stays in the listing.
const inviteKept = 30 * 24 * time.Hour

// maxOpenInvites bounds the invites that can be used at one time.
const maxOpenInvites = 256

// Config is what a Pairing works with.
type Config struct {
	Registry *federation.Registry
	Store    *store.Store
	// Key is this grid's current key, which invites carry.
	Key ed25519.PublicKey
	// Nodes returns this grid's node addresses for a new invite.
	Nodes func() []transports.Addr
	// Peerings returns URIs of ways into the mesh to put into a new invite;
	// nil: none.
	Peerings func() []string
	Log      *slog.Logger
	// Now is the clock; time.Now by default.
	Now func() time.Time
}

// Pairing makes invites, serves those who accept them, and accepts those of others.
type Pairing struct {
	cfg   Config
	limit *limiter
	told  *ledger
	woken chan struct{}
}

// Dialer opens one HTTP/2 connection over mutual TLS to a node, port as the
// dialer sees fit where addr has none. It fails unless the far end proves the
// grid key by its certificates, with a federation.WrongKeyError if it proves another
// one. The connection is the caller's to close.
type Dialer interface {
	DialPinned(ctx context.Context, addr transports.Addr, grid ed25519.PublicKey) (*http.ClientConn, tls.ConnectionState, error)
}

// New returns a Pairing.
func New(cfg Config) *Pairing {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Pairing{
		cfg: cfg, limit: newLimiter(cfg.Now),
		told: &ledger{peers: map[federation.GridID]*entry{}}, woken: make(chan struct{}, 1),
	}
}

// Invite makes an invite and returns its string. Whoever uses it becomes the peer
// called name; it is active at once if it claims nothing but the expected domains
// and what lies below them. It can be used for the time life, 0 meaning
// InviteLifetime. Only an HMAC key made from the secret is kept.
func (p *Pairing) Invite(ctx context.Context, name string, expect []string, life time.Duration) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("invite %q: %w", name, err) }
	if err := federation.CheckPetname(name); err != nil {
		return fail(err)
	}
	domains, err := normalizeAll(expect)
	if err != nil {
		return fail(err)
	}
	var peerings []string
	if p.cfg.Peerings != nil {
		peerings = p.cfg.Peerings()
	}
	switch {
	case life == 0:
		life = InviteLifetime
	case life < time.Second || life > maxInviteLifetime:
		return fail(fmt.Errorf("lifetime %v: want one second to %d days", life, maxInviteLifetime/(24*time.Hour)))
	}
	now := p.cfg.Now()
	inv, err := newInvite(p.cfg.Key, now.Add(life), p.cfg.Nodes(), peerings)
	if err != nil {
		return fail(err)
	}
	s, err := inv.Encode()
	if err != nil {
		return fail(err)
	}
	row := store.Invite{ID: inv.idBytes(), Key: inv.macKey(), Name: name, Expect: domains, Created: now, Expires: inv.Expires}
	if err := p.cfg.Store.Write(ctx, func(tx *sql.Tx) error { return record(tx, row) }); err != nil {
		return fail(err)
	}
	p.cfg.Log.Info("invite made", "peer", name, "id", inv.ID(), "expires", inv.Expires)
	return s, nil
}

func normalizeAll(domains []string) ([]string, error) {
	out := make([]string, 0, len(domains))
	for _, e := range domains {
		d, err := federation.NormalizeExpected(e)
		if err != nil {
			return nil, fmt.Errorf("expected %w", err)
		}
		out = append(out, d)
	}
	return out, nil
}

// record puts a new invite on disk and forgets those that died long ago.
func record(tx *sql.Tx, inv store.Invite) error {
	if err := store.DeleteInvitesBefore(tx, inv.Created.Add(-inviteKept)); err != nil {
		return err
	}
	open, err := store.OpenInvites(context.Background(), tx, inv.Created)
	if err != nil {
		return err
	}
	if open >= maxOpenInvites {
		return fmt.Errorf("%d invites are open already; revoke some", open)
	}
	if err := store.InsertInvite(tx, inv); err != nil {
		return err
	}
	return store.AppendAudit(tx, "invite-made", "", hex.EncodeToString(inv.ID)+" for "+inv.Name)
}

// Status is the state of an invite that was made here.
type Status string

// The states of an invite. Only an open one can be used.
const (
	StatusOpen    Status = "open"
	StatusUsed    Status = "used"
	StatusRevoked Status = "revoked"
	StatusExpired Status = "expired"
)

// Listed is an invite that was made here.
type Listed struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	Expect  []string          `json:"expect_domains"`
	Created time.Time         `json:"created"`
	Expires time.Time         `json:"expires"`
	Status  Status            `json:"status"`
	UsedBy  federation.GridID `json:"used_by,omitempty"`
}

// List returns the invites made here in the last month or so, newest first.
func (p *Pairing) List(ctx context.Context) ([]Listed, error) {
	rows, err := store.Invites(ctx, p.cfg.Store.Read())
	if err != nil {
		return nil, fmt.Errorf("list invites: %w", err)
	}
	out := make([]Listed, 0, len(rows))
	for _, r := range rows {
		out = append(out, Listed{
			ID: hex.EncodeToString(r.ID), Name: r.Name, Expect: r.Expect, Created: r.Created, Expires: r.Expires,
			Status: statusOf(r, p.cfg.Now()), UsedBy: federation.GridID(r.UsedBy),
		})
	}
	return out, nil
}

func statusOf(r store.Invite, now time.Time) Status {
	switch {
	case r.UsedBy != "":
		return StatusUsed
	case !r.Revoked.IsZero():
		return StatusRevoked
	case !now.Before(r.Expires):
		return StatusExpired
	}
	return StatusOpen
}

// Revoke makes an open invite worthless. id is that of List.
func (p *Pairing) Revoke(ctx context.Context, id string) error {
	raw, err := hex.DecodeString(id)
	if err != nil {
		return fmt.Errorf("revoke invite %.40q: want the id that the list of invites shows", id)
	}
	err = p.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		done, err := store.RevokeInvite(tx, raw, p.cfg.Now())
		if err != nil {
			return err
		}
		if !done {
			return errors.New("there is no unused invite with that id")
		}
		return store.AppendAudit(tx, "invite-revoked", "", id)
	})
	if err != nil {
		return fmt.Errorf("revoke invite %s: %w", id, err)
	}
	return nil
}
