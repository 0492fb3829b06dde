package store

import (
	"context"
	"database/sql"
	"time"
)

// OwnDescriptor is the one row of the table own_descriptor.
type OwnDescriptor struct {
	Grid   string
	Rot    int
	Seq    uint64
	Digest []byte // of everything in it but seq and times
	Issued time.Time
}

// Own returns what this grid last said about itself, or sql.ErrNoRows.
func Own(ctx context.Context, q Queryer) (d OwnDescriptor, err error) {
	var seq, issued int64
	err = q.QueryRowContext(ctx, `SELECT grid, rot, seq, digest, issued FROM own_descriptor WHERE id = 1`).
		Scan(&d.Grid, &d.Rot, &seq, &d.Digest, &issued)
	d.Seq, d.Issued = uint64(seq), time.Unix(issued, 0)
	return d, err
}

// PutOwn replaces what this grid says about itself.
func PutOwn(tx *sql.Tx, d OwnDescriptor) error {
	_, err := tx.Exec(`INSERT INTO own_descriptor (id, grid, rot, seq, digest, issued) VALUES (1, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET grid = excluded.grid, rot = excluded.rot, seq = excluded.seq,
			digest = excluded.digest, issued = excluded.issued`,
		d.Grid, d.Rot, int64(d.Seq), d.Digest, d.Issued.Unix())
	return err
}
