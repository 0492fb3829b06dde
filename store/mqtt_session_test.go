package store

import (
	"database/sql"
	"errors"
	"path/filepath"
	"reflect"
	"testing"
)

func TestMQTTSession(t *testing.T) {
	s := openAt(t, filepath.Join(t.TempDir(), "db"))
	write := func(steps ...func(*sql.Tx) error) {
		t.Helper()
		err := s.Write(t.Context(), func(tx *sql.Tx) (err error) {
			for _, step := range steps {
				err = errors.Join(err, step(tx))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	in := func(session string, r MQTTIn) func(*sql.Tx) error {
		return func(tx *sql.Tx) error { return s.PutMQTTIn(tx, session, r) }
	}
	out := func(session string, r MQTTOut) func(*sql.Tx) error {
		return func(tx *sql.Tx) error { return s.PutMQTTOut(tx, session, r) }
	}
	reset := func(session string, life string) func(*sql.Tx) error {
		return func(tx *sql.Tx) error { return ResetMQTTSession(tx, session, []byte(life)) }
	}
	expect := func(session string, want *MQTTSession) {
		t.Helper()
		got, err := s.MQTTSession(t.Context(), session)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
	}
	expect("a", &MQTTSession{})
	write(reset("a", "one"), reset("b", "two"),
		in("a", MQTTIn{7, 1, 4}), in("a", MQTTIn{7, 2, 5}), in("b", MQTTIn{7, 9, 0}),
		out("a", MQTTOut{9000, []byte("k"), 1, 5}), out("a", MQTTOut{9000, []byte("k2"), 2, 6}), out("a", MQTTOut{65535, []byte("z"), 1, 7}),
		func(tx *sql.Tx) error { return AddMQTTFilter(tx, "a", "x/#") },
		func(tx *sql.Tx) error { return AddMQTTFilter(tx, "a", "x/#") },
		func(tx *sql.Tx) error { return AddMQTTFilter(tx, "a", "y") })
	expect("a", &MQTTSession{Life: []byte("one"), In: []MQTTIn{{7, 2, 5}},
		Out: []MQTTOut{{9000, []byte("k2"), 2, 6}, {65535, []byte("z"), 1, 7}}, Filters: []string{"x/#", "y"}})
	write(reset("a", "three"),
		func(tx *sql.Tx) error { return s.CutMQTTOut(tx, "a", 9000) },
		func(tx *sql.Tx) error { return CutMQTTFilter(tx, "a", "y") })
	expect("a", &MQTTSession{Life: []byte("three"), Out: []MQTTOut{{65535, []byte("z"), 1, 7}}, Filters: []string{"x/#"}})
	expect("b", &MQTTSession{Life: []byte("two"), In: []MQTTIn{{7, 9, 0}}})
}
