package pairing

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

// Handler serves PathPair and PathDescriptor, to peers and to strangers. It must
// be behind TLS that asks for a client certificate; it checks the certificates
// itself, and requires of the server only that RemoteAddr is the authenticated
// address of the caller's node.
func (p *Pairing) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+PathPair, p.serve(p.pair))
	mux.HandleFunc("POST "+PathDescriptor, p.serve(p.descriptor))
	return mux
}

// bodyTimeout bounds the reading of a request.
const bodyTimeout = 10 * time.Second

// caller is who asks, as far as TLS has proven it.
type caller struct {
	federation.Proof
	source string           // address of its node
	peer   *federation.Peer // whose current key it has, or nil
}

// serve checks who asks and how often before anything of the body is read.
func (p *Pairing) serve(work func(*http.Request, caller) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := p.identify(r)
		var answer any
		if err == nil {
			// A stranger must not hold a stream open with a body that never comes.
			err = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		if err == nil {
			answer, err = work(r, c)
		}
		status := http.StatusOK
		if err != nil {
			var refusal *Error
			if !errors.As(err, &refusal) {
				p.cfg.Log.Error("pairing request failed", "id", c.source, "err", err)
				refusal = &Error{Status: http.StatusInternalServerError, Message: "the gateway cannot answer now", Hint: "try again later"}
			}
			level := slog.LevelInfo
			if refusal.Status == http.StatusTooManyRequests {
				level = slog.LevelDebug // a line for each would be a flood, too
			}
			p.cfg.Log.Log(r.Context(), level, "pairing request refused", "id", c.source, "path", r.URL.Path, "why", refusal.Message)
			answer, status = refusal, refusal.Status
		}
		if err := writeJSON(w, status, answer); err != nil {
			p.cfg.Log.Debug("pairing answer not written", "id", c.source, "err", err)
		}
	}
}

func (p *Pairing) identify(r *http.Request) (caller, error) {
	c := caller{source: sourceOf(r.RemoteAddr)}
	if r.TLS == nil {
		return c, &Error{Status: http.StatusForbidden, Message: "no TLS"}
	}
	proof, err := federation.VerifyChain(r.TLS.PeerCertificates, p.cfg.Now())
	if err != nil {
		return c, &Error{Status: http.StatusForbidden, Message: err.Error()}
	}
	snap := p.cfg.Registry.Directory().Now()
	c.Proof, c.peer = proof, snap.PeerByKey(proof.Key)
	if named := snap.Peer(proof.Grid); c.blocked() || named != nil && named.State == federation.StateBlocked {
		return c, &Error{Status: http.StatusForbidden, Message: federation.ErrBlocked.Error()}
	}
	if c.peer != nil && c.peer.Descriptor != nil && c.peer.Descriptor.Revokes(proof.Node) {
		return c, &Error{Status: http.StatusForbidden, Message: "its grid has revoked this node"}
	}
	var allowed bool
	if c.peer != nil && c.peer.State == federation.StateActive {
		allowed = p.limit.allowPeer(c.peer.ID)
	} else {
		allowed = p.limit.allow(c.source)
	}
	if !allowed {
		return c, &Error{Status: http.StatusTooManyRequests, Message: "too many requests", Hint: "wait some seconds and try again"}
	}
	return c, nil
}

func (c caller) blocked() bool { return c.peer != nil && c.peer.State == federation.StateBlocked }

// sourceOf takes the port off "net:node:port" and "ip:port".
func sourceOf(remote string) string {
	if i := strings.LastIndexByte(remote, ':'); i >= 0 {
		return remote[:i]
	}
	return remote
}

// pair is POST /v1/pair: the caller has an invite and wants to be a peer.
func (p *Pairing) pair(r *http.Request, c caller) (any, error) {
	var req pairRequest
	if err := readBody(r.Body, &req); err != nil {
		return nil, badRequest(err)
	}
	inv, err := p.checkInvite(r, c, req.Invite, req.MAC, roleAccept)
	if err != nil {
		return nil, err
	}
	d, err := p.ownDescriptorOf(c, req.Descriptor)
	if err != nil {
		return nil, err
	}
	peer, err := p.cfg.Registry.Introduce(r.Context(), federation.Introduction{
		Name: inv.Name, Envelope: req.Descriptor, Expect: inv.Expect,
		With: func(tx *sql.Tx) error { return burn(tx, inv.ID, d.Grid, p.cfg.Now()) },
	})
	if err != nil {
		return nil, asRefusal(err)
	}
	own, err := p.cfg.Registry.OwnDescriptorAs(r.Context(), peer.Name)
	if err != nil {
		return nil, err
	}
	mac, err := sessionMAC(inv.Key, roleInvite, r.TLS)
	if err != nil {
		return nil, err
	}
	return pairAnswer{MAC: mac, State: peer.State, Descriptor: own}, nil
}

// burn uses the invite up. It decides between grids that all passed checkInvite.
func burn(tx *sql.Tx, id []byte, grid federation.GridID, at time.Time) error {
	used, err := store.UseInvite(tx, id, string(grid), at)
	if err == nil && !used {
		err = &Error{Status: http.StatusConflict, Message: "the invite was used", Hint: "ask for a new one"}
	}
	return err
}

