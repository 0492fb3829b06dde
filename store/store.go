// Package store keeps the whole state of a gateway in one SQLite database.
//
// One connection writes: Write collects what callers want written into one
// transaction (group commit), which is the main lever of speed when each commit
// is an fsync. Any number of connections read, see Read. The queries stand one
// file per table family; those that change rows take the transaction alone, and
// those that read also run on the readers.
package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

// Options say where the database is.
type Options struct {
	// Path is the database file. It is created with mode 0600, its directory
	// with 0700, where they do not exist.
	Path string
	// Readers is the number of reading connections, 4 by default.
	Readers int

	checkAtOnce int64 // for tests; see the constant
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	writer *sql.DB // one connection, which only loop uses after Open
	reader *sql.DB

	writes []*sql.Stmt // by writeStmt
	reads  []*sql.Stmt // by readStmt

	jobs    chan *job
	stop    chan struct{}
	stopped chan struct{}

	path   string
	health health
	count  counters

	stopCheck context.CancelFunc
	checked   chan struct{} // closed when the integrity check has ended
}

// ErrClosed is what Write returns after Close.
var ErrClosed = errors.New("the store is closed")

// Open opens the database, creates it where there is none, and brings its schema
// up to date. It refuses a database of a newer yggate, one of another program,
// and a damaged one (ErrDamaged).
func Open(ctx context.Context, o Options) (*Store, error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", o.Path, mend(err, o.Path))
	}
	go s.loop()
	return s, nil
}

func open(ctx context.Context, o Options) (_ *Store, err error) {
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, err
	}
	if err := createFile(path); err != nil {
		return nil, err
	}
	s := &Store{
		path:    path,
		health:  health{now: Health{State: HealthOK, Since: now()}},
		jobs:    make(chan *job),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),

		stopCheck: func() {},
		checked:   make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeDBs())
		}
	}()
	if s.writer, err = sql.Open("sqlite", dsn(path, "rw", "foreign_keys(1)", "synchronous(FULL)")); err != nil {
		return nil, err
	}
	s.writer.SetMaxOpenConns(1)
	if err := setWAL(ctx, s.writer); err != nil {
		return nil, err
	}
	if err := migrate(ctx, s.writer, migrations); err != nil {
		return nil, err
	}
	if s.reader, err = sql.Open("sqlite", dsn(path, "ro", "query_only(1)")); err != nil {
		return nil, err
	}
	readers := o.Readers
	if readers <= 0 {
		readers = 4
	}
	s.reader.SetMaxOpenConns(readers)
	s.reader.SetMaxIdleConns(readers)
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	return s, s.check(ctx, cmp.Or(o.checkAtOnce, checkAtOnce))
}

// createFile makes the file that SQLite would make itself, but readable by no
// one else; SQLite gives its -wal and -shm files the same mode.
func createFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		return f.Close()
	}
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("mode %04o lets others read it; run: chmod 600 %s", perm, path)
	}
	return nil
}

func dsn(path, mode string, pragmas ...string) string {
	q := url.Values{"mode": {mode}, "_txlock": {"immediate"}, "_pragma": append([]string{"busy_timeout(5000)"}, pragmas...)}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

// setWAL sets the journal mode where it is not WAL yet. It is not set again on
// every open because LiteFS watches that change closely: going back from WAL
// breaks each replica.
func setWAL(ctx context.Context, db *sql.DB) error {
	var mode string
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&mode); err != nil {
		return err
	}
	if mode == "wal" {
		return nil
	}
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return fmt.Errorf("set journal mode: %w", err)
	}
	if mode != "wal" {
		return fmt.Errorf("set journal mode: SQLite stays in %q; the file system may lack shared memory", mode)
	}
	return nil
}

// Read returns the reading connections. They see what is committed and refuse to
// write.
func (s *Store) Read() *sql.DB { return s.reader }

// Close waits for the writes that were accepted and closes the database.
func (s *Store) Close() error {
	close(s.stop)
	<-s.stopped
	s.stopCheck()
	<-s.checked
	if err := s.closeDBs(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// closeDBs closes the readers first, so that the writer is the last connection,
// which folds the WAL into the file.
func (s *Store) closeDBs() error {
	var err error
	for _, db := range []*sql.DB{s.reader, s.writer} {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
	}
	return err
}

// Queryer reads rows: the readers, or the transaction of a Write.
type Queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// NextEpoch returns a number higher than any it returned before, also after the
// database was restored from a backup (so long as the clock goes forward):
// max(last + 1, Unix seconds). It is on disk before it is returned.
func (s *Store) NextEpoch(ctx context.Context) (uint64, error) {
	var epoch int64
	err := s.Write(ctx, func(tx *sql.Tx) error {
		var last int64
		if err := tx.QueryRow(`SELECT value FROM meta WHERE key = 'epoch'`).Scan(&last); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		epoch = max(last+1, now().Unix())
		_, err := tx.Exec(`INSERT INTO meta (key, value) VALUES ('epoch', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, epoch)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("take epoch: %w", err)
	}
	return uint64(epoch), nil
}
