package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of 1 MiB.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m")
	if errors.Is(err, syscall.EPERM) {
		t.Skip("a full disk takes a file system of its own, and only root can mount one: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fillDisk takes what room there is in a directory.
func fillDisk(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	if err := os.WriteFile(name, make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk took 2 MiB more: %v", err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

func wantHealth(t *testing.T, s *Store, want HealthState) Health {
	t.Helper()
	got := s.Health()
	if got.State != want || (got.Err == "") != (want == HealthOK) || got.Since.IsZero() {
		t.Errorf("health %+v, want %s", got, want)
	}
	return got
}

// TestFullDisk fills a real file system. What fails must fail whole, be said, and
// leave the writer usable once there is room.
func TestFullDisk(t *testing.T) {
	dir := smallDisk(t)
	s := openAt(t, filepath.Join(dir, "db"))
	large := func(name string) func(*sql.Tx) error { return note(name + strings.Repeat("x", 64<<10)) }
	write(t, s, large("before"))
	free := fillDisk(t, dir)
	for _, jobs := range [][]func(*sql.Tx) error{
		{large("lost")},
		{note("lost"), large("lost"), note("lost")},
	} {
		for i, err := range batch(t, s, jobs...) {
			if !errors.Is(err, ErrDiskFull) {
				t.Errorf("write %d of %d: %v", i, len(jobs), err)
			}
		}
	}
	first := wantHealth(t, s, HealthFull)
	if err := s.Write(t.Context(), large("lost")); !errors.Is(err, ErrDiskFull) {
		t.Errorf("got %v", err)
	}
	if again := wantHealth(t, s, HealthFull); !again.Since.Equal(first.Since) {
		t.Errorf("full since %v, and then since %v", first.Since, again.Since)
	}
	if got := s.Stats(); got.Failed != 3 || got.Commits != 1 {
		t.Errorf("stats %+v", got)
	}
	if got := notes(t, s); len(got) != 1 {
		t.Errorf("%d rows are readable, want the first", len(got))
	}
	free()
	write(t, s, large("after"))
	wantHealth(t, s, HealthOK)
	if got := notes(t, s); len(got) != 2 || !strings.HasPrefix(got[1], "after") {
		t.Errorf("%d rows are there, want 2", len(got))
	}
}

// TestFullDiskWithinAWrite: a transaction larger than the page cache meets the full
// disk before its commit, and SQLite undoes it in the middle.
func TestFullDiskWithinAWrite(t *testing.T) {
	dir := smallDisk(t)
	s := openAt(t, filepath.Join(dir, "db"))
	if _, err := s.writer.Exec("PRAGMA cache_size = 10"); err != nil {
		t.Fatal(err)
	}
	ran := 0
	errs := batch(t, s, note("lost"), func(tx *sql.Tx) error {
		for range 100 {
			if err := note(strings.Repeat("x", 64<<10))(tx); err != nil {
				return err
			}
		}
		return nil
	}, func(tx *sql.Tx) error { ran++; return note("lost")(tx) })
	for i, err := range errs {
		if !errors.Is(err, ErrDiskFull) {
			t.Errorf("write %d: %v", i, err)
		}
	}
	if ran != 0 {
		t.Errorf("the last write ran %d times on a full disk", ran)
	}
	wantHealth(t, s, HealthFull)
	write(t, s, note("after")) // in the room that the WAL took
	wantHealth(t, s, HealthOK)
	if got := notes(t, s); len(got) != 1 || got[0] != "after" {
		t.Errorf("kept %.80q", got)
	}
}

func TestDiskFull(t *testing.T) {
	if diskFull(filepath.Join(t.TempDir(), "db")) {
		t.Error("there is room")
	}
	dir := smallDisk(t)
	path := filepath.Join(dir, "db")
	if diskFull(path) {
		t.Error("there is room on the small disk")
	}
	fillDisk(t, dir)
	if !diskFull(path) {
		t.Error("there is no room")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".room*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openAt(t, path)
	if _, err := s.writer.Exec("PRAGMA busy_timeout = 20"); err != nil {
		t.Fatal(err)
	}
	other, err := rawDB(t, path).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	exec := func(query string) {
		if _, err := other.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN IMMEDIATE")
	if err := s.Write(t.Context(), note("lost")); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	wantHealth(t, s, HealthLocked)
	exec("ROLLBACK")
	write(t, s, note("after"))
	wantHealth(t, s, HealthOK)
	if got := notes(t, s); len(got) != 1 || got[0] != "after" {
		t.Errorf("kept %q", got)
	}
}

func TestFailing(t *testing.T) {
	s := openTemp(t)
	pragma := func(p string) {
		if _, err := s.writer.Exec("PRAGMA " + p); err != nil {
			t.Fatal(err)
		}
	}
	pragma("query_only = 1")
	if err := s.Write(t.Context(), note("lost")); err == nil {
		t.Error("wrote to a database that is read-only")
	}
	wantHealth(t, s, HealthFailing)
	pragma("query_only = 0")
	write(t, s, note("after"))
	wantHealth(t, s, HealthOK)
}

// TestOwnErrorsAreNotThoseOfTheDatabase: a constraint that a write violates says
// nothing about the disk.
func TestOwnErrorsAreNotThoseOfTheDatabase(t *testing.T) {
	s := openTemp(t)
	errs := batch(t, s, note("a"), func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO own_descriptor VALUES (2, '', 0, 0, x'', 0)`)
		return err
	})
	if errs[0] != nil || errs[1] == nil {
		t.Errorf("got %v", errs)
	}
	wantHealth(t, s, HealthOK)
	if got := s.Stats().Failed; got != 0 {
		t.Errorf("%d transactions failed", got)
	}
}

// damage overwrites the pages of a database behind the schema.
func damage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// From the start of a page: SQLite may take half a page for one with odd rows.
	from := len(data) / 2 &^ 4095
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, len(data)-from), int64(from))
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// damaged makes a database of some hundred items and damages it.
func damaged(t *testing.T) (path string, lane int64) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	l := outLane(t, s, "chat", laneItems(1, 1, 2000, 200)...)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	damage(t, path)
	return path, l.ID
}

func TestOpenRefusesADamagedDatabase(t *testing.T) {
	path, _ := damaged(t)
	s, err := Open(t.Context(), Options{Path: path})
	if err == nil {
		s.Close()
		t.Fatal("opened")
	}
	for _, want := range []string{path, "from the backup", "docs/delivery.md"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}

// openLarge opens a database as if it were a large one.
func openLarge(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Path: path, checkAtOnce: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestCheckOfALargeDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(t.Context(), Options{Path: path, checkAtOnce: 1})
	if err != nil {
		t.Fatal(err)
	}
	<-s.checked
	if h := wantHealth(t, s, HealthOK); h.Checking {
		t.Error("it is checked")
	}
	write(t, s, note("x"))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	path, _ = damaged(t)
	s = openLarge(t, path)
	<-s.checked
	if h := wantHealth(t, s, HealthDamaged); h.Checking {
		t.Error("it is checked")
	}
	for range 2 {
		if err := s.Write(t.Context(), note("lost")); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
	}
	wantHealth(t, s, HealthDamaged)
}

// TestCheckIsSeenAndEnds: Health says that the check runs, and Close ends it.
func TestCheckIsSeenAndEnds(t *testing.T) {
	path, _ := damaged(t)
	s := &Store{path: path, checked: make(chan struct{}), health: health{now: Health{State: HealthOK}}}
	s.reader = rawDB(t, path)
	s.reader.SetMaxOpenConns(1)
	c, err := s.reader.Conn(t.Context()) // holds the check up
	if err != nil {
		t.Fatal(err)
	}
	if err := s.check(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if !s.Health().Checking {
		t.Error("the check is not shown")
	}
	s.stopCheck()
	<-s.checked
	if h := s.Health(); h.Checking || h.State != HealthOK {
		t.Errorf("a check that was ended left %+v", h)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestReadersFindDamage: also what a reader stumbles over is known from then on.
func TestReadersFindDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openAt(t, path)
	l := outLane(t, s, "chat", laneItems(1, 1, 2000, 200)...)
	if _, err := s.writer.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	damage(t, path)
	if _, err := s.OutItems(t.Context(), l.ID, Pos{}, 5000, 1<<30); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	wantHealth(t, s, HealthDamaged)
	if err := s.Write(t.Context(), note("lost")); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
}
