package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"time"
)

// checkAtOnce is the size in bytes below which a database is checked before Open
// returns; it takes about 0.1 s.
const checkAtOnce = 64 << 20

// check looks whether the file is whole (PRAGMA quick_check). A larger one than
// atOnce is checked meanwhile, and Health has the verdict.
func (s *Store) check(ctx context.Context, atOnce int64) error {
	size, err := fileSizes(s.path, s.path+"-wal")
	if err != nil {
		return err
	}
	if size < atOnce {
		close(s.checked)
		return quickCheck(ctx, s.reader, "PRAGMA quick_check(1)")
	}
	ctx, s.stopCheck = context.WithCancel(context.WithoutCancel(ctx))
	s.health.setChecking(true)
	go func() {
		defer close(s.checked)
		s.checkSlowly(ctx)
		s.health.setChecking(false)
	}()
	return nil
}

// checkSlowly checks table by table and rests as long after each as it took, so that
// it has less than half of one processor and of the disk, and holds up the reuse of
// the WAL for no longer than one table takes. Unlike a check of all at once, it leaves
// out the list of free pages.
func (s *Store) checkSlowly(ctx context.Context) {
	tables, err := collect(ctx, s.reader, func(row scanner) (name string, err error) {
		err = row.Scan(&name)
		return name, err
	}, `SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name`)
	for _, table := range tables {
		begun := time.Now()
		// PRAGMA takes no parameters; the names are those of our schema.
		if err = quickCheck(ctx, s.reader, "PRAGMA quick_check("+table+")"); err != nil {
			break
		}
		select {
		case <-time.After(time.Since(begun)):
		case <-ctx.Done():
		}
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	state := stateOf(err, s.path)
	if errors.Is(err, ErrDamaged) {
		state = HealthDamaged
	}
	s.health.set(cmp.Or(state, HealthFailing), err.Error())
}

// quickCheck runs a PRAGMA quick_check, which answers "ok" or what is wrong.
func quickCheck(ctx context.Context, db *sql.DB, pragma string) error {
	var verdict string
	if err := db.QueryRowContext(ctx, pragma).Scan(&verdict); err != nil {
		return fmt.Errorf("integrity check: %w", err)
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: integrity check: %s", ErrDamaged, verdict)
	}
	return nil
}

// fileSizes adds up the sizes of files; one that is not there has none.
func fileSizes(paths ...string) (sum int64, err error) {
	for _, path := range paths {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		sum += info.Size()
	}
	return sum, nil
}

// mend adds to an error of Open what the operator can do about it.
func mend(err error, path string) error {
	err = named(stateOf(err, path), err)
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w; restore %s from the backup, or save what can be read as docs/delivery.md has it", err, path)
	}
	return err
}
