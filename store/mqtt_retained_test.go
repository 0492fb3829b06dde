package store

import (
	"database/sql"
	"path/filepath"
	"slices"
	"testing"
)

func TestMQTTRetained(t *testing.T) {
	ctx := t.Context()
	s, err := Open(ctx, Options{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write := func(what string, fn func(tx *sql.Tx) error) {
		t.Helper()
		if err := s.Write(ctx, fn); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	rows := func(peer string) (out []string) {
		t.Helper()
		all, err := s.MQTTRetained(ctx, peer)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			out = append(out, r.Topic+"="+string(r.Hash))
		}
		slices.Sort(out)
		return out
	}
	put := func(peer, topic, hash string) {
		t.Helper()
		write("put", func(tx *sql.Tx) error {
			return s.PutMQTTRetained(tx, peer, MQTTRetained{Topic: topic, Hash: []byte(hash)})
		})
	}
	put("b", "x", "1")
	put("b", "y", "2")
	put("b", "x", "3")
	put("c", "x", "4")
	if got := rows("b"); !slices.Equal(got, []string{"x=3", "y=2"}) {
		t.Errorf("b was told %v", got)
	}
	for topic, want := range map[string]string{"x": "3", "none": ""} {
		if r, err := s.MQTTRetainedOf(ctx, "b", topic); err != nil || r.Topic != topic || string(r.Hash) != want {
			t.Errorf("b was told %+v of %s, %v", r, topic, err)
		}
	}
	write("cut", func(tx *sql.Tx) error { return s.CutMQTTRetained(tx, "b", "y") })
	write("doubt", func(tx *sql.Tx) error { return DoubtMQTTRetained(tx, "b") })
	if got := rows("b"); !slices.Equal(got, []string{"x="}) {
		t.Errorf("b was told %v", got)
	}
	write("put nothing", func(tx *sql.Tx) error { return s.PutMQTTRetained(tx, "b", MQTTRetained{Topic: "z"}) })
	write("forget", func(tx *sql.Tx) error { return ForgetMQTTRetained(tx, "b") })
	if got := rows("b"); len(got) != 0 || !slices.Equal(rows("c"), []string{"x=4"}) {
		t.Errorf("b was told %v, c %v", got, rows("c"))
	}
}
