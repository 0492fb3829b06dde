package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// OutLane is a row of the table out_lane: where a lane to a peer stands.
type OutLane struct {
	ID         int64
	Peer, Lane string
	Last       Pos   // of the newest item that was ever appended
	Safe       Pos   // up to here the peer never asks again
	Items      int64 // in the outbox
	Bytes      int64 // their sizes
}

const (
	outLaneColumns = `id, peer, lane, last_epoch, last_seq, safe_epoch, safe_seq, items, bytes`
	outColumns     = `id, epoch, kind, at, expires, mid, conv, body`
)

var (
	outLanes = prepareRead(`SELECT ` + outLaneColumns + ` FROM out_lane ORDER BY id`)
	outItems = prepareRead(`SELECT ` + outColumns + ` FROM outbox WHERE id > ? AND id < ? ORDER BY id LIMIT ?`)
	outItem  = prepareRead(`SELECT ` + outColumns + ` FROM outbox WHERE id = ?`)

	putOutLane = prepareWrite(`INSERT INTO out_lane (peer, lane) VALUES (?, ?)
		ON CONFLICT (peer, lane) DO UPDATE SET lane = excluded.lane RETURNING ` + outLaneColumns)
	saveOutLane = prepareWrite(`UPDATE out_lane SET last_epoch = ?, last_seq = ?, safe_epoch = ?, safe_seq = ?, items = ?, bytes = ? WHERE id = ?`)
	addOut      = prepareInsert(`outbox`, `id, epoch, kind, at, expires, size, mid, conv, body`, ``)
	sumOut      = prepareWrite(`SELECT count(*), coalesce(sum(size), 0) FROM outbox WHERE id > ? AND id <= ?`)
	cutOut      = prepareWrite(`DELETE FROM outbox WHERE id > ? AND id <= ?`)

	outSeekRead  = outSeek[readStmt]{prepareRead(outAround), prepareRead(outProbe)}
	outSeekWrite = outSeek[writeStmt]{prepareWrite(outAround), prepareWrite(outProbe)}
)

// OutLanes returns all lanes to peers.
func (s *Store) OutLanes(ctx context.Context) ([]OutLane, error) {
	return collectRead(ctx, s, outLanes, scanOutLane)
}

// AddOutLane returns the lane to a peer, a new one where there is none.
func (s *Store) AddOutLane(tx *sql.Tx, peer, lane string) (OutLane, error) {
	return scanOutLane(s.in(tx, putOutLane).QueryRow(peer, lane))
}

// SaveOutLane writes where a lane stands.
func (s *Store) SaveOutLane(tx *sql.Tx, l *OutLane) error {
	res, err := s.in(tx, saveOutLane).Exec(int64(l.Last.Epoch), int64(l.Last.Seq), int64(l.Safe.Epoch), int64(l.Safe.Seq), l.Items, l.Bytes, l.ID)
	return oneRow(res, err, "lane", l.ID)
}

// AddOutItems appends items to a lane. Their positions must be behind all that the
// lane has; the caller saves the lane in the same transaction.
func (s *Store) AddOutItems(tx *sql.Tx, lane int64, items []LaneItem) error {
	for i := range items {
		if _, err := itemKey(lane, items[i].Pos.Seq); err != nil {
			return err
		}
	}
	before, _ := laneKeys(lane)
	err := s.insert(tx, addOut, len(items), func(values []any, i int) []any {
		it := &items[i]
		return append(values, before+int64(it.Pos.Seq), int64(it.Pos.Epoch), it.Kind, millis(it.At), millis(it.Expires), it.Size(),
			blob(it.ID), it.Conv, blob(it.Body))
	})
	if err != nil {
		return fmt.Errorf("add items to lane %d: %w", lane, err)
	}
	return nil
}

// OutItems returns the items of a lane behind a position, in order: at most
// maxItems, and no more than maxBytes of them (see LaneItem.Size), but at least
// one if there is one.
func (s *Store) OutItems(ctx context.Context, lane int64, after Pos, maxItems int, maxBytes int64) ([]LaneItem, error) {
	return s.outRun(ctx, lane, after, max(maxItems, 1), maxBytes, func(*LaneItem) bool { return true })
}

// maxRunBytes bounds what one call reads where its caller names no bound.
const maxRunBytes = 16 << 20

// ListOut returns the first items of a lane: at most limit, and fewer where they are
// large. OutItems goes on behind the last of them.
func (s *Store) ListOut(ctx context.Context, lane int64, limit int) ([]LaneItem, error) {
	return s.OutItems(ctx, lane, Pos{}, limit, maxRunBytes)
}

// ExpiredOut returns the run of items behind a position that had expired at the
// time at: it ends before the first that had not, after limit items, or sooner
// where they are large. Behind the last of them may be more.
func (s *Store) ExpiredOut(ctx context.Context, lane int64, after Pos, at time.Time, limit int) ([]LaneItem, error) {
	return s.outRun(ctx, lane, after, limit, maxRunBytes, func(it *LaneItem) bool {
		return !it.Expires.IsZero() && !it.Expires.After(at)
	})
}

