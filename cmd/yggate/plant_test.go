package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/store"
)

// The numbers of protocols in the tables.
const (
	kindXMPP   = 1
	kindMatrix = 2
	kindMQTT   = 3
)

// plant writes what a gateway would have taken from its XMPP server: messages of
// alice@GRID.grid, taken AGE ago, to be given up after a week, those of group chats
// after a day. On the lanes bulk and mqtt they are what nobody can read.
func plant(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 5 || len(args) > 6 {
		ts.Fatalf("usage: plant GRID PEER LANE N AGE [told|untold]")
	}
	grid, peer, on := args[0], args[1], args[2]
	n, err := strconv.Atoi(args[3])
	ts.Check(err)
	age, err := time.ParseDuration(args[4])
	ts.Check(err)
	kind, life := int64(kindXMPP), 7*24*time.Hour
	switch on {
	case string(lane.Room):
		life = 24 * time.Hour
	case string(lane.Bulk):
		kind = kindMatrix
	case string(lane.MQTT):
		kind = kindMQTT
	}
	items := make([]store.LaneItem, n)
	for i := range items {
		taken := time.Now().Add(-age)
		items[i] = store.LaneItem{
			Kind: kind, Conv: grid + ".grid b.grid", At: taken, Expires: taken.Add(life),
			Body: fmt.Appendf(nil, "<message from='alice@%s.grid/phone' to='bob@b.grid' type='chat' id='m%d'><body>my secret %[2]d</body></message>", grid, i),
		}
	}
	ts.Check(plantItems(filepath.Join(ts.MkAbs(grid), "yggate.db"), peer, on, items, args[5:]...))
}

// plantItems appends items to the lane to a peer, and buries them where told says
// whether their senders have been told.
func plantItems(path, peer, on string, items []store.LaneItem, told ...string) (err error) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Options{Path: path})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	p, err := store.PeerByName(ctx, s.Read(), peer)
	if err != nil {
		return err
	}
	return s.Write(ctx, func(tx *sql.Tx) error {
		l, err := s.AddOutLane(tx, p.Grid, on)
		if err != nil {
			return err
		}
		for i := range items {
			l.Last = store.Pos{Epoch: max(l.Last.Epoch, 1), Seq: l.Last.Seq + 1}
			items[i].Pos = l.Last
			l.Items++
			l.Bytes += items[i].Size()
		}
		if err := s.AddOutItems(tx, l.ID, items); err != nil {
			return err
		}
		if len(told) > 0 {
			if err := s.BuryOut(tx, &l, items, lane.ReasonDropped, ""); err != nil {
				return err
			}
		}
		if len(told) > 0 && told[0] == "told" {
			if err := markAll(tx, s); err != nil {
				return err
			}
		}
		return s.SaveOutLane(tx, &l)
	})
}

// markAll notes that the senders of all dead letters have been told.
func markAll(tx *sql.Tx, s *store.Store) error {
	rows, err := tx.Query(`SELECT id, peer, lane, epoch, seq FROM dead`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var letters []store.Dead
	for rows.Next() {
		var d store.Dead
		if err := rows.Scan(&d.Row, &d.Peer, &d.Lane, &d.Pos.Epoch, &d.Pos.Seq); err != nil {
			return err
		}
		letters = append(letters, d)
	}
	return errors.Join(rows.Err(), s.MarkTold(tx, letters))
}