// checkInvite returns the invite if the caller has proven to know its secret and
// if it can (still, or again by the same grid) be used. Before that proof all
// failures look the same.
func (p *Pairing) checkInvite(r *http.Request, c caller, id, mac []byte, role role) (store.Invite, error) {
	inv, err := store.InviteByID(r.Context(), p.cfg.Store.Read(), id)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return inv, fmt.Errorf("read invite: %w", err)
	}
	want, macErr := sessionMAC(inv.Key, role, r.TLS)
	if macErr != nil {
		return inv, macErr
	}
	if known := err == nil; !hmac.Equal(want, mac) || !known {
		if err := p.auditRefusal(r.Context(), c, id); err != nil {
			return inv, err
		}
		return inv, &Error{
			Status: http.StatusForbidden, Message: "the invite is not known here, or its secret is wrong",
			Hint: "copy the invite again, or ask for a new one",
		}
	}
	now := p.cfg.Now()
	refuse := func(status int, format string, args ...any) (store.Invite, error) {
		return inv, &Error{Status: status, Message: fmt.Sprintf(format, args...), Hint: "ask for a new one"}
	}
	switch statusOf(inv, now) {
	case StatusUsed:
		switch {
		case inv.UsedBy != string(c.gridID()):
			return refuse(http.StatusConflict, "the invite was used by another grid")
		case !inv.Revoked.IsZero():
			return refuse(http.StatusGone, "no longer a peer here since the invite was used")
		}
	case StatusRevoked:
		return refuse(http.StatusGone, "the invite was revoked")
	case StatusExpired:
		return refuse(http.StatusGone, "the invite expired at %s", inv.Expires.UTC().Format(time.RFC3339))
	}
	return inv, nil
}

// gridID is the caller's id as far as it is proven: that of the peer with its key,
// or of the grid that has never had another key. What certificates claim beyond
// that proves nothing.
func (c caller) gridID() federation.GridID {
	if c.peer != nil {
		return c.peer.ID
	}
	return federation.NewGridID(c.Key)
}

func (p *Pairing) auditRefusal(ctx context.Context, c caller, id []byte) error {
	return p.cfg.Store.Write(ctx, func(tx *sql.Tx) error {
		return store.AppendAudit(tx, "invite-refused", c.source, fmt.Sprintf("grid %s, invite %.32s", c.Grid, hex.EncodeToString(id)))
	})
}

// ownDescriptorOf reads the caller's descriptor and checks that it is its own: a
// grid is introduced by itself only.
func (p *Pairing) ownDescriptorOf(c caller, raw []byte) (*federation.Descriptor, error) {
	d, err := federation.ParseDescriptor(raw, p.cfg.Now())
	if err != nil {
		return nil, badRequest(err)
	}
	if !ed25519.PublicKey(d.Key).Equal(c.Key) || d.Grid != c.Grid {
		return nil, badRequest(errors.New("the descriptor is not that of the grid whose key this session proves"))
	}
	return d, nil
}

// descriptor is POST /v1/descriptor: a peer brings its newest descriptor and asks
// for ours, or the holder of an invite wants to see whom it would accept.
func (p *Pairing) descriptor(r *http.Request, c caller) (any, error) {
	var req descriptorRequest
	if err := readBody(r.Body, &req); err != nil {
		return nil, badRequest(err)
	}
	if len(req.Invite) > 0 {
		inv, err := p.checkInvite(r, c, req.Invite, req.MAC, roleLook)
		if err != nil {
			return nil, err
		}
		own, err := p.cfg.Registry.OwnDescriptorAs(r.Context(), inv.Name)
		return descriptorAnswer{Descriptor: own}, err
	}
	peer := c.peer
	if len(req.Descriptor) > 0 {
		d, err := p.ownDescriptorOf(c, req.Descriptor)
		if err != nil {
			return nil, err
		}
		if _, err := p.cfg.Registry.AcceptDescriptor(r.Context(), req.Descriptor); err != nil {
			return nil, asRefusal(err)
		}
		peer = p.cfg.Registry.Directory().Now().Peer(d.Grid)
	}
	switch {
	case peer == nil:
		return nil, asRefusal(federation.ErrUnknownGrid)
	case peer.State != federation.StateActive && peer.State != federation.StatePaused:
		return nil, &Error{Status: http.StatusForbidden, Message: "not an approved peer here: " + string(peer.State), Hint: "the operator here must run `yggate peer approve`"}
	}
	own, err := p.cfg.Registry.OwnDescriptor(r.Context(), peer.ID)
	return descriptorAnswer{Descriptor: own}, err
}

func badRequest(err error) error {
	return &Error{Status: http.StatusBadRequest, Message: err.Error()}
}

// asRefusal finds the answer for what the registry said. What is not listed is
// our own trouble.
func asRefusal(err error) error {
	var refusal *Error
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.Is(err, federation.ErrUnknownGrid):
		return &Error{Status: http.StatusForbidden, Message: "not a peer here", Hint: "ask the operator for an invite and accept it"}
	case errors.Is(err, federation.ErrBlocked):
		return &Error{Status: http.StatusForbidden, Message: federation.ErrBlocked.Error()}
	case errors.Is(err, federation.ErrPeerNotActive):
		return &Error{Status: http.StatusForbidden, Message: "no longer a peer here", Hint: "ask the operator for a new invite"}
	case errors.Is(err, federation.ErrNameTaken):
		return &Error{Status: http.StatusConflict, Message: "the name in the invite belongs to another peer there", Hint: "ask for an invite under another name"}
	case errors.Is(err, federation.ErrRollback):
		return &Error{Status: http.StatusConflict, Message: federation.ErrRollback.Error(), Hint: "a gateway restored from a backup mends this by itself at its next start"}
	case errors.Is(err, federation.ErrBadDescriptor):
		return badRequest(err)
	}
	return err
}
