package store

import (
	"context"
	"database/sql"
)

// Peering is a row of the table peering: a way into the mesh that came with an
// invite.
type Peering struct {
	URI  string
	Grid string // whose invite named it
}

// Peerings returns all learnt peerings, each as often as there are grids that named it.
func Peerings(ctx context.Context, q Queryer) ([]Peering, error) {
	return collect(ctx, q, func(row scanner) (p Peering, err error) {
		err = row.Scan(&p.URI, &p.Grid)
		return p, err
	}, `SELECT uri, grid FROM peering ORDER BY created, uri`)
}

// PutPeering adds a peering unless it is known from that grid.
func PutPeering(tx *sql.Tx, p Peering) error {
	_, err := tx.Exec(`INSERT INTO peering (uri, grid, created) VALUES (?, ?, ?) ON CONFLICT (uri, grid) DO NOTHING`,
		p.URI, p.Grid, now().Unix())
	return err
}

// DeletePeeringsOf forgets the peerings that a grid's invite named.
func DeletePeeringsOf(tx *sql.Tx, grid string) error {
	_, err := tx.Exec(`DELETE FROM peering WHERE grid = ?`, grid)
	return err
}
