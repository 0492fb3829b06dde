package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
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

// rowsAtOnce is how many rows one statement inserts, where there are as many; that
// takes a fifth off the time of single ones.
const rowsAtOnce = 16

// insertStmt inserts rows.
type insertStmt struct {
	columns   int
	one, many writeStmt
}

// prepareInsert is for INSERT INTO table (columns) VALUES ... tail.
func prepareInsert(table, columns, tail string) insertStmt {
	n := strings.Count(columns, ",") + 1
	row := "(?" + strings.Repeat(", ?", n-1) + ")"
	head := "INSERT INTO " + table + " (" + columns + ") VALUES " + row
	return insertStmt{
		columns: n,
		one:     prepareWrite(head + tail),
		many:    prepareWrite(head + strings.Repeat(", "+row, rowsAtOnce-1) + tail),
	}
}

// insert inserts n rows in order; add appends the values of row i.
func (s *Store) insert(tx *sql.Tx, st insertStmt, n int, add func(values []any, i int) []any) error {
	one, many := s.in(tx, st.one), s.in(tx, st.many)
	values := make([]any, 0, rowsAtOnce*st.columns)
	for i := 0; i < n; {
		use, step := one, 1
		if n-i >= rowsAtOnce {
			use, step = many, rowsAtOnce
		}
		values = values[:0]
		for range step {
			values = add(values, i)
			i++
		}
		if _, err := use.Exec(values...); err != nil {
			return err
		}
	}
	return nil
}

// collectRead reads all rows of a prepared query on a reader.
func collectRead[T any](ctx context.Context, s *Store, r readStmt, scan func(scanner) (T, error), args ...any) (out []T, err error) {
	err = s.eachRead(ctx, r, func(row scanner) (more bool, err error) {
		v, err := scan(row)
		out = append(out, v)
		return true, err
	}, args...)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// readOne reads the only row of a prepared query on a reader; sql.ErrNoRows where
// there is none.
func readOne[T any](ctx context.Context, s *Store, r readStmt, scan func(scanner) (T, error), args ...any) (T, error) {
	v, err := scan(s.read(r).QueryRowContext(ctx, args...))
	return v, s.sawRead(err)
}

// eachRead gives the rows of a prepared query on a reader to fn while it wants more.
func (s *Store) eachRead(ctx context.Context, r readStmt, fn func(scanner) (more bool, err error), args ...any) (err error) {
	defer func() { err = s.sawRead(err) }()
	rows, err := s.read(r).QueryContext(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if more, err := fn(rows); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}
