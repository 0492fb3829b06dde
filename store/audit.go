package store

import (
	"context"
	"database/sql"
	"time"
)

// maxAudit bounds the audit table: what strangers can make it record must not fill
// the disk. The oldest rows go first.
const maxAudit = 100_000

// AuditEntry is a row of the table audit: something that an operator may want to
// find out about later.
type AuditEntry struct {
	ID     int64     `json:"id"`
	At     time.Time `json:"at"`
	Event  string    `json:"event"`
	Peer   string    `json:"peer,omitempty"` // grid id or node address
	Detail string    `json:"detail,omitempty"`
}

// AppendAudit records an event.
func AppendAudit(tx *sql.Tx, event, peer, detail string) error {
	res, err := tx.Exec(`INSERT INTO audit (at, event, peer, detail) VALUES (?, ?, ?, ?)`, now().Unix(), event, peer, detail)
	if err != nil {
		return err
	}
	id, err := res.LastInsertId()
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM audit WHERE id <= ?`, id-maxAudit)
	return err
}

// Audit returns the newest entries, newest first.
func Audit(ctx context.Context, q Queryer, limit int) ([]AuditEntry, error) {
	return collect(ctx, q, func(row scanner) (e AuditEntry, err error) {
		var at int64
		err = row.Scan(&e.ID, &at, &e.Event, &e.Peer, &e.Detail)
		e.At = time.Unix(at, 0)
		return e, err
	}, `SELECT id, at, event, peer, detail FROM audit ORDER BY id DESC LIMIT ?`, limit)
}
