package store

import (
	"database/sql"
	"errors"
	"strings"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// wholeTables are the statements that read all of a small table on purpose.
var wholeTables = map[readStmt]bool{outLanes: true, inLanes: true}

// TestPlans looks at how SQLite runs each prepared statement: it goes to the rows
// it wants by key or index, and sorts nothing.
func TestPlans(t *testing.T) {
	s := openTemp(t)
	check := func(db *sql.DB, query string) {
		t.Helper()
		args := make([]any, strings.Count(query, "?"))
		steps, err := collect(t.Context(), db, func(row scanner) (step string, err error) {
			var id, parent, unused int
			err = row.Scan(&id, &parent, &unused, &step)
			return step, err
		}, "EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			t.Fatalf("%s: %v", query, err)
		}
		for _, step := range steps {
			if strings.HasPrefix(step, "SCAN") && !ownRows(step) || strings.Contains(step, "TEMP B-TREE") {
				t.Errorf("%s\n%s", query, strings.Join(steps, "\n"))
				return
			}
		}
	}
	for _, query := range writeSQL {
		check(s.writer, query)
	}
	for i, query := range readSQL {
		if !wholeTables[readStmt(i)] {
			check(s.reader, query)
		}
	}
}

// ownRows says whether what is scanned are the rows that a statement brings along.
func ownRows(step string) bool {
	return step == "SCAN CONSTANT ROW" || strings.HasSuffix(step, "VALUES CLAUSE")
}

// pagesOf counts the database pages that fn touches on the one connection of db.
func pagesOf(t *testing.T, db *sql.DB, fn func()) (pages int) {
	t.Helper()
	count := func(reset bool) (sum int) {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = c.Raw(func(dc any) error {
			for _, op := range []sqlite.DBStatusOp{sqlite.DBStatusCacheHit, sqlite.DBStatusCacheMiss} {
				n, _, err := dc.(sqlite.DBStatus).Status(op, reset)
				if err != nil {
					return err
				}
				sum += n
			}
			return nil
		})
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		return sum
	}
	count(true)
	fn()
	return count(false)
}

// TestManyWaitingItems counts pages instead of time: with many items in the
// outbox, what reads and cuts at any place of a lane touches only what it returns and
// the way there.
func TestManyWaitingItems(t *testing.T) {
	const n, epochs = 200_000, 4
	s, err := Open(t.Context(), Options{Path: t.TempDir() + "/db", Readers: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	expired := time.UnixMilli(1)
	lane := fill(t, s, n, epochs, expired)
	middle := Pos{2, n / 2}
	read := func(items []LaneItem, err error) {
		if err != nil || len(items) != 10 {
			t.Errorf("%d items, %v", len(items), err)
		}
	}
	for name, fn := range map[string]func(){
		"head":    func() { read(s.OutItems(t.Context(), lane, Pos{}, 10, 1<<20)) },
		"middle":  func() { read(s.OutItems(t.Context(), lane, middle, 10, 1<<20)) },
		"bytes":   func() { read(s.OutItems(t.Context(), lane, middle, n, 10*(itemOverhead+10))) },
		"expired": func() { read(s.ExpiredOut(t.Context(), lane, middle, expired, 10)) },
		"list":    func() { read(s.ListOut(t.Context(), lane, 10)) },
		"item": func() {
			if _, err := s.OutItem(t.Context(), lane, n); err != nil {
				t.Error(err)
			}
		},
	} {
		if pages := pagesOf(t, s.reader, fn); pages > 25 {
			t.Errorf("%s touched %d pages", name, pages)
		}
	}
	// A position that this copy of the database never gave out is halved for.
	if pages := pagesOf(t, s.reader, func() { read(s.OutItems(t.Context(), lane, Pos{1, n - 1}, 10, 1<<20)) }); pages > 200 {
		t.Errorf("halving touched %d pages", pages)
	}
	pages := pagesOf(t, s.writer, func() {
		write(t, s, func(tx *sql.Tx) error {
			items, _, err := s.CutOut(tx, lane, Pos{1, 100})
			if items != 100 {
				t.Errorf("cut %d", items)
			}
			return err
		})
	})
	if pages > 200 {
		t.Errorf("the cut touched %d pages", pages)
	}
}

// fill puts n small expired items into a lane, in as many epochs.
func fill(t testing.TB, s *Store, n, epochs int, expires time.Time) (lane int64) {
	t.Helper()
	l := outLane(t, s, "chat")
	before, _ := laneKeys(l.ID)
	write(t, s, func(tx *sql.Tx) error {
		_, err := tx.Exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
			INSERT INTO outbox (id, epoch, kind, at, expires, size, mid, conv, body)
			SELECT ?2 + i, 1 + (i - 1) * ?3 / ?1, 1, 1, ?4, 80, zeroblob(4), 'c', zeroblob(4) FROM n`,
			n, before, epochs, millis(expires))
		return err
	})
	return l.ID
}
