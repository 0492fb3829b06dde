package store

import (
	"context"
	"path/filepath"
	"testing"
)

// openTemp opens a store in a fresh directory and closes it with the test.
func openTemp(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "state", "yggate.db"))
}

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(context.Background(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestNextEpochGrows(t *testing.T) {
	s := openTemp(t)
	a, err := s.NextEpoch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.NextEpoch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b <= a {
		t.Fatalf("epochs %d, %d: want the second higher", a, b)
	}
}
