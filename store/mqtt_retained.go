package store

import (
	"context"
	"database/sql"
	"errors"
)

// MQTTRetained is a row of the table mqtt_retained: what a peer was last told that a
// topic holds.
type MQTTRetained struct {
	Topic string
	Hash  []byte // of the message; empty: not known
}

var (
	mqttRetained    = prepareRead(`SELECT topic, hash FROM mqtt_retained WHERE peer = ?`)
	oneMQTTRetained = prepareRead(`SELECT hash FROM mqtt_retained WHERE peer = ? AND topic = ?`)
	putMQTTRetained = prepareWrite(`INSERT INTO mqtt_retained (peer, topic, hash) VALUES (?, ?, ?)
		ON CONFLICT (peer, topic) DO UPDATE SET hash = excluded.hash`)
	cutMQTTRetained = prepareWrite(`DELETE FROM mqtt_retained WHERE peer = ? AND topic = ?`)
)

// MQTTRetained returns what a peer was told.
func (s *Store) MQTTRetained(ctx context.Context, peer string) ([]MQTTRetained, error) {
	return collectRead(ctx, s, mqttRetained, func(row scanner) (r MQTTRetained, err error) {
		err = row.Scan(&r.Topic, &r.Hash)
		return r, err
	}, peer)
}

// MQTTRetainedOf returns what a peer was told of one topic; no hash: nothing.
func (s *Store) MQTTRetainedOf(ctx context.Context, peer, topic string) (MQTTRetained, error) {
	r, err := readOne(ctx, s, oneMQTTRetained, func(row scanner) (r MQTTRetained, err error) {
		err = row.Scan(&r.Hash)
		return r, err
	}, peer, topic)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	r.Topic = topic
	return r, err
}

// PutMQTTRetained notes what a peer is told.
func (s *Store) PutMQTTRetained(tx *sql.Tx, peer string, r MQTTRetained) error {
	if r.Hash == nil {
		r.Hash = []byte{}
	}
	_, err := s.in(tx, putMQTTRetained).Exec(peer, r.Topic, r.Hash)
	return err
}

// CutMQTTRetained notes that a peer is told of nothing in a topic.
func (s *Store) CutMQTTRetained(tx *sql.Tx, peer, topic string) error {
	_, err := s.in(tx, cutMQTTRetained).Exec(peer, topic)
	return err
}

// DoubtMQTTRetained makes all that a peer was told unknown.
func DoubtMQTTRetained(tx *sql.Tx, peer string) error {
	_, err := tx.Exec(`UPDATE mqtt_retained SET hash = x'' WHERE peer = ?`, peer)
	return err
}

// ForgetMQTTRetained deletes all that a peer was told.
func ForgetMQTTRetained(tx *sql.Tx, peer string) error {
	_, err := tx.Exec(`DELETE FROM mqtt_retained WHERE peer = ?`, peer)
	return err
}