// outRun returns items behind a position as long as want has them.
func (s *Store) outRun(ctx context.Context, lane int64, after Pos, maxItems int, maxBytes int64, want func(*LaneItem) bool) (out []LaneItem, err error) {
	from, err := outSeekRead.last(ctx, s.read, lane, after)
	if err != nil {
		return nil, s.sawRead(err)
	}
	_, behind := laneKeys(lane)
	var bytes int64
	err = s.eachRead(ctx, outItems, func(row scanner) (more bool, err error) {
		it, err := scanOut(row)
		bytes += it.Size()
		if err != nil || !want(&it) || bytes > maxBytes && len(out) > 0 {
			return false, err
		}
		out = append(out, it)
		return true, nil
	}, from, behind, maxItems)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// OutItem returns the item of a lane with that number, or sql.ErrNoRows.
func (s *Store) OutItem(ctx context.Context, lane int64, seq uint64) (LaneItem, error) {
	id, err := itemKey(lane, seq)
	if err != nil {
		return LaneItem{}, sql.ErrNoRows
	}
	return readOne(ctx, s, outItem, scanOut, id)
}

// CutOut deletes the items of a lane up to a position, and returns how many they
// were and their sizes.
func (s *Store) CutOut(tx *sql.Tx, lane int64, upTo Pos) (items, bytes int64, err error) {
	in := func(w writeStmt) *sql.Stmt { return s.in(tx, w) }
	to, err := outSeekWrite.last(context.Background(), in, lane, upTo)
	if err != nil {
		return 0, 0, err
	}
	from, _ := laneKeys(lane)
	if err := in(sumOut).QueryRow(from, to).Scan(&items, &bytes); err != nil || items == 0 {
		return 0, 0, err
	}
	_, err = in(cutOut).Exec(from, to)
	return items, bytes, err
}

// outSeek finds a position in a lane, on the reader or in a transaction.
type outSeek[S any] struct{ around, probe S }

const (
	// outAround has the epochs of the rows on both sides of a key.
	outAround = `SELECT (SELECT epoch FROM outbox WHERE id > ?1 AND id <= ?2 ORDER BY id DESC LIMIT 1),
		(SELECT epoch FROM outbox WHERE id > ?2 AND id < ?3 ORDER BY id LIMIT 1)`
	// outProbe has the first row of a range.
	outProbe = `SELECT id, epoch FROM outbox WHERE id > ? AND id <= ? ORDER BY id LIMIT 1`
)

// last returns the key up to which the lane's items are not behind pos: all with
// greater keys are.
//
// That is the key of pos.Seq, but for a lane that goes on from an older copy of the
// database: the peer may then stand at a number of another epoch than the one that
// has it here. Because epochs never fall along a lane, halving finds the place.
func (k outSeek[S]) last(ctx context.Context, stmt func(S) *sql.Stmt, lane int64, pos Pos) (int64, error) {
	first, behind := laneKeys(lane)
	at := first + int64(min(pos.Seq, maxSeq))
	var left, right sql.NullInt64
	if err := stmt(k.around).QueryRowContext(ctx, first, at, behind).Scan(&left, &right); err != nil {
		return 0, err
	}
	low, high := at, at // the key is in low..high
	if left.Valid && uint64(left.Int64) > pos.Epoch {
		low = first
	}
	if right.Valid && uint64(right.Int64) < pos.Epoch {
		high = behind - 1
	}
	for low < high {
		middle := low + (high-low)/2
		var id, epoch int64
		err := stmt(k.probe).QueryRowContext(ctx, middle, high).Scan(&id, &epoch)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			high = middle
		case err != nil:
			return 0, err
		case (Pos{uint64(epoch), uint64(id - first)}).compare(pos) > 0:
			high = middle
		default:
			low = id
		}
	}
	return low, nil
}

func scanOutLane(row scanner) (l OutLane, err error) {
	var lastEpoch, lastSeq, safeEpoch, safeSeq int64
	err = row.Scan(&l.ID, &l.Peer, &l.Lane, &lastEpoch, &lastSeq, &safeEpoch, &safeSeq, &l.Items, &l.Bytes)
	l.Last, l.Safe = Pos{uint64(lastEpoch), uint64(lastSeq)}, Pos{uint64(safeEpoch), uint64(safeSeq)}
	return l, err
}

func scanOut(row scanner) (it LaneItem, err error) {
	var id, epoch, at, expires int64
	err = row.Scan(&id, &epoch, &it.Kind, &at, &expires, &it.ID, &it.Conv, &it.Body)
	it.Pos = Pos{uint64(epoch), uint64(id & maxSeq)}
	it.At, it.Expires = fromMillis(at), fromMillis(expires)
	return it, err
}

// oneRow makes an error of an UPDATE that found nothing.
func oneRow(res sql.Result, err error, what string, id int64) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	if err == nil && n != 1 {
		err = fmt.Errorf("there is no %s %d", what, id)
	}
	return err
}
