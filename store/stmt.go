package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// The driver parses SQL anew on each use, which takes as long as a small statement
// itself. What lanes do for each item is therefore prepared once, when the store
// is opened: a writeStmt on the writing connection, a readStmt on the readers.
type (
	writeStmt int
	readStmt  int
)

// The SQL of all prepared statements, by their number.
var writeSQL, readSQL []string

func prepareWrite(query string) writeStmt {
	writeSQL = append(writeSQL, query)
	return writeStmt(len(writeSQL) - 1)
}

func prepareRead(query string) readStmt {
	readSQL = append(readSQL, query)
	return readStmt(len(readSQL) - 1)
}

// in returns a prepared statement for use in tx.
func (s *Store) in(tx *sql.Tx, w writeStmt) *sql.Stmt { return tx.Stmt(s.writes[w]) }

// read returns a prepared statement for use on any reader.
func (s *Store) read(r readStmt) *sql.Stmt { return s.reads[r] }

// prepare prepares all statements. Those of the writer have to be before its first
// transaction, which takes its only connection.
func (s *Store) prepare(ctx context.Context) (err error) {
	if s.writes, err = prepareAll(ctx, s.writer, writeSQL); err != nil {
		return err
	}
	s.reads, err = prepareAll(ctx, s.reader, readSQL)
	return err
}

func prepareAll(ctx context.Context, db *sql.DB, queries []string) ([]*sql.Stmt, error) {
	out := make([]*sql.Stmt, len(queries))
	for i, query := range queries {
		st, err := db.PrepareContext(ctx, query)
		if err != nil {
			return nil, fmt.Errorf("prepare %q: %w", query, err)
		}
		out[i] = st // closed with the database
	}
	return out, nil
}

// collectStmt reads all rows of a prepared query.
func collectStmt[T any](ctx context.Context, st *sql.Stmt, scan func(scanner) (T, error), args ...any) (out []T, err error) {
	rows, err := st.QueryContext(ctx, args...)
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
