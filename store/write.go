package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
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
	Commits    uint64
	Writes     uint64        // in those commits, failed ones included
	LastBatch  int           // writes in the newest commit
	CommitTime time.Duration // spent in COMMIT, which is waiting for the disk
	Failed     uint64        // transactions that failed as a whole
}

type counters struct {
	mu sync.Mutex
	Stats
}

// Stats returns the counts.
func (s *Store) Stats() Stats {
	s.count.mu.Lock()
	defer s.count.mu.Unlock()
	return s.count.Stats
}

func (c *counters) committed(writes int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Commits++
	c.Writes += uint64(writes)
	c.LastBatch = writes
	c.CommitTime += took
}

func (c *counters) failed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Failed++
}

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
// batch is being committed the next one gathers. But those whose writes are in the
// batch before, and run by now, may come with the next; two callers that write all the
// time would else take turns, with a commit for each.
func (s *Store) collect(first *job) []*job {
	batch := []*job{first}
	runtime.Gosched()
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

// Each write of a batch stands behind a savepoint.
var (
	savepoint = prepareWrite(`SAVEPOINT job`)
	release   = prepareWrite(`RELEASE job`)
	undo      = prepareWrite(`ROLLBACK TO job`)
)

// commit runs a batch. A write that breaks the shared transaction is answered
// with its error, and the rest starts over in a new one.
func (s *Store) commit(batch []*job) {
	for len(batch) > 0 {
		culprit, err := s.attempt(batch)
		if culprit >= 0 {
			close(batch[culprit].done)
			batch = append(batch[:culprit], batch[culprit+1:]...)
			continue
		}
		for _, j := range batch {
			if err != nil {
				j.err = err
			}
			close(j.done)
		}
		return
	}
}

// attempt runs all jobs in one transaction. culprit is the index of the job that
// broke it, or -1; then err, if any, concerns all of them.
func (s *Store) attempt(jobs []*job) (culprit int, err error) {
	if err := s.health.damaged(); err != nil {
		return -1, err
	}
	tx, err := s.writer.BeginTx(context.Background(), nil)
	if err != nil {
		return -1, s.failed(fmt.Errorf("begin: %w", err))
	}
	for i, j := range jobs {
		broken := false
		if broken, j.err = s.runOne(tx, j, len(jobs) == 1); !broken && j.err == nil {
			continue
		}
		if stateOf(j.err, s.path) != "" {
			// It is the database and not the write: the others would fare alike.
			return -1, s.failed(errors.Join(j.err, ignoreDone(tx.Rollback())))
		}
		if broken {
			if err := ignoreDone(tx.Rollback()); err != nil {
				j.err = errors.Join(j.err, err)
			}
			return i, nil
		}
	}
	begun := time.Now()
	if err := tx.Commit(); err != nil {
		return -1, s.failed(errors.Join(fmt.Errorf("commit: %w", err), ignoreDone(tx.Rollback())))
	}
	s.count.committed(len(jobs), time.Since(begun))
	s.health.set(HealthOK, "")
	return -1, nil
}

// failed takes note of a transaction that failed as a whole.
func (s *Store) failed(err error) error {
	s.count.failed()
	return s.saw(err)
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// runOne runs one job. broken says that the transaction cannot go on.
//
// A job beside others stands behind a savepoint. That is released in either case;
// that this fails is how a transaction that SQLite has undone is noticed. A job that
// is alone needs none: what it did is undone with the transaction, and one that
// SQLite has undone it refuses to commit.
func (s *Store) runOne(tx *sql.Tx, j *job, alone bool) (broken bool, err error) {
	if j.ctx.Err() != nil {
		return false, context.Cause(j.ctx)
	}
	if alone {
		err := callJob(tx, j)
		return err != nil, err
	}
	if _, err := s.in(tx, savepoint).Exec(); err != nil {
		return true, fmt.Errorf("%w: %w", errBroken, err)
	}
	fnErr := callJob(tx, j)
	if fnErr != nil {
		if _, err := s.in(tx, undo).Exec(); err != nil {
			return true, fmt.Errorf("%w: %w: %w", fnErr, errBroken, err)
		}
	}
	if _, err := s.in(tx, release).Exec(); err != nil {
		return true, fmt.Errorf("%w: %w", errBroken, err)
	}
	return false, fnErr
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
