package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	_ "modernc.org/sqlite" // registers the driver "sqlite"
)

// checks looks whether a database that its gateway left behind is whole. What is
// looked at is a copy, as a backup of a dead machine's disk would be, so that the
// gateway need not wait for the verdict to start again.
type checks struct {
	dir, database string

	mu    sync.Mutex // held while a copy is being looked at
	done  int
	fault error
}

func newChecks(dir, database string) (*checks, error) {
	return &checks{dir: dir, database: database}, os.MkdirAll(dir, 0o700)
}

// take copies the database, which nobody may be writing, and has the copy looked
// at. It waits for the look at the copy before, whose error it returns.
func (c *checks) take(ctx context.Context) error {
	c.mu.Lock()
	if c.fault != nil {
		defer c.mu.Unlock()
		return c.fault
	}
	if err := c.copy(); err != nil {
		defer c.mu.Unlock()
		return fmt.Errorf("copy the database of a killed gateway: %w", err)
	}
	go func() {
		defer c.mu.Unlock()
		c.done++
		if err := whole(ctx, filepath.Join(c.dir, filepath.Base(c.database))); err != nil && ctx.Err() == nil {
			c.fault = fmt.Errorf("check %d of %s: %w (the copy is in %s)", c.done, c.database, err, c.dir)
		}
	}()
	return nil
}

// wait returns the verdict of all checks.
func (c *checks) wait() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fault
}

// number is how many checks were made.
func (c *checks) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done
}

// copy copies the database and its write-ahead log; what SQLite shares beside them
// is made anew.
func (c *checks) copy() error {
	base := filepath.Base(c.database)
	if err := os.Remove(filepath.Join(c.dir, base+"-shm")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, suffix := range []string{"", "-wal"} {
		to := filepath.Join(c.dir, base+suffix)
		err := copyFile(to, c.database+suffix)
		if errors.Is(err, os.ErrNotExist) && suffix != "" {
			err = os.Remove(to) // that of the copy before
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// whole says what is wrong with a database, if anything.
func whole(ctx context.Context, file string) error {
	db, err := sql.Open("sqlite", "file:"+file+"?mode=rw")
	if err != nil {
		return err
	}
	defer db.Close()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA integrity_check").Scan(&verdict); err != nil {
		return fmt.Errorf("integrity check: %w", err)
	}
	if verdict != "ok" {
		return fmt.Errorf("integrity check: %s", verdict)
	}
	return nil
}

// truncateLog moves what is in the write-ahead log of a database in use to where
// it belongs, and leaves the log empty.
func truncateLog(ctx context.Context, file string) error {
	db, err := sql.Open("sqlite", "file:"+file+"?mode=rw&_pragma=busy_timeout(500)")
	if err != nil {
		return err
	}
	defer db.Close()
	var busy, inLog, moved int
	if err := db.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &inLog, &moved); err != nil {
		return fmt.Errorf("empty the log of %s: %w", file, err)
	}
	if busy != 0 {
		return fmt.Errorf("empty the log of %s: it is in use", file)
	}
	return nil
}
