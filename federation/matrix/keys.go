package matrix

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"maunium.net/go/mautrix"
	mautrixfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/federation/signutil"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

const (
	// keyTarget is where a server says what its keys are (server-server API,
	// "Publishing Keys").
	keyTarget = "/_matrix/key/v2/server"
	// keyTimeout bounds one fetch, keyPatience how long it waits for a link that is
	// coming up: a peer's requests may arrive before our side of the link is there.
	keyTimeout  = 10 * time.Second
	keyPatience = 5 * time.Second
	// keyPause is between the fetches from one server, but for the first keyBurst:
	// whoever names keys that there are not causes no more of them.
	keyPause = 5 * time.Second
	keyBurst = 2
	// keyLife is for how long keys are used at most, whatever their server says
	// ("Querying Keys Through Another Server", valid_until_ts).
	keyLife = 7 * 24 * time.Hour
	// What an answer may have.
	maxKeyAnswer = 64 << 10
	maxKeys      = 32
)

// ServerKeys is what is known of a server's signing keys.
type ServerKeys struct {
	Server string            `json:"server"`
	Peer   federation.GridID `json:"peer"`
	// Keys that requests are verified with, unpadded base64 by key id.
	Keys map[string]string `json:"keys"`
	// Fetched is when the server last gave them, ValidUntil for how long.
	Fetched    time.Time `json:"fetched,omitzero"`
	ValidUntil time.Time `json:"valid_until,omitzero"`
	// Changed is when the server was last found with other keys, and Before which
	// they had been. Zero: never.
	Changed time.Time         `json:"changed,omitzero"`
	Before  map[string]string `json:"before,omitempty"`
	// Problem says why the last fetch failed; empty if it did not.
	Problem string `json:"problem,omitempty"`
}

// Keys returns what is known of the signing keys of peers' servers, by name.
func (a *Adapter) Keys() []ServerKeys { return a.in.keys.all() }

// keyring holds the keys of peers' servers. They are fetched over the link from the
// peer that holds the server name, and from nobody else.
type keyring struct {
	cfg     *Config
	log     *slog.Logger
	metrics *inMetrics
	now     func() time.Time
	timeout time.Duration // keyTimeout
	waits   time.Duration // keyPatience
	flight  singleflight.Group

	mu      sync.Mutex
	servers map[string]*serverKeys
	seen    *federation.Snapshot // that servers agree with
}

// serverKeys is what is known of one server. Its maps are never changed.
type serverKeys struct {
	row     store.MatrixKeys
	fetches *rate.Limiter
	fetched uint64 // how often a fetch has ended
	failed  error  // the last one has
}

func newKeyring(cfg *Config, log *slog.Logger, m *inMetrics) (*keyring, error) {
	k := &keyring{cfg: cfg, log: log, metrics: m, now: time.Now, timeout: keyTimeout, waits: keyPatience, servers: map[string]*serverKeys{}}
	rows, err := store.AllMatrixKeys(context.Background(), cfg.Store.Read())
	if err != nil {
		return nil, fmt.Errorf("read the keys of peers' servers: %w", err)
	}
	for _, row := range rows {
		k.servers[row.Server] = newServerKeys(row)
	}
	return k, nil
}

func newServerKeys(row store.MatrixKeys) *serverKeys {
	return &serverKeys{row: row, fetches: rate.NewLimiter(rate.Every(keyPause), keyBurst)}
}

// get returns a key of a server that a peer holds, and for renew how often the server
// has been asked by then. The errors are M_UNAUTHORIZED where the server has no such
// key, and M_UNKNOWN (502, 504) where it cannot be asked.
func (k *keyring) get(ctx context.Context, peer *federation.Peer, server string, key id.KeyID) (v id.SigningKey, seen uint64, e *mautrix.RespError) {
	if v, seen = k.known(peer.ID, server, key); v != "" {
		return v, seen, nil
	}
	return k.renew(ctx, peer, server, key, seen)
}

// known returns a key that is valid now, or "", and how often the server has been asked.
func (k *keyring) known(peer federation.GridID, server string, key id.KeyID) (v id.SigningKey, seen uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.serverLocked(peer, server)
	if !k.now().Before(s.row.ValidUntil) {
		return "", s.fetched
	}
	return id.SigningKey(s.row.Keys[string(key)]), s.fetched
}

