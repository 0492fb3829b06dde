package store

import (
	"context"
	"database/sql"
	"errors"
)

// MQTTSession is what is kept of a session with an MQTT broker: the rows of the
// tables mqtt_session, mqtt_in, mqtt_out and mqtt_filter.
type MQTTSession struct {
	Life    []byte // nil where the session has none yet
	In      []MQTTIn
	Out     []MQTTOut
	Filters []string
}

// MQTTIn is a packet id of the broker's.
type MQTTIn struct {
	ID       uint16
	Released uint32 // how often
	Turn     uint64 // grows with each message; 0: none to speak of
}

// MQTTOut is a packet id of ours.
type MQTTOut struct {
	ID    uint16
	Key   []byte
	Stage uint8
	Turn  uint64 // grows with each message
}

var (
	mqttLife    = prepareRead(`SELECT life FROM mqtt_session WHERE session = ?`)
	mqttIn      = prepareRead(`SELECT id, released, turn FROM mqtt_in WHERE session = ? ORDER BY id`)
	mqttOut     = prepareRead(`SELECT id, key, stage, turn FROM mqtt_out WHERE session = ? ORDER BY id`)
	mqttFilters = prepareRead(`SELECT filter FROM mqtt_filter WHERE session = ? ORDER BY filter`)

	putMQTTIn = prepareInsert(`mqtt_in`, `session, id, released, turn`,
		` ON CONFLICT (session, id) DO UPDATE SET released = excluded.released, turn = excluded.turn`)
	putMQTTOut = prepareInsert(`mqtt_out`, `session, id, key, stage, turn`,
		` ON CONFLICT (session, id) DO UPDATE SET key = excluded.key, stage = excluded.stage, turn = excluded.turn`)
	cutMQTTOut = prepareWrite(`DELETE FROM mqtt_out WHERE session = ? AND id = ?`)
)

// MQTTSession returns what is kept of a session.
func (s *Store) MQTTSession(ctx context.Context, session string) (*MQTTSession, error) {
	m := &MQTTSession{}
	var err error
	m.Life, err = readOne(ctx, s, mqttLife, func(row scanner) (life []byte, err error) {
		err = row.Scan(&life)
		return life, err
	}, session)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	m.In, err = collectRead(ctx, s, mqttIn, func(row scanner) (r MQTTIn, err error) {
		var turn int64
		err = row.Scan(&r.ID, &r.Released, &turn)
		r.Turn = uint64(turn)
		return r, err
	}, session)
	if err != nil {
		return nil, err
	}
	m.Out, err = collectRead(ctx, s, mqttOut, func(row scanner) (r MQTTOut, err error) {
		var turn int64
		err = row.Scan(&r.ID, &r.Key, &r.Stage, &turn)
		r.Turn = uint64(turn)
		return r, err
	}, session)
	if err != nil {
		return nil, err
	}
	m.Filters, err = collectRead(ctx, s, mqttFilters, func(row scanner) (f string, err error) {
		err = row.Scan(&f)
		return f, err
	}, session)
	return m, err
}

// PutMQTTIn inserts or replaces, in order, rows of packet ids of the broker's.
func (s *Store) PutMQTTIn(tx *sql.Tx, session string, rows ...MQTTIn) error {
	return s.insert(tx, putMQTTIn, len(rows), func(values []any, i int) []any {
		return append(values, session, int64(rows[i].ID), int64(rows[i].Released), int64(rows[i].Turn))
	})
}

// PutMQTTOut inserts or replaces, in order, rows of packet ids of ours.
func (s *Store) PutMQTTOut(tx *sql.Tx, session string, rows ...MQTTOut) error {
	return s.insert(tx, putMQTTOut, len(rows), func(values []any, i int) []any {
		return append(values, session, int64(rows[i].ID), rows[i].Key, int64(rows[i].Stage), int64(rows[i].Turn))
	})
}

// CutMQTTOut deletes the row of a packet id of ours, if there is one.
func (s *Store) CutMQTTOut(tx *sql.Tx, session string, id uint16) error {
	_, err := s.in(tx, cutMQTTOut).Exec(session, id)
	return err
}

// ResetMQTTSession begins another life of a session: no id of the broker's is known.
func ResetMQTTSession(tx *sql.Tx, session string, life []byte) error {
	_, err := tx.Exec(`INSERT INTO mqtt_session (session, life) VALUES (?, ?)
		ON CONFLICT (session) DO UPDATE SET life = excluded.life`, session, life)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM mqtt_in WHERE session = ?`, session)
	return err
}

// AddMQTTFilter notes that the broker may have a subscription.
func AddMQTTFilter(tx *sql.Tx, session, filter string) error {
	_, err := tx.Exec(`INSERT OR IGNORE INTO mqtt_filter (session, filter) VALUES (?, ?)`, session, filter)
	return err
}

// CutMQTTFilter notes that the broker has none.
func CutMQTTFilter(tx *sql.Tx, session, filter string) error {
	_, err := tx.Exec(`DELETE FROM mqtt_filter WHERE session = ? AND filter = ?`, session, filter)
	return err
}
