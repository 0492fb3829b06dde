package store

import (
	"context"
	"database/sql"
	"fmt"
)

// InLane is a row of the table in_lane: where a lane from a peer stands.
type InLane struct {
	ID         int64
	Peer, Lane string
	Cursor     Pos    // the newest item taken
	Seen       uint64 // the highest epoch in which a stream began
}

// InItem is a row of the table inbox: an item that was taken from a peer and that
// the local server does not have yet.
type InItem struct {
	Row int64 // its key, which no other item ever has
	LaneItem
}

const inLaneColumns = `id, peer, lane, cursor_epoch, cursor_seq, seen`

var (
	inLanes = prepareRead(`SELECT ` + inLaneColumns + ` FROM in_lane ORDER BY id`)
	inItems = prepareRead(`SELECT id, epoch, seq, kind, at, expires, mid, conv, body FROM inbox WHERE id > ? AND id < ? ORDER BY id`)

	putInLane = prepareWrite(`INSERT INTO in_lane (peer, lane) VALUES (?, ?)
		ON CONFLICT (peer, lane) DO UPDATE SET lane = excluded.lane RETURNING ` + inLaneColumns)
	saveInLane = prepareWrite(`UPDATE in_lane SET cursor_epoch = ?, cursor_seq = ?, seen = ? WHERE id = ?`)
	arrive     = prepareWrite(`UPDATE in_lane SET arrived = arrived + ? WHERE id = ? RETURNING arrived`)
	addIn      = prepareInsert(`inbox`, `id, epoch, seq, kind, at, expires, mid, conv, body`, ``)
	cutIn      = prepareWrite(`DELETE FROM inbox WHERE id = ?`)
)

// InLanes returns all lanes from peers.
func (s *Store) InLanes(ctx context.Context) ([]InLane, error) {
	return collectRead(ctx, s, inLanes, scanInLane)
}

// AddInLane returns the lane from a peer, a new one where there is none.
func (s *Store) AddInLane(tx *sql.Tx, peer, lane string) (InLane, error) {
	return scanInLane(s.in(tx, putInLane).QueryRow(peer, lane))
}

// SaveInLane writes where a lane stands.
func (s *Store) SaveInLane(tx *sql.Tx, l *InLane) error {
	res, err := s.in(tx, saveInLane).Exec(int64(l.Cursor.Epoch), int64(l.Cursor.Seq), int64(l.Seen), l.ID)
	return oneRow(res, err, "lane", l.ID)
}

// AddInItems puts items of a lane into the inbox, in order, and sets their Row.
func (s *Store) AddInItems(tx *sql.Tx, lane int64, items []InItem) error {
	if len(items) == 0 {
		return nil
	}
	var arrived int64
	if err := s.in(tx, arrive).QueryRow(len(items), lane).Scan(&arrived); err != nil {
		return fmt.Errorf("add items of lane %d: %w", lane, err)
	}
	last, err := itemKey(lane, uint64(arrived))
	if err != nil {
		return err
	}
	err = s.insert(tx, addIn, len(items), func(values []any, i int) []any {
		it := &items[i]
		it.Row = last - int64(len(items)-1-i)
		return append(values, it.Row, int64(it.Pos.Epoch), int64(it.Pos.Seq), it.Kind, millis(it.At), millis(it.Expires),
			blob(it.ID), it.Conv, blob(it.Body))
	})
	if err != nil {
		return fmt.Errorf("add items of lane %d: %w", lane, err)
	}
	return nil
}

// InItems returns the items of a lane that are in the inbox, in the order in which
// they arrived. How many there are is bounded by what is let in.
func (s *Store) InItems(ctx context.Context, lane int64) ([]InItem, error) {
	before, behind := laneKeys(lane)
	return collectRead(ctx, s, inItems, scanIn, before, behind)
}

// CutIn deletes items from the inbox. One that is not there is none's fault: a
// commit whose outcome was not learnt is tried again.
func (s *Store) CutIn(tx *sql.Tx, rows []int64) error { return s.execEach(tx, cutIn, rows) }

// execEach runs a statement for each row.
func (s *Store) execEach(tx *sql.Tx, w writeStmt, rows []int64) error {
	st := s.in(tx, w)
	for _, row := range rows {
		if _, err := st.Exec(row); err != nil {
			return err
		}
	}
	return nil
}

func scanInLane(row scanner) (l InLane, err error) {
	var epoch, seq, seen int64
	err = row.Scan(&l.ID, &l.Peer, &l.Lane, &epoch, &seq, &seen)
	l.Cursor, l.Seen = Pos{uint64(epoch), uint64(seq)}, uint64(seen)
	return l, err
}

func scanIn(row scanner) (it InItem, err error) {
	var epoch, seq, at, expires int64
	err = row.Scan(&it.Row, &epoch, &seq, &it.Kind, &at, &expires, &it.ID, &it.Conv, &it.Body)
	it.Pos = Pos{uint64(epoch), uint64(seq)}
	it.At, it.Expires = fromMillis(at), fromMillis(expires)
	return it, err
}
