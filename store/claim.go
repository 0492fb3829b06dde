package store

import (
	"context"
	"database/sql"
)

// Claim is a row of the table domain_claim.
type Claim struct {
	Proto  string
	Domain string
	Grid   string
	Status string
}

const claimColumns = `proto, domain, grid, status`

// Claims returns all claims, by protocol and domain, the active one first.
func Claims(ctx context.Context, q Queryer) ([]Claim, error) {
	return collect(ctx, q, scanClaim, `SELECT `+claimColumns+` FROM domain_claim
		ORDER BY proto, domain, status != 'active', created, grid`)
}

// ClaimsOf returns the claims of one grid.
func ClaimsOf(ctx context.Context, q Queryer, grid string) ([]Claim, error) {
	return collect(ctx, q, scanClaim, `SELECT `+claimColumns+` FROM domain_claim WHERE grid = ?
		ORDER BY proto, domain`, grid)
}

// ActiveClaim returns the active claim on a domain, or sql.ErrNoRows.
func ActiveClaim(ctx context.Context, q Queryer, proto, domain string) (Claim, error) {
	return scanClaim(q.QueryRowContext(ctx, `SELECT `+claimColumns+` FROM domain_claim
		WHERE proto = ? AND domain = ? AND status = 'active'`, proto, domain))
}

// PutClaim inserts a claim or changes its status. A second active claim on a
// domain is an error of the unique index.
func PutClaim(tx *sql.Tx, c Claim) error {
	_, err := tx.Exec(`INSERT INTO domain_claim (proto, domain, grid, status, created) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (proto, domain, grid) DO UPDATE SET status = excluded.status`,
		c.Proto, c.Domain, c.Grid, c.Status, now().Unix())
	return err
}

// DeleteClaim gives one claim up.
func DeleteClaim(tx *sql.Tx, proto, domain, grid string) error {
	_, err := tx.Exec(`DELETE FROM domain_claim WHERE proto = ? AND domain = ? AND grid = ?`, proto, domain, grid)
	return err
}

// DeleteClaimsOf gives up all claims of a grid, and forgets what it released.
func DeleteClaimsOf(tx *sql.Tx, grid string) error {
	_, err := tx.Exec(`DELETE FROM domain_claim WHERE grid = ?`, grid)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM domain_released WHERE grid = ?`, grid)
	return err
}

// ReleaseClaim gives one claim up and remembers it, with the last keep that the
// grid released.
func ReleaseClaim(tx *sql.Tx, c Claim, keep int) error {
	if err := DeleteClaim(tx, c.Proto, c.Domain, c.Grid); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT OR REPLACE INTO domain_released (grid, proto, domain, released) VALUES (?, ?, ?, ?)`,
		c.Grid, c.Proto, c.Domain, now().Unix()); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM domain_released WHERE grid = ? AND (proto, domain) NOT IN
		(SELECT proto, domain FROM domain_released WHERE grid = ? ORDER BY released DESC, proto, domain LIMIT ?)`, c.Grid, c.Grid, keep)
	return err
}

// TakeReleased says whether the grid released the domain, and forgets that.
func TakeReleased(tx *sql.Tx, proto, domain, grid string) (bool, error) {
	res, err := tx.Exec(`DELETE FROM domain_released WHERE grid = ? AND proto = ? AND domain = ?`, grid, proto, domain)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// ForgetReleased forgets who has released the domain.
func ForgetReleased(tx *sql.Tx, proto, domain string) error {
	_, err := tx.Exec(`DELETE FROM domain_released WHERE proto = ? AND domain = ?`, proto, domain)
	return err
}

func scanClaim(row scanner) (c Claim, err error) {
	err = row.Scan(&c.Proto, &c.Domain, &c.Grid, &c.Status)
	return c, err
}
