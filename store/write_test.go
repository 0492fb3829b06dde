package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// note appends an audit row, the plainest write there is.
func note(detail string) func(*sql.Tx) error {
	return func(tx *sql.Tx) error { return AppendAudit(tx, "test", "", detail) }
}

// notes returns the details of all audit rows, oldest first.
func notes(t *testing.T, s *Store) (out []string) {
	t.Helper()
	entries, err := Audit(t.Context(), s.Read(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		out = append(out, entries[len(entries)-1-i].Detail)
	}
	return out
}

// gate holds the writer in a write of its own until release, so that a test can
// line up a whole batch behind it.
func gate(t *testing.T, s *Store) (release func()) {
	t.Helper()
	entered, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- s.Write(context.Background(), func(*sql.Tx) error {
			close(entered)
			<-leave
			return nil
		})
	}()
	<-entered
	return func() {
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// batch commits writes as one batch, in their order, and returns their errors. The
// loop has nothing to do meanwhile, so the writing connection is free.
func batch(t *testing.T, s *Store, fns ...func(*sql.Tx) error) []error {
	t.Helper()
	jobs := make([]*job, len(fns))
	for i, fn := range fns {
		jobs[i] = &job{ctx: context.Background(), fn: fn, done: make(chan struct{})}
	}
	s.commit(append([]*job{}, jobs...))
	errs := make([]error, len(fns))
	for i, j := range jobs {
		<-j.done
		errs[i] = j.err
	}
	return errs
}

func TestWriteIsSeenByReaders(t *testing.T) {
	s := openTemp(t)
	if err := s.Write(t.Context(), note("hello")); err != nil {
		t.Fatal(err)
	}
	if got := notes(t, s); len(got) != 1 || got[0] != "hello" {
		t.Errorf("got %q", got)
	}
	if _, err := s.Read().Exec(`DELETE FROM audit`); err == nil {
		t.Error("a reader wrote")
	}
}

func TestFailingWriteSparesItsNeighbours(t *testing.T) {
	s := openTemp(t)
	failed := errors.New("changed my mind")
	errs := batch(t, s,
		note("a"),
		func(tx *sql.Tx) error { return errors.Join(note("half done")(tx), failed) },
		note("b"),
		func(tx *sql.Tx) error { _, err := tx.Exec(`INSERT INTO nonsense VALUES (1)`); return err },
		note("c"),
	)
	for i, wantErr := range []bool{false, true, false, true, false} {
		if (errs[i] != nil) != wantErr {
			t.Errorf("write %d: %v", i, errs[i])
		}
	}
	if !errors.Is(errs[1], failed) {
		t.Errorf("the caller's error came back as %v", errs[1])
	}
	if got := strings.Join(notes(t, s), " "); got != "a b c" {
		t.Errorf("kept %q", got)
	}
}

// TestBrokenTransactionSparesItsNeighbours ends the shared transaction from
// inside, as SQLite does when it must undo everything (disk full, interrupt).
func TestBrokenTransactionSparesItsNeighbours(t *testing.T) {
	s := openTemp(t)
	breaks := func(tx *sql.Tx) error {
		_, err := tx.Exec("ROLLBACK")
		return err
	}
	errs := batch(t, s, note("a"), breaks, note("b"), func(tx *sql.Tx) error {
		return errors.Join(breaks(tx), errors.New("and fails"))
	}, note("c"))
	for i, wantErr := range []bool{false, true, false, true, false} {
		if (errs[i] != nil) != wantErr {
			t.Errorf("write %d: %v", i, errs[i])
		}
	}
	if got := strings.Join(notes(t, s), " "); got != "a b c" {
		t.Errorf("kept %q", got)
	}
}

func TestInterruptedWriteSparesItsNeighbours(t *testing.T) {
	s := openTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	errs := batch(t, s, note("a"), func(tx *sql.Tx) error {
		cancel()
		_, err := tx.ExecContext(ctx, `INSERT INTO audit (at, event, peer, detail)
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT 0, '', '', 'x' FROM n`)
		return err
	}, note("b"))
	if errs[0] != nil || !errors.Is(errs[1], context.Canceled) || errs[2] != nil {
		t.Errorf("%v", errs)
	}
	if got := strings.Join(notes(t, s), " "); got != "a b" {
		t.Errorf("kept %.80q", got)
	}
}

func TestPanicIsItsCallersOwn(t *testing.T) {
	s := openTemp(t)
	func() {
		defer func() {
			if r := recover(); r != "oops" {
				t.Errorf("recovered %v", r)
			}
		}()
		err := s.Write(t.Context(), func(tx *sql.Tx) error {
			if err := note("half done")(tx); err != nil {
				return err
			}
			panic("oops")
		})
		t.Errorf("returned %v", err)
	}()
	if err := s.Write(t.Context(), note("after")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(notes(t, s), " "); got != "after" {
		t.Errorf("kept %q", got)
	}
}

func TestWriteHonoursItsContextWhileQueued(t *testing.T) {
	s := openTemp(t)
	release := gate(t, s)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more patience")
	result := make(chan error, 1)
	go func() { result <- s.Write(ctx, note("never")) }()
	cancel(why)
	if err := <-result; !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	release()
	if err := s.Write(t.Context(), note("later")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(notes(t, s), " "); got != "later" {
		t.Errorf("kept %q", got)
	}
}

func TestWriteHonoursItsContextInABatch(t *testing.T) {
	s := openTemp(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more patience")
	first := &job{ctx: t.Context(), done: make(chan struct{}), fn: func(tx *sql.Tx) error {
		cancel(why)
		return note("a")(tx)
	}}
	second := &job{ctx: ctx, done: make(chan struct{}), fn: note("never")}
	s.commit([]*job{first, second})
	if first.err != nil || !errors.Is(second.err, why) {
		t.Errorf("got %v, %v", first.err, second.err)
	}
	if got := strings.Join(notes(t, s), " "); got != "a" {
		t.Errorf("kept %q", got)
	}
}

func TestBatchIsOneCommit(t *testing.T) {
	s := openTemp(t)
	for _, err := range batch(t, s, note("a"), note("b"), note("c")) {
		if err != nil {
			t.Fatal(err)
		}
	}
	got := s.Stats()
	if got.CommitTime <= 0 {
		t.Error("the commit took no time")
	}
	if got.CommitTime = 0; got != (Stats{Commits: 1, Writes: 3, LastBatch: 3}) {
		t.Errorf("got %+v", got)
	}
}

func TestConcurrentWrites(t *testing.T) {
	s := openTemp(t)
	const n = 500
	var wg sync.WaitGroup
	release := gate(t, s)
	for i := range n {
		wg.Go(func() {
			if err := s.Write(context.Background(), note(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	release()
	wg.Wait()
	if got := notes(t, s); len(got) != n {
		t.Errorf("%d of %d writes are there", len(got), n)
	}
}

func TestWriteAfterClose(t *testing.T) {
	s, err := Open(t.Context(), Options{Path: t.TempDir() + "/db"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), note("late")); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprint(writers, " writers"), func(b *testing.B) {
			s := openTemp(b)
			detail := strings.Repeat("x", 300)
			var wg sync.WaitGroup
			work := make(chan struct{})
			for range writers {
				wg.Go(func() {
					for range work {
						if err := s.Write(context.Background(), note(detail)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
		})
	}
}
