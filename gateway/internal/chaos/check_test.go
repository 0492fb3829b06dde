package main

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// filled makes a database whose last writes are only in its write-ahead log.
func filled(t *testing.T) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "yggate.db")
	db, err := sql.Open("sqlite", "file:"+file+"?_pragma=journal_mode(wal)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, q := range []string{
		"CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", "CREATE INDEX i ON t (b)",
		"WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM n WHERE x < 5000) INSERT INTO t SELECT x, hex(randomblob(20)) FROM n",
		"PRAGMA wal_checkpoint(TRUNCATE)", "INSERT INTO t (b) VALUES ('last')",
	} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(q, err)
		}
	}
	return file
}

func TestChecks(t *testing.T) {
	file := filled(t)
	c, err := newChecks(t.TempDir(), file)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.wait(); err != nil || c.number() != 2 {
		t.Fatalf("a whole database: %v after %d checks", err, c.number())
	}
	var last string
	db, err := sql.Open("sqlite", "file:"+filepath.Join(c.dir, "yggate.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT b FROM t ORDER BY a DESC").Scan(&last); err != nil || last != "last" {
		t.Errorf("the copy ends in %q, %v: the log was not copied", last, err)
	}

	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[len(b)/2:], strings.Repeat("damage ", 1000))
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.wait(); err == nil {
		t.Error("a damaged database passes")
	}
	if err := c.take(t.Context()); err == nil {
		t.Error("checks go on after damage was found")
	}
}
