package store

import (
	"context"
	"database/sql"
	"strings"
	"time"
)

// takenChunk is how many ids one query looks up, and takenFew how many where there
// are no more; shorter ones are filled with NULL, which is equal to nothing.
const (
	takenChunk = 32
	takenFew   = 4
)

func prepareKnown(n int) readStmt {
	return prepareRead(`SELECT mid FROM taken WHERE in_lane = ? AND mid IN (?` + strings.Repeat(`, ?`, n-1) + `)`)
}

var (
	knownTaken    = prepareKnown(takenChunk)
	knownTakenFew = prepareKnown(takenFew)

	addTaken   = prepareInsert(`taken`, `in_lane, mid, at`, ` ON CONFLICT DO NOTHING`)
	purgeTaken = prepareWrite(`DELETE FROM taken WHERE (in_lane, mid) IN
		(SELECT in_lane, mid FROM taken WHERE at < ? ORDER BY at LIMIT ?)`)
)

// AddTaken remembers ids that were taken on a lane.
func (s *Store) AddTaken(tx *sql.Tx, lane int64, ids [][]byte, at time.Time) error {
	return s.insert(tx, addTaken, len(ids), func(values []any, i int) []any {
		return append(values, lane, blob(ids[i]), millis(at))
	})
}

// KnownTaken says for each id whether it was taken on a lane.
func (s *Store) KnownTaken(ctx context.Context, lane int64, ids [][]byte) ([]bool, error) {
	known := make(map[string]bool)
	for rest := ids; len(rest) > 0; {
		query, n := knownTaken, takenChunk
		if len(rest) <= takenFew {
			query, n = knownTakenFew, takenFew
		}
		args := make([]any, 1+n)
		args[0] = lane
		n = min(n, len(rest))
		for j, id := range rest[:n] {
			args[1+j] = blob(id)
		}
		rest = rest[n:]
		mids, err := collectRead(ctx, s, query, func(row scanner) (mid []byte, err error) {
			err = row.Scan(&mid)
			return mid, err
		}, args...)
		if err != nil {
			return nil, err
		}
		for _, mid := range mids {
			known[string(mid)] = true
		}
	}
	out := make([]bool, len(ids))
	for i, id := range ids {
		out[i] = known[string(id)]
	}
	return out, nil
}

// PurgeTaken forgets the oldest of the ids that were taken before a time, at most
// limit of them, and returns how many.
func (s *Store) PurgeTaken(tx *sql.Tx, before time.Time, limit int) (int64, error) {
	res, err := s.in(tx, purgeTaken).Exec(millis(before), limit)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}
