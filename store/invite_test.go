package store

import (
	"database/sql"
	"testing"
	"time"
)

func TestUseInvite(t *testing.T) {
	made := time.Unix(1_795_000_000, 0)
	expires := made.Add(time.Hour)
	type use struct {
		grid string
		at   time.Time
		want bool
	}
	for name, c := range map[string]struct {
		revoke bool
		uses   []use
	}{
		"once":                    {false, []use{{"a", made, true}, {"b", made, false}}},
		"again by the same":       {false, []use{{"a", made, true}, {"a", made, true}}},
		"again after its time":    {false, []use{{"a", made, true}, {"a", expires.Add(time.Hour), true}}},
		"too late":                {false, []use{{"a", expires, false}, {"a", made, true}}},
		"revoked":                 {true, []use{{"a", made, false}}},
		"the first is remembered": {false, []use{{"a", made, true}, {"b", made, false}, {"a", made, true}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := openTemp(t)
			id := []byte{1}
			if err := s.Write(t.Context(), func(tx *sql.Tx) error {
				return InsertInvite(tx, Invite{ID: id, Key: []byte{2}, Name: "x", Created: made, Expires: expires})
			}); err != nil {
				t.Fatal(err)
			}
			if c.revoke {
				if err := s.Write(t.Context(), func(tx *sql.Tx) error { _, err := RevokeInvite(tx, id, made); return err }); err != nil {
					t.Fatal(err)
				}
			}
			for i, u := range c.uses {
				var got bool
				if err := s.Write(t.Context(), func(tx *sql.Tx) (err error) {
					got, err = UseInvite(tx, id, u.grid, u.at)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				if got != u.want {
					t.Errorf("use %d by %s: %v, want %v", i, u.grid, got, u.want)
				}
			}
		})
	}
}

func TestRevokeInviteOnlyUnused(t *testing.T) {
	s := openTemp(t)
	now := time.Unix(1_795_000_000, 0)
	err := s.Write(t.Context(), func(tx *sql.Tx) error {
		if err := InsertInvite(tx, Invite{ID: []byte{1}, Key: []byte{2}, Name: "x", Created: now, Expires: now.Add(time.Hour)}); err != nil {
			return err
		}
		if _, err := UseInvite(tx, []byte{1}, "a", now); err != nil {
			return err
		}
		done, err := RevokeInvite(tx, []byte{1}, now)
		if done {
			t.Error("a used invite was revoked")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAuditStaysBounded(t *testing.T) {
	s := openTemp(t)
	err := s.Write(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec(`INSERT INTO audit (id, at, event, peer, detail) VALUES (1, 0, '', '', 'oldest'), (?, 0, '', '', 'newest')`, maxAudit); err != nil {
			return err
		}
		return note("one more")(tx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := notes(t, s); len(got) != 2 || got[0] != "newest" {
		t.Errorf("kept %q", got)
	}
}
