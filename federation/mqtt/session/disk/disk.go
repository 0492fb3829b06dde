// Package disk keeps the journals of MQTT sessions in the store.
package disk

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/store"
)

// Journal is a session.Journal in a store.
type Journal struct{ Store *store.Store }

var _ session.Journal = Journal{}

// Load reads what is kept of a session.
func (j Journal) Load(ctx context.Context, name string) (*session.State, error) {
	rows, err := j.Store.MQTTSession(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read MQTT session %q: %w", name, err)
	}
	st := &session.State{Life: rows.Life, Filters: rows.Filters,
		In: make(map[uint16]session.InState, len(rows.In)), Out: make(map[uint16]session.OutState, len(rows.Out))}
	for _, r := range rows.In {
		st.In[r.ID] = session.InState{Released: r.Released, Turn: r.Turn}
	}
	for _, r := range rows.Out {
		if len(r.Key) != len(session.Key{}) {
			return nil, fmt.Errorf("read MQTT session %q: packet id %d: a key of %d bytes", name, r.ID, len(r.Key))
		}
		st.Out[r.ID] = session.OutState{Key: session.Key(r.Key), Stage: session.Stage(r.Stage), Turn: r.Turn}
	}
	return st, nil
}

// Write writes changes in one transaction.
func (j Journal) Write(ctx context.Context, name string, changes []session.Change) error {
	err := j.Store.Write(ctx, func(tx *sql.Tx) error {
		for rest := changes; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].Op == rest[0].Op {
				n++
			}
			if err := j.write(tx, name, rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write MQTT session %q: %w", name, err)
	}
	return nil
}

// write writes changes of one kind. Those that come with each message go together.
func (j Journal) write(tx *sql.Tx, name string, changes []session.Change) error {
	switch changes[0].Op {
	case session.PutIn:
		rows := make([]store.MQTTIn, len(changes))
		for i := range changes {
			c := &changes[i]
			rows[i] = store.MQTTIn{ID: c.ID, Released: c.In.Released, Turn: c.In.Turn}
		}
		return j.Store.PutMQTTIn(tx, name, rows...)
	case session.PutOut:
		rows := make([]store.MQTTOut, len(changes))
		for i := range changes {
			c := &changes[i]
			rows[i] = store.MQTTOut{ID: c.ID, Key: c.Out.Key[:], Stage: uint8(c.Out.Stage), Turn: c.Out.Turn}
		}
		return j.Store.PutMQTTOut(tx, name, rows...)
	}
	for i := range changes {
		if err := j.writeOne(tx, name, &changes[i]); err != nil {
			return err
		}
	}
	return nil
}

func (j Journal) writeOne(tx *sql.Tx, name string, c *session.Change) error {
	switch c.Op {
	case session.CutOut:
		return j.Store.CutMQTTOut(tx, name, c.ID)
	case session.AddFilter:
		return store.AddMQTTFilter(tx, name, c.Filter)
	case session.CutFilter:
		return store.CutMQTTFilter(tx, name, c.Filter)
	case session.Reset:
		return store.ResetMQTTSession(tx, name, c.Life)
	}
	return fmt.Errorf("unknown change %d", c.Op)
}
