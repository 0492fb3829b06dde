package pairing

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/tls"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
	"github.com/yggate/yggate/transports"
)

// requestTimeout bounds one request and its answer.
const requestTimeout = 30 * time.Second

// Preview is what the accepting operator is shown before deciding.
type Preview struct {
	Invite     Invite
	Descriptor *federation.Descriptor
}

// SuggestName makes a petname of what the grid calls itself; it may be empty.
func (v *Preview) SuggestName() string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, v.Descriptor.Name)
	name = strings.Trim(name[:min(len(name), 32)], "-")
	if federation.CheckPetname(name) != nil {
		return ""
	}
	return name
}

// Preview asks the inviting grid for its descriptor. Nothing changes on either
// side, and the invite stays open.
func (p *Pairing) Preview(ctx context.Context, dial Dialer, inv Invite) (*Preview, error) {
	fail := func(err error) (*Preview, error) { return nil, fmt.Errorf("look at invite: %w", err) }
	if err := p.acceptable(inv); err != nil {
		return fail(err)
	}
	s, err := reach(ctx, dial, inv.Nodes, inv.Grid)
	if err != nil {
		return fail(err)
	}
	defer s.close()
	mac, err := sessionMAC(inv.macKey(), roleLook, &s.state)
	if err != nil {
		return fail(err)
	}
	var answer descriptorAnswer
	if err := s.post(ctx, PathDescriptor, descriptorRequest{Invite: inv.idBytes(), MAC: mac}, &answer); err != nil {
		return fail(err)
	}
	d, err := p.inviterDescriptor(inv, answer.Descriptor)
	if err != nil {
		return fail(err)
	}
	return &Preview{Invite: inv, Descriptor: d}, nil
}

// Accept uses the invite that was shown: both grids prove to each other that they
// know its secret, and become peers. name is this operator's name for the
// inviting grid, which is active here at once with the domains that were shown;
// there is what the inviting side made of this grid, pending if it must be
// approved there. After an error it may simply be called again.
func (p *Pairing) Accept(ctx context.Context, dial Dialer, shown *Preview, name string) (peer *federation.Peer, there federation.State, err error) {
	fail := func(err error) (*federation.Peer, federation.State, error) {
		return nil, "", fmt.Errorf("accept invite: %w", err)
	}
	inv := shown.Invite
	if err := p.acceptable(inv); err != nil {
		return fail(err)
	}
	if err := p.nameFits(ctx, name, shown.Descriptor.Grid); err != nil {
		return fail(err)
	}
	own, err := p.cfg.Registry.OwnDescriptorTo(ctx, shown.Descriptor.Grid, name)
	if err != nil {
		return fail(err)
	}
	s, err := reach(ctx, dial, inv.Nodes, inv.Grid)
	if err != nil {
		return fail(err)
	}
	defer s.close()
	answer, err := s.pair(ctx, inv, own)
	if err != nil {
		return fail(err)
	}
	d, err := p.inviterDescriptor(inv, answer.Descriptor)
	if err != nil {
		return fail(err)
	}
	peer, err = p.cfg.Registry.Introduce(ctx, federation.Introduction{
		Name: name, Envelope: answer.Descriptor, Confirmed: shown.Descriptor,
		With: func(tx *sql.Tx) error {
			for _, uri := range inv.Peerings {
				if err := store.PutPeering(tx, store.Peering{URI: uri, Grid: string(d.Grid)}); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if err != nil {
		return fail(err)
	}
	return peer, answer.State, nil
}

func (p *Pairing) acceptable(inv Invite) error {
	if inv.Grid.Equal(p.cfg.Key) {
		return errors.New("this grid made the invite itself; give it to the operator of the other grid")
	}
	return inv.Expired(p.cfg.Now())
}

// nameFits finds out before the invite is used what would fail after it.
func (p *Pairing) nameFits(ctx context.Context, name string, grid federation.GridID) error {
	if err := federation.CheckPetname(name); err != nil {
		return err
	}
	row, err := store.PeerByName(ctx, p.cfg.Store.Read(), name)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	case row.Grid != string(grid) && row.State != string(federation.StateRemoved):
		return fmt.Errorf("%q: %w; choose another", name, federation.ErrNameTaken)
	}
	if known := p.cfg.Registry.Directory().Now().Peer(grid); known != nil && known.State == federation.StateBlocked {
		return fmt.Errorf("%w as %q; remove it first", federation.ErrBlocked, known.Name)
	}
	return nil
}

// inviterDescriptor reads the descriptor of the far end, which must be that of the
// grid in the invite.
func (p *Pairing) inviterDescriptor(inv Invite, raw []byte) (*federation.Descriptor, error) {
	d, err := federation.ParseDescriptor(raw, p.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if !ed25519.PublicKey(d.Key).Equal(inv.Grid) {
		return nil, errors.New("answer: the descriptor is not that of the grid in the invite")
	}
	return d, nil
}

// session is one connection to another grid.
type session struct {
	conn  *http.ClientConn
	state tls.ConnectionState
}

// reach dials the nodes of a grid in turn until one answers.
func reach(ctx context.Context, dial Dialer, nodes []transports.Addr, grid ed25519.PublicKey) (*session, error) {
	var errs []error
	for _, addr := range nodes {
		conn, state, err := dial.DialPinned(ctx, addr, grid)
		if err == nil {
			return &session{conn, state}, nil
		}
		errs = append(errs, fmt.Errorf("reach %s: %w", addr.ID(), err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (s *session) close() { _ = s.conn.Close() } // the answer is read; nothing is left to lose

// pair runs POST /v1/pair and checks that the far end knows the secret, too.
func (s *session) pair(ctx context.Context, inv Invite, own []byte) (answer pairAnswer, err error) {
	mac, err := sessionMAC(inv.macKey(), roleAccept, &s.state)
	if err != nil {
		return answer, err
	}
	want, err := sessionMAC(inv.macKey(), roleInvite, &s.state)
	if err != nil {
		return answer, err
	}
	if err := s.post(ctx, PathPair, pairRequest{Invite: inv.idBytes(), MAC: mac, Descriptor: own}, &answer); err != nil {
		return answer, err
	}
	if !hmac.Equal(answer.MAC, want) {
		return answer, errors.New("answer: the far end did not prove that it knows the invite")
	}
	states := []federation.State{federation.StateActive, federation.StatePending, federation.StatePaused}
	if !slices.Contains(states, answer.State) {
		return answer, fmt.Errorf("answer: state %.20q is not known here", answer.State)
	}
	return answer, nil
}

// post sends one request. A refusal of the far end is an *Error.
func (s *session) post(ctx context.Context, path string, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://yggate"+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := s.conn.RoundTrip(req)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ask %s: no answer: %w", path, ctx.Err())
	case err != nil: // a gateway that has blocked a grid refuses its certificate
		return fmt.Errorf("ask %s: %w; the far end may have blocked this grid", path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		refusal := &Error{Status: res.StatusCode}
		if err := readBody(res.Body, refusal); err != nil || federation.CheckText(refusal.Message) != nil || federation.CheckText(refusal.Hint) != nil {
			refusal.Message, refusal.Hint = "no reason given", ""
		}
		return fmt.Errorf("the far end refused (%d %s): %w", res.StatusCode, http.StatusText(res.StatusCode), refusal)
	}
	if err := readBody(res.Body, answer); err != nil {
		return fmt.Errorf("answer to %s: %w", path, err)
	}
	return nil
}
