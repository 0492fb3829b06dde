package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// now is the clock of rows that the store stamps itself; tests replace it.
var now = time.Now

// Peer is a row of the table peer.
type Peer struct {
	Grid         string
	Name         string
	Key          []byte
	State        string
	Created      time.Time
	LastHeard    time.Time // zero: never
	Rot          int
	Seq          uint64
	Envelope     []byte
	IntroducedBy string // "": by the operator
}

const peerColumns = `grid, name, key, state, created, last_heard, rot, seq, envelope, introduced_by`

// Peers returns all peers, by name, tombstones included.
func Peers(ctx context.Context, q Queryer) ([]Peer, error) {
	return collect(ctx, q, scanPeer, `SELECT `+peerColumns+` FROM peer ORDER BY name, created, grid`)
}

// PeerByGrid returns the peer with that grid id, or sql.ErrNoRows.
func PeerByGrid(ctx context.Context, q Queryer, grid string) (Peer, error) {
	return scanPeer(q.QueryRowContext(ctx, `SELECT `+peerColumns+` FROM peer WHERE grid = ?`, grid))
}

// PeerByName returns the peer with that name, one that was not removed if there
// is one, or sql.ErrNoRows.
func PeerByName(ctx context.Context, q Queryer, name string) (Peer, error) {
	return scanPeer(q.QueryRowContext(ctx, `SELECT `+peerColumns+` FROM peer WHERE name = ?
		ORDER BY state = 'removed', created DESC LIMIT 1`, name))
}

// PutPeer inserts the peer or replaces all of its row but LastHeard.
func PutPeer(tx *sql.Tx, p Peer) error {
	_, err := tx.Exec(`INSERT INTO peer (grid, name, key, state, created, rot, seq, envelope, introduced_by)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, nullif(?, ''))
		ON CONFLICT (grid) DO UPDATE SET name = excluded.name, key = excluded.key, state = excluded.state,
			created = excluded.created, rot = excluded.rot, seq = excluded.seq, envelope = excluded.envelope,
			introduced_by = excluded.introduced_by`,
		p.Grid, p.Name, p.Key, p.State, p.Created.Unix(), p.Rot, int64(p.Seq), p.Envelope, p.IntroducedBy)
	return err
}

// SetHeard notes when something was last heard from the peer. The newest word counts: what
// a clock that was ahead has left would stay for as long as it was.
func SetHeard(tx *sql.Tx, grid string, at time.Time) error {
	_, err := tx.Exec(`UPDATE peer SET last_heard = ? WHERE grid = ?`, at.Unix(), grid)
	return err
}

type scanner interface{ Scan(dest ...any) error }

func scanPeer(row scanner) (p Peer, err error) {
	var created, heard, seq int64
	var by sql.NullString
	err = row.Scan(&p.Grid, &p.Name, &p.Key, &p.State, &created, &heard, &p.Rot, &seq, &p.Envelope, &by)
	p.Created, p.LastHeard, p.Seq, p.IntroducedBy = fromUnix(created), fromUnix(heard), uint64(seq), by.String
	return p, err
}

func fromUnix(sec int64) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(sec, 0)
}

// collect reads all rows of a query.
func collect[T any](ctx context.Context, q Queryer, scan func(scanner) (T, error), query string, args ...any) (out []T, err error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}
