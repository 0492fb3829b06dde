package store

import (
	"bytes"
	"context"
	"database/sql"
	"testing"
)

// BenchmarkAddOutItems adds items of 200 bytes, 128 to a transaction; the bare
// loop beside it has the driver's own cost.
func BenchmarkAddOutItems(b *testing.B) {
	const n = 128
	b.Run("store", func(b *testing.B) {
		s := openTemp(b)
		seq := uint64(1)
		for b.Loop() {
			items := laneItems(1, seq, n, 200)
			seq += n
			if err := s.Write(context.Background(), func(tx *sql.Tx) error { return s.AddOutItems(tx, 1, items) }); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "us/row")
	})
	b.Run("bare loop", func(b *testing.B) {
		s := openTemp(b)
		seq := int64(1)
		body := bytes.Repeat([]byte("x"), 200)
		st, err := s.writer.Prepare(`INSERT INTO outbox (id, epoch, kind, at, expires, size, mid, conv, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			tx, err := s.writer.Begin()
			if err != nil {
				b.Fatal(err)
			}
			ts := tx.Stmt(st)
			for range n {
				if _, err := ts.Exec(seq, 1, 1, 1795000000000, 1795600000000, 300, []byte("id-1-100-0123456789"), "alice@a.grid bob@b.grid", body); err != nil {
					b.Fatal(err)
				}
				seq++
			}
			if err := tx.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "us/row")
	})
}

func BenchmarkBatch(b *testing.B) {
	s := openTemp(b)
	jobs := make([]*job, 128)
	for b.Loop() {
		for i := range jobs {
			jobs[i] = &job{ctx: context.Background(), done: make(chan struct{}), fn: func(tx *sql.Tx) error { _, err := s.in(tx, markTold).Exec(7); return err }}
		}
		s.commit(append([]*job{}, jobs...))
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*128), "us/job")
}
