package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Errors that Write and the reading methods wrap, by the state of the database.
var (
	// ErrDiskFull: there is no room for the write. It passes once there is.
	ErrDiskFull = errors.New("the disk is full")
	// ErrLocked: another program held the database for longer than is waited.
	ErrLocked = errors.New("the database is locked by another program")
	// ErrDamaged: the file is not what SQLite wrote. Nothing more is written
	// until the store is opened again with a sound file.
	ErrDamaged = errors.New("the database is damaged")
)

// HealthState is what the last commits say about the database.
type HealthState string

// The states.
const (
	HealthOK      HealthState = "ok"
	HealthFull    HealthState = "full"
	HealthLocked  HealthState = "locked"
	HealthDamaged HealthState = "damaged" // stays until the store is opened again
	HealthFailing HealthState = "failing" // input and output fail, or the file is read-only
)

// Health is how the database is. A commit that succeeds makes it ok again.
type Health struct {
	State    HealthState
	Since    time.Time // when this state began
	Err      string    // of the newest failure, "" when ok
	Checking bool      // the integrity check that Open began still runs
}

// health keeps a Health.
type health struct {
	mu  sync.Mutex
	now Health
}

// Health returns how the database is.
func (s *Store) Health() Health {
	s.health.mu.Lock()
	defer s.health.mu.Unlock()
	return s.health.now
}

// Probe writes what nobody reads, so that Health is right where nothing else is
// written.
func (s *Store) Probe(ctx context.Context) error {
	return s.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO meta (key, value) VALUES ('probe', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, now().UnixNano())
		return err
	})
}

func (h *health) set(state HealthState, err string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now.State == HealthDamaged {
		return
	}
	if h.now.State != state {
		h.now.State, h.now.Since = state, now()
	}
	h.now.Err = err
}

func (h *health) setChecking(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now.Checking = on
}

// damaged returns what to answer writes with while the database is damaged.
func (h *health) damaged() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now.State != HealthDamaged {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrDamaged, h.now.Err)
}

// saw takes note of the state that an error tells of and wraps the error with it.
func (s *Store) saw(err error) error {
	state := stateOf(err, s.path)
	if state == "" {
		return err
	}
	s.health.set(state, err.Error())
	return named(state, err)
}

// sawRead is saw for readers. How else a read fails says nothing about writes.
func (s *Store) sawRead(err error) error {
	if stateOf(err, s.path) != HealthDamaged {
		return err
	}
	return s.saw(err)
}

// named wraps an error with that of its state.
func named(state HealthState, err error) error {
	switch state {
	case HealthFull:
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	case HealthLocked:
		return fmt.Errorf("%w: %w", ErrLocked, err)
	case HealthDamaged:
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	default:
		return err
	}
}

// stateOf returns the state of the database at path that an error tells of, or ""
// where it tells of none: of a constraint, say.
func stateOf(err error, path string) HealthState {
	var se *sqlite.Error
	if !errors.As(err, &se) {
		return ""
	}
	switch se.Code() & 0xff { // without the extended code
	case sqlite3.SQLITE_FULL:
		return HealthFull
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return HealthLocked
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return HealthDamaged
	case sqlite3.SQLITE_IOERR:
		// SQLite calls it full only where a write says so: not where a sync
		// does, nor where it is a quota that is used up.
		if diskFull(path) {
			return HealthFull
		}
		return HealthFailing
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM:
		return HealthFailing
	default:
		return ""
	}
}

// diskFull tries whether there is room beside the database, because the driver
// does not tell the system's error number.
func diskFull(path string) bool {
	f, err := os.CreateTemp(filepath.Dir(path), ".room-*")
	if err == nil {
		_, err = f.Write(make([]byte, 64<<10))
		err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
