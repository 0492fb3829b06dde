package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"
)

// Invite is a row of the table invite.
type Invite struct {
	ID      []byte
	Key     []byte
	Name    string
	Expect  []string
	Created time.Time
	Expires time.Time
	UsedBy  string    // grid id, "" while unused
	UsedAt  time.Time // zero while unused
	Revoked time.Time // zero unless revoked
}

const inviteColumns = `id, key, name, expect, created, expires, used_by, used_at, revoked`

// Invites returns all invites, newest first.
func Invites(ctx context.Context, q Queryer) ([]Invite, error) {
	return collect(ctx, q, scanInvite, `SELECT `+inviteColumns+` FROM invite ORDER BY created DESC, id`)
}

// InviteByID returns one invite, or sql.ErrNoRows.
func InviteByID(ctx context.Context, q Queryer, id []byte) (Invite, error) {
	return scanInvite(q.QueryRowContext(ctx, `SELECT `+inviteColumns+` FROM invite WHERE id = ?`, id))
}

// OpenInvites counts the invites that can be used at the time at.
func OpenInvites(ctx context.Context, q Queryer, at time.Time) (n int, err error) {
	err = q.QueryRowContext(ctx, `SELECT count(*) FROM invite
		WHERE used_by IS NULL AND revoked IS NULL AND expires > ?`, at.Unix()).Scan(&n)
	return n, err
}

// InsertInvite adds an invite.
func InsertInvite(tx *sql.Tx, i Invite) error {
	expect, err := json.Marshal(i.Expect)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO invite (id, key, name, expect, created, expires) VALUES (?, ?, ?, ?, ?, ?)`,
		i.ID, i.Key, i.Name, string(expect), i.Created.Unix(), i.Expires.Unix())
	return err
}

// UseInvite burns an invite for a grid, in one conditional statement, and says
// whether it did: it must be neither revoked, nor expired at the time at, nor used
// by another grid. The grid that used it may use it again, because it may not have
// heard the first answer.
func UseInvite(tx *sql.Tx, id []byte, grid string, at time.Time) (bool, error) {
	res, err := tx.Exec(`UPDATE invite SET used_by = ?1, used_at = coalesce(used_at, ?2)
		WHERE id = ?3 AND revoked IS NULL AND (used_by = ?1 OR used_by IS NULL AND expires > ?2)`, grid, at.Unix(), id)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// RevokeInvite makes an unused invite worthless and says whether it was unused.
func RevokeInvite(tx *sql.Tx, id []byte, at time.Time) (bool, error) {
	res, err := tx.Exec(`UPDATE invite SET revoked = ? WHERE id = ? AND used_by IS NULL AND revoked IS NULL`, at.Unix(), id)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

// EndInvitesOf makes the invites that a grid has used worthless to it, too.
func EndInvitesOf(tx *sql.Tx, grid string, at time.Time) error {
	_, err := tx.Exec(`UPDATE invite SET revoked = ? WHERE used_by = ? AND revoked IS NULL`, at.Unix(), grid)
	return err
}

// DeleteInvitesBefore forgets invites that expired before the time.
func DeleteInvitesBefore(tx *sql.Tx, t time.Time) error {
	_, err := tx.Exec(`DELETE FROM invite WHERE expires < ?`, t.Unix())
	return err
}

func scanInvite(row scanner) (i Invite, err error) {
	var created, expires int64
	var usedBy sql.NullString
	var usedAt, revoked sql.NullInt64
	var expect string
	if err := row.Scan(&i.ID, &i.Key, &i.Name, &expect, &created, &expires, &usedBy, &usedAt, &revoked); err != nil {
		return i, err
	}
	i.Created, i.Expires, i.UsedBy = fromUnix(created), fromUnix(expires), usedBy.String
	i.UsedAt, i.Revoked = fromUnix(usedAt.Int64), fromUnix(revoked.Int64)
	return i, json.Unmarshal([]byte(expect), &i.Expect)
}
