package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"
)

// Dead is a row of the table dead: an item that was given up.
type Dead struct {
	Row        int64
	Peer, Lane string
	LaneItem
	Reason string // short code
	Detail string // for people
	Died   time.Time
	Told   bool // whether its sender knows
}

const deadColumns = `id, peer, lane, epoch, seq, kind, at, expires, died, told, reason, detail, mid, conv, body`

var (
	untold = prepareRead(`SELECT ` + deadColumns + ` FROM dead WHERE told = 0 AND peer = ? AND id > ? ORDER BY id LIMIT ?`)
	// nextUntoldPeer goes from peer to peer, however many letters each has.
	nextUntoldPeer = prepareRead(`SELECT peer FROM dead WHERE told = 0 AND peer > ? ORDER BY peer LIMIT 1`)
	deadOfAll      = prepareRead(`SELECT ` + deadColumns + ` FROM dead WHERE id > 0 ORDER BY id DESC LIMIT ?`)
	deadOfPeer     = prepareRead(`SELECT ` + deadColumns + ` FROM dead WHERE peer = ? ORDER BY id DESC LIMIT ?`)
	deadLetter     = prepareRead(`SELECT ` + deadColumns + ` FROM dead WHERE id = ?`)

	copyDead = prepareWrite(`INSERT INTO dead (peer, lane, epoch, seq, kind, at, expires, died, reason, detail, mid, conv, body)
		SELECT ?, ?, epoch, ?, kind, at, expires, ?, ?, ?, mid, conv, body FROM outbox WHERE id = ? AND epoch = ?`)
	cutDead   = prepareWrite(`DELETE FROM outbox WHERE id = ? RETURNING size`)
	markTold  = prepareWrite(`UPDATE dead SET told = 1 WHERE id = ? AND peer = ? AND lane = ? AND epoch = ? AND seq = ?`)
	dropDead  = prepareWrite(`DELETE FROM dead WHERE id = ?`)
	afterKept = prepareWrite(`SELECT died, id FROM dead WHERE told = 1 AND died > 0 ORDER BY died DESC, id DESC LIMIT 1 OFFSET ?`)
	purgeDead = prepareWrite(`DELETE FROM dead WHERE id IN
		(SELECT id FROM dead WHERE told = 1 AND (died, id) <= (?, ?) ORDER BY died, id LIMIT ?)`)
)

// BuryOut moves items from the outbox to the dead letters, where they wait for
// their sender to be told. Those that are not in the outbox any more are left out;
// the others are subtracted from l, which the caller saves.
func (s *Store) BuryOut(tx *sql.Tx, l *OutLane, items []LaneItem, reason, detail string) error {
	cp, cut, died := s.in(tx, copyDead), s.in(tx, cutDead), millis(now())
	for i := range items {
		pos := items[i].Pos
		id, err := itemKey(l.ID, pos.Seq)
		if err != nil {
			return err
		}
		res, err := cp.Exec(l.Peer, l.Lane, int64(pos.Seq), died, reason, detail, id, int64(pos.Epoch))
		if err != nil {
			return fmt.Errorf("bury item %d of lane %d: %w", pos.Seq, l.ID, err)
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			if err != nil {
				return err
			}
			continue
		}
		var size int64
		if err := cut.QueryRow(id).Scan(&size); err != nil {
			return fmt.Errorf("bury item %d of lane %d: %w", pos.Seq, l.ID, err)
		}
		l.Items--
		l.Bytes -= size
	}
	return nil
}

// Untold returns dead letters to a peer whose senders do not know yet, oldest
// first: those with a row after the given one, at most limit, and fewer where they
// are large.
func (s *Store) Untold(ctx context.Context, peer string, after int64, limit int) (out []Dead, err error) {
	var bytes int64
	err = s.eachRead(ctx, untold, func(row scanner) (more bool, err error) {
		d, err := scanDead(row)
		bytes += d.Size()
		if err != nil || bytes > maxRunBytes && len(out) > 0 {
			return false, err
		}
		out = append(out, d)
		return true, nil
	}, peer, after, limit)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// UntoldPeers returns the peers to which there are dead letters whose senders do
// not know yet.
func (s *Store) UntoldPeers(ctx context.Context) (peers []string, err error) {
	for peer := ""; ; peers = append(peers, peer) {
		peer, err = readOne(ctx, s, nextUntoldPeer, func(row scanner) (next string, err error) {
			err = row.Scan(&next)
			return next, err
		}, peer)
		if errors.Is(err, sql.ErrNoRows) {
			return peers, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// MarkTold notes that the senders of dead letters know. Rows that are no more, or are
// another letter's by now, are left alone.
func (s *Store) MarkTold(tx *sql.Tx, letters []Dead) error {
	st := s.in(tx, markTold)
	for i := range letters {
		l := &letters[i]
		if _, err := st.Exec(l.Row, l.Peer, l.Lane, int64(l.Pos.Epoch), int64(l.Pos.Seq)); err != nil {
			return err
		}
	}
	return nil
}

// DeadLetters returns the newest dead letters to a peer, or to all where peer is
// "", newest first.
func (s *Store) DeadLetters(ctx context.Context, peer string, limit int) ([]Dead, error) {
	if peer == "" {
		return collectRead(ctx, s, deadOfAll, scanDead, limit)
	}
	return collectRead(ctx, s, deadOfPeer, scanDead, peer, limit)
}

// DeadLetter returns one dead letter, or sql.ErrNoRows.
func (s *Store) DeadLetter(ctx context.Context, row int64) (Dead, error) {
	return readOne(ctx, s, deadLetter, scanDead, row)
}

// DropDead deletes dead letters, also those whose sender does not know.
func (s *Store) DropDead(tx *sql.Tx, rows []int64) error { return s.execEach(tx, dropDead, rows) }

// PurgeDead deletes dead letters that died before a time or that are not among the
// newest keep, oldest first and at most limit of them, and returns how many. It
// leaves alone, and does not count, those whose sender does not know.
func (s *Store) PurgeDead(tx *sql.Tx, keep int, before time.Time, limit int) (int64, error) {
	died, id := millis(before)-1, int64(math.MaxInt64)
	var keptDied, keptID int64
	err := s.in(tx, afterKept).QueryRow(keep).Scan(&keptDied, &keptID)
	switch {
	case err == nil && keptDied > died:
		died, id = keptDied, keptID
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return 0, err
	}
	res, err := s.in(tx, purgeDead).Exec(died, id, limit)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func scanDead(row scanner) (d Dead, err error) {
	var epoch, seq, at, expires, died int64
	err = row.Scan(&d.Row, &d.Peer, &d.Lane, &epoch, &seq, &d.Kind, &at, &expires, &died, &d.Told, &d.Reason, &d.Detail, &d.ID, &d.Conv, &d.Body)
	d.Pos = Pos{uint64(epoch), uint64(seq)}
	d.At, d.Expires, d.Died = fromMillis(at), fromMillis(expires), fromMillis(died)
	return d, err
}