// serverLocked returns what is known of a server that a peer holds.
func (k *keyring) serverLocked(peer federation.GridID, server string) *serverKeys {
	k.pruneLocked()
	s := k.servers[server]
	if s == nil || s.row.Peer != string(peer) {
		s = newServerKeys(store.MatrixKeys{Server: server, Peer: string(peer)})
		k.servers[server] = s
	}
	return s
}

// pruneLocked forgets the keys of names that their peers have lost. Whoever holds
// such a name next has keys of its own.
func (k *keyring) pruneLocked() {
	now := k.cfg.Directory.Now()
	if k.seen == now {
		return
	}
	k.seen = now
	for name, s := range k.servers {
		if owner := now.Owner(federation.Matrix, name); owner == nil || string(owner.ID) != s.row.Peer {
			delete(k.servers, name)
			go k.forget(name, s.row.Peer)
		}
	}
}

// forget deletes the row of keys that are not used any more.
func (k *keyring) forget(server, peer string) {
	err := k.cfg.Store.Write(context.Background(), func(tx *sql.Tx) error { return store.DeleteMatrixKeys(tx, server, peer) })
	if err != nil && !errors.Is(err, store.ErrClosed) {
		k.log.Warn("the keys of a server that its peer lost stay in the database", "server", server, "err", err)
	}
}

// renew asks a server for its keys, if it was not asked a moment ago, nor since the caller
// looked, and returns one of them as get does. Callers at the same time share one fetch,
// which goes on when they leave.
func (k *keyring) renew(ctx context.Context, peer *federation.Peer, server string, key id.KeyID, seen uint64) (id.SigningKey, uint64, *mautrix.RespError) {
	done := k.flight.DoChan(fmt.Sprint(server, " ", peer.ID, " ", seen), func() (any, error) {
		return nil, k.refresh(context.WithoutCancel(ctx), peer, server, seen)
	})
	var err error
	select {
	case res := <-done:
		err = res.Err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil {
		v, seen := k.known(peer.ID, server, key)
		if v != "" {
			return v, seen, nil
		}
		return "", seen, respond(mUnauthorized, fmt.Sprintf("%s has no key %.80q", server, key))
	}
	e := errHomeserver
	if errors.Is(err, federation.ErrPeerDown) || errors.Is(err, context.DeadlineExceeded) {
		e = errPeerDown
	}
	return "", seen, respond(e, "the keys of "+server+" cannot be had now: "+err.Error())
}

// refresh fetches the keys of a server, unless that was done or has failed a moment
// ago, or since the caller looked: then it returns the error, if any, of that time.
func (k *keyring) refresh(ctx context.Context, peer *federation.Peer, server string, seen uint64) error {
	k.mu.Lock()
	s := k.serverLocked(peer.ID, server)
	if s.fetched > seen || !s.fetches.AllowN(k.now(), 1) {
		defer k.mu.Unlock()
		return s.failed
	}
	k.mu.Unlock()
	row, err := k.fetch(ctx, peer, server)
	result := "ok"
	if err != nil {
		result = "failed"
		k.log.Info("the keys of a server cannot be fetched", "peer", peer.Name, "server", server, "err", err)
	}
	k.metrics.fetches.WithLabelValues(peer.Name, result).Inc()
	return k.take(ctx, peer, server, row, err)
}

// take notes the result of a fetch, on disk, too.
func (k *keyring) take(ctx context.Context, peer *federation.Peer, server string, row store.MatrixKeys, failed error) error {
	k.mu.Lock()
	s := k.serverLocked(peer.ID, server)
	s.fetched++
	if s.failed = failed; failed != nil {
		k.mu.Unlock()
		return failed
	}
	if owner := k.cfg.Directory.Now().Owner(federation.Matrix, server); owner == nil || owner.ID != peer.ID {
		k.mu.Unlock()
		return errors.New("the peer has just lost that server name")
	}
	old := s.row
	row.Changed, row.Before = old.Changed, old.Before
	changed := len(old.Keys) > 0 && !maps.Equal(old.Keys, row.Keys)
	if changed {
		row.Changed, row.Before = row.Fetched, old.Keys
	}
	s.row = row
	k.mu.Unlock()
	if changed {
		k.metrics.changed.WithLabelValues(peer.Name).Inc()
		k.log.Warn("a server has other signing keys than before: if its operator did not replace them, somebody else may answer for it",
			"peer", peer.Name, "server", server, "before", slices.Sorted(maps.Keys(old.Keys)), "now", slices.Sorted(maps.Keys(row.Keys)))
	}
	if err := k.cfg.Store.Write(ctx, func(tx *sql.Tx) error { return store.PutMatrixKeys(tx, row) }); err != nil {
		k.log.Warn("the keys of a server are not stored: a change of them may go unnoticed", "server", server, "err", err)
	}
	return nil
}

// fetch asks a server for its keys.
func (k *keyring) fetch(ctx context.Context, peer *federation.Peer, server string) (row store.MatrixKeys, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.timeout)
	defer cancel()
	res, err := k.ask(ctx, peer, server)
	if err != nil {
		return row, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return row, fmt.Errorf("it answers with status %d", res.StatusCode)
	}
	raw, err := readAnswer(res, maxKeyAnswer)
	if err != nil {
		return row, fmt.Errorf("read its answer: %w", err)
	}
	now := k.now()
	keys, until, err := parseServerKeys(raw, server, now)
	if err != nil {
		return row, err
	}
	return store.MatrixKeys{Server: server, Peer: string(peer.ID), Keys: keys, Fetched: now, ValidUntil: until}, nil
}

