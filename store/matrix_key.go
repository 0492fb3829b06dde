package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// MatrixKeys is a row of the table matrix_key: the signing keys that a Matrix
// server of a peer was last seen with.
type MatrixKeys struct {
	Server     string
	Peer       string
	Keys       map[string]string // by key id
	Fetched    time.Time
	ValidUntil time.Time
	Changed    time.Time         // when the keys were last replaced by other ones; zero: never
	Before     map[string]string // and what they were
}

// AllMatrixKeys returns the keys of all servers, by name.
func AllMatrixKeys(ctx context.Context, q Queryer) ([]MatrixKeys, error) {
	return collect(ctx, q, scanMatrixKeys, `SELECT server, peer, keys, fetched, valid_until, changed, before
		FROM matrix_key ORDER BY server`)
}

// PutMatrixKeys inserts the keys of a server or replaces its row.
func PutMatrixKeys(tx *sql.Tx, k MatrixKeys) error {
	keys, err := json.Marshal(noNil(k.Keys))
	if err != nil {
		return err
	}
	before, err := json.Marshal(noNil(k.Before))
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT OR REPLACE INTO matrix_key (server, peer, keys, fetched, valid_until, changed, before)
		VALUES (?, ?, ?, ?, ?, ?, ?)`,
		k.Server, k.Peer, string(keys), millis(k.Fetched), millis(k.ValidUntil), millis(k.Changed), string(before))
	return err
}

// DeleteMatrixKeys forgets the keys of a server, if they are those of a peer.
func DeleteMatrixKeys(tx *sql.Tx, server, peer string) error {
	_, err := tx.Exec(`DELETE FROM matrix_key WHERE server = ? AND peer = ?`, server, peer)
	return err
}

func scanMatrixKeys(row scanner) (k MatrixKeys, err error) {
	var keys, before string
	var fetched, until, changed int64
	if err := row.Scan(&k.Server, &k.Peer, &keys, &fetched, &until, &changed, &before); err != nil {
		return k, err
	}
	k.Fetched, k.ValidUntil, k.Changed = fromMillis(fetched), fromMillis(until), fromMillis(changed)
	if err := json.Unmarshal([]byte(keys), &k.Keys); err != nil {
		return k, fmt.Errorf("matrix_key %q: keys: %w", k.Server, err)
	}
	if err := json.Unmarshal([]byte(before), &k.Before); err != nil {
		return k, fmt.Errorf("matrix_key %q: before: %w", k.Server, err)
	}
	return k, nil
}

func noNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
