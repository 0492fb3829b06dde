package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxBatch bounds how many writes share one commit; beyond some 128 the gain is
// small and the first of them waits.
const maxBatch = 128

// job is one caller's write.
type job struct {
	ctx   context.Context
	fn    func(*sql.Tx) error
	err   error
	panic any
	done  chan struct{}
}

// Write runs fn in a transaction and returns nil once that is on disk. Writes of
// concurrent callers share one commit, each behind a savepoint of its own: an
// error of fn undoes and reports only its own work.
//
// fn must not commit or roll back, nor use tx after it returns, nor call Write. It
// should use the tx methods without a context, because SQLite undoes the whole
// transaction when a statement is interrupted; should that happen, the others are
// run again, so fn may run more than once and its last run counts. ctx is honoured
// until fn starts.
func (s *Store) Write(ctx context.Context, fn func(*sql.Tx) error) error {
	j := &job{ctx: ctx, fn: fn, done: make(chan struct{})}
	select {
	case <-s.stop:
		return ErrClosed
	default:
	}
	select {
	case s.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.stop:
		return ErrClosed
	}
	<-j.done // it is in a batch, and only the end of that tells whether it is on disk
	if j.panic != nil {
		panic(j.panic)
	}
	return j.err
}

// Stats counts since Open; Writes per Commits is how well the group commit works.
type Stats struct {
	Commits uint64
	Writes  uint64 // in those commits, failed ones included
}

// Stats returns the counts.
func (s *Store) Stats() Stats { return Stats{Commits: s.commits.Load(), Writes: s.written.Load()} }

// loop is the only user of the writing connection.
func (s *Store) loop() {
	defer close(s.stopped)
	for {
		select {
		case j := <-s.jobs:
			s.commit(s.collect(j))
		case <-s.stop:
			return
		}
	}
}

// collect takes the writes that wait right now. Nobody is waited for: while one
// batch is being committed the next one gathers.
func (s *Store) collect(first *job) []*job {
	batch := []*job{first}
	for len(batch) < maxBatch {
		select {
		case j := <-s.jobs:
			batch = append(batch, j)
		default:
			return batch
		}
	}
	return batch
}

// errBroken says that the shared transaction is gone.
var errBroken = errors.New("the transaction was undone")

// commit runs a batch. A write that breaks the shared transaction is answered
// with its error, and the rest starts over in a new one.
func (s *Store) commit(batch []*job) {
	for len(batch) > 0 {
		culprit, err := s.attempt(batch)
		if culprit < 0 {
			if err == nil {
				s.commits.Add(1)
				s.written.Add(uint64(len(batch)))
			}
			for _, j := range batch {
				if err != nil {
					j.err = err
				}
				close(j.done)
			}
			return
		}
		close(batch[culprit].done)
		batch = append(batch[:culprit], batch[culprit+1:]...)
	}
}

// attempt runs all jobs in one transaction. culprit is the index of the job that
// broke it, or -1; then err, if any, concerns all of them.
func (s *Store) attempt(jobs []*job) (culprit int, err error) {
	tx, err := s.writer.BeginTx(context.Background(), nil)
	if err != nil {
		return -1, fmt.Errorf("begin: %w", err)
	}
	for i, j := range jobs {
		j.err = s.runOne(tx, j)
		if errors.Is(j.err, errBroken) {
			if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
				j.err = errors.Join(j.err, err)
			}
			return i, nil
		}
	}
	if err := tx.Commit(); err != nil {
		return -1, errors.Join(fmt.Errorf("commit: %w", err), ignoreDone(tx.Rollback()))
	}
	return -1, nil
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// runOne runs one job behind a savepoint. The savepoint is released in either
// case; that this fails is how a transaction that SQLite has undone is noticed.
func (s *Store) runOne(tx *sql.Tx, j *job) error {
	if err := j.ctx.Err(); err != nil {
		return context.Cause(j.ctx)
	}
	if _, err := tx.Exec("SAVEPOINT job"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	fnErr := callJob(tx, j)
	if fnErr != nil || j.panic != nil {
		if _, err := tx.Exec("ROLLBACK TO job"); err != nil {
			return fmt.Errorf("%w: %w: %w", fnErr, errBroken, err)
		}
	}
	if _, err := tx.Exec("RELEASE job"); err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return fnErr
}

// callJob turns a panic of fn into one of its caller, so that it harms no one else.
func callJob(tx *sql.Tx, j *job) (err error) {
	defer func() {
		if j.panic = recover(); j.panic != nil {
			err = fmt.Errorf("panic in a write: %v", j.panic)
		}
	}()
	return j.fn(tx)
}