// ask waits a while for a link that is down.
func (k *keyring) ask(ctx context.Context, peer *federation.Peer, server string) (*http.Response, error) {
	until := time.Now().Add(k.waits)
	for pause := 100 * time.Millisecond; ; pause *= 2 {
		res, err := k.cfg.Links.RoundTrip(ctx, peer.ID, &http.Request{
			Method: http.MethodGet, URL: &url.URL{Scheme: "https", Host: "peer", Path: Endpoint},
			Header: http.Header{headerTarget: {keyTarget}, headerServer: {server}},
		})
		if err == nil || !errors.Is(err, federation.ErrPeerDown) || time.Until(until) < pause {
			return res, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// parseServerKeys reads what a server says of its keys. All of it must be signed
// by each of them, and be about that server: its peer's gateway could give us
// anything.
func parseServerKeys(raw []byte, server string, now time.Time) (keys map[string]string, until time.Time, err error) {
	fail := func(format string, args ...any) (map[string]string, time.Time, error) {
		return nil, time.Time{}, fmt.Errorf("its answer: "+format, args...)
	}
	if _, e := checkJSON(raw); e != nil {
		return fail("%s", e.Err)
	}
	var r mautrixfed.ServerKeyResponse
	if err := json.Unmarshal(raw, &r); err != nil {
		return fail("%w", err)
	}
	until = r.ValidUntilTS.Time
	switch {
	case r.ServerName != server:
		return fail("it is of the server %.260q", r.ServerName)
	case len(r.VerifyKeys) > maxKeys:
		return fail("%d keys are more than a server has", len(r.VerifyKeys))
	case !until.After(now):
		return fail("the keys have expired at %s; see to the clocks", until.UTC().Format(time.RFC3339))
	}
	if most := now.Add(keyLife); until.After(most) {
		until = most
	}
	keys = map[string]string{}
	for keyID, key := range r.VerifyKeys {
		if algorithm, _ := keyID.Parse(); algorithm != id.KeyAlgorithmEd25519 {
			continue
		}
		// ed25519.Verify panics on any other length.
		if pub, err := key.Decode(); err != nil || len(pub) != 32 {
			return fail("the key %.80q is not 32 bytes of unpadded base64", keyID)
		}
		if err := signutil.VerifyJSON(server, keyID, key.Key, json.RawMessage(raw)); err != nil {
			return fail("the signature by its key %.80q: %w", keyID, err)
		}
		keys[string(keyID)] = string(key.Key)
	}
	if len(keys) == 0 {
		return fail("it has no ed25519 key")
	}
	return keys, until, nil
}

func (k *keyring) all() []ServerKeys {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pruneLocked()
	out := make([]ServerKeys, 0, len(k.servers))
	for name, s := range k.servers {
		v := ServerKeys{
			Server: name, Peer: federation.GridID(s.row.Peer), Keys: maps.Clone(s.row.Keys), Fetched: s.row.Fetched,
			ValidUntil: s.row.ValidUntil, Changed: s.row.Changed, Before: maps.Clone(s.row.Before),
		}
		if s.failed != nil {
			v.Problem = s.failed.Error()
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b ServerKeys) int { return cmp.Compare(a.Server, b.Server) })
	return out
}
