package store

import (
	"database/sql"
	"path/filepath"
	"reflect"
	"testing"
	"time"
)

func TestMatrixKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s := openAt(t, path)
	at := time.UnixMilli(1795000000123)
	b := MatrixKeys{Server: "b.grid", Peer: "gridbbbb", Keys: map[string]string{"ed25519:1": "k1"}, Fetched: at, ValidUntil: at.Add(time.Hour), Before: map[string]string{}}
	c := b
	c.Server, c.Peer = "c.grid:8448", "gridcccc"
	put := func(k MatrixKeys) {
		t.Helper()
		if err := s.Write(t.Context(), func(tx *sql.Tx) error { return PutMatrixKeys(tx, k) }); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want ...MatrixKeys) {
		t.Helper()
		got, err := AllMatrixKeys(t.Context(), s.Read())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v\nwant %+v", got, err, want)
		}
	}
	put(c)
	put(b)
	expect(b, c)
	b.Before, b.Keys = b.Keys, map[string]string{"ed25519:2": "k2"}
	b.Changed = at.Add(time.Minute)
	put(b)
	expect(b, c)
	drop := func(server, peer string) {
		t.Helper()
		if err := s.Write(t.Context(), func(tx *sql.Tx) error { return DeleteMatrixKeys(tx, server, peer) }); err != nil {
			t.Fatal(err)
		}
	}
	drop("b.grid", "gridcccc") // those of another holder stay
	expect(b, c)
	drop("c.grid:8448", "gridcccc")
	expect(b)
	put(MatrixKeys{Server: "d.grid"})
	expect(b, MatrixKeys{Server: "d.grid", Keys: map[string]string{}, Before: map[string]string{}})
}
