package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// rawDB opens a database file as any SQLite program would.
func rawDB(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// plant makes a database file of SQL, mode 0600, and returns its path.
func plant(t *testing.T, statements string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(statements); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// schema returns the schema as SQLite has it, without white space and comments.
func schema(t *testing.T, q Queryer) string {
	t.Helper()
	parts, err := collect(t.Context(), q, func(row scanner) (s string, err error) {
		err = row.Scan(&s)
		return s, err
	}, `SELECT coalesce(sql, name) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name`)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, line := range strings.Split(strings.Join(parts, "\n"), "\n") {
		line, _, _ = strings.Cut(line, "--")
		out = append(out, strings.Fields(line)...)
	}
	return strings.Join(out, " ")
}

// TestUpgradeOfEveryFrozenSchema opens what each released version left behind.
func TestUpgradeOfEveryFrozenSchema(t *testing.T) {
	fresh := schema(t, openTemp(t).Read())
	for version := 1; version <= len(migrations); version++ {
		t.Run(fmt.Sprint("from ", version), func(t *testing.T) {
			frozen, err := os.ReadFile(fmt.Sprintf("testdata/frozen/%d.sql", version))
			if err != nil {
				t.Fatalf("each schema version needs its frozen database: %v", err)
			}
			path := plant(t, string(frozen))
			var stored int
			if err := rawDB(t, path).QueryRow("PRAGMA user_version").Scan(&stored); err != nil || stored != version {
				t.Fatalf("the frozen database says version %d, %v", stored, err)
			}
			s := openAt(t, path)
			if got := schema(t, s.Read()); got != fresh {
				t.Errorf("upgraded schema\n%s\nfresh schema\n%s", got, fresh)
			}
			checkFrozenRows(t, s)
			if version >= 2 {
				checkFrozenLanes(t, s)
			}
			if version >= 3 {
				checkFrozenMatrix(t, s)
			}
			if version >= 4 {
				checkFrozenMQTT(t, s)
			}
			if version >= 5 {
				checkFrozenReleased(t, s)
			}
		})
	}
}

func checkFrozenRows(t *testing.T, s *Store) {
	t.Helper()
	ctx, q := t.Context(), s.Read()
	peers, err := Peers(ctx, q)
	if err != nil || len(peers) != 2 || peers[0].Name != "bob" || peers[0].Seq != 42 || peers[0].LastHeard.Unix() != 1795000002 ||
		peers[1].IntroducedBy != "gridbbbb" || !peers[1].LastHeard.IsZero() {
		t.Errorf("peers %+v, %v", peers, err)
	}
	if c, err := ActiveClaim(ctx, q, "xmpp", "bob.grid"); err != nil || c.Grid != "gridbbbb" {
		t.Errorf("claim %+v, %v", c, err)
	}
	if i, err := InviteByID(ctx, q, []byte{0x0a}); err != nil || i.UsedBy != "gridcccc" || i.Expect[0] != "carol.grid" {
		t.Errorf("invite %+v, %v", i, err)
	}
	if d, err := Own(ctx, q); err != nil || d.Seq != 1795000001 || d.Rot != 1 {
		t.Errorf("own descriptor %+v, %v", d, err)
	}
	if p, err := Peerings(ctx, q); err != nil || len(p) != 1 {
		t.Errorf("peerings %+v, %v", p, err)
	}
	if a, err := Audit(ctx, q, 10); err != nil || len(a) != 1 || a[0].Event != "peer-approve" {
		t.Errorf("audit %+v, %v", a, err)
	}
	if e, err := s.NextEpoch(ctx); err != nil || e <= 1795000000 {
		t.Errorf("epoch %d, %v", e, err)
	}
}

func checkFrozenLanes(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	if l, err := s.OutLanes(ctx); err != nil || len(l) != 1 ||
		l[0] != (OutLane{1, "gridbbbb", "chat", Pos{1795000000, 8}, Pos{1795000000, 6}, 2, 300}) {
		t.Errorf("out lanes %+v, %v", l, err)
	}
	if it, err := s.OutItems(ctx, 1, Pos{1795000000, 7}, 10, 1000); err != nil || len(it) != 1 || string(it[0].Body) != "<m/>" || !it[0].Expires.IsZero() {
		t.Errorf("outbox %+v, %v", it, err)
	}
	if l, err := s.InLanes(ctx); err != nil || len(l) != 1 || l[0] != (InLane{1, "gridbbbb", "chat", Pos{1794999999, 12}, 1795000000}) {
		t.Errorf("in lanes %+v, %v", l, err)
	}
	if it, err := s.InItems(ctx, 1); err != nil || len(it) != 1 || it[0].Pos != (Pos{1794999999, 12}) || it[0].Conv != "bob@b.grid alice@a.grid" {
		t.Errorf("inbox %+v, %v", it, err)
	}
	if known, err := s.KnownTaken(ctx, 1, [][]byte{{0xbb, 0x12}, {0xbb}}); err != nil || !known[0] || known[1] {
		t.Errorf("taken %v, %v", known, err)
	}
	if d, err := s.Untold(ctx, "gridbbbb", 0, 10); err != nil || len(d) != 1 || d[0].Reason != "expired" || d[0].Died.UnixMilli() != 1795000000127 {
		t.Errorf("dead %+v, %v", d, err)
	}
}

func checkFrozenMatrix(t *testing.T, s *Store) {
	t.Helper()
	k, err := AllMatrixKeys(t.Context(), s.Read())
	if err != nil || len(k) != 1 || k[0].Server != "bob.grid" || k[0].Peer != "gridbbbb" || k[0].Keys["ed25519:2"] != "bmV3" ||
		k[0].ValidUntil.UnixMilli() != 1795086400000 || k[0].Changed.UnixMilli() != 1794990000000 || k[0].Before["ed25519:1"] != "b2xk" {
		t.Errorf("matrix keys %+v, %v", k, err)
	}
}

func checkFrozenMQTT(t *testing.T, s *Store) {
	t.Helper()
	want := &MQTTSession{
		Life: []byte{1, 2}, Filters: []string{"home/+/temp"},
		In:  []MQTTIn{{ID: 65535, Released: 7, Turn: 88}},
		Out: []MQTTOut{{ID: 8192, Key: []byte{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}, Stage: 2, Turn: 77}},
	}
	if got, err := s.MQTTSession(t.Context(), "yggate-aaaa"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("MQTT session %+v, %v", got, err)
	}
	var hash []byte
	err := s.Read().QueryRow(`SELECT hash FROM mqtt_retained WHERE peer = 'gridbbbb' AND topic = 'home/hall/temp'`).Scan(&hash)
	if err != nil || string(hash) != "\x0a\x0b" {
		t.Errorf("retained %x, %v", hash, err)
	}
}

func checkFrozenReleased(t *testing.T, s *Store) {
	t.Helper()
	err := s.Write(t.Context(), func(tx *sql.Tx) error {
		if was, err := TakeReleased(tx, "matrix", "bob.grid", "gridbbbb"); err != nil || !was {
			t.Errorf("released: %v, %v", was, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	newer := fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d; CREATE TABLE t (x)", len(migrations)+1, applicationID)
	for name, c := range map[string]struct {
		path func(t *testing.T) string
		want string
	}{
		"newer schema":       {func(t *testing.T) string { return plant(t, newer) }, "a newer yggate wrote it"},
		"another program's":  {func(t *testing.T) string { return plant(t, "CREATE TABLE t (x)") }, "another program"},
		"readable by others": {func(t *testing.T) string { p := plant(t, ""); os.Chmod(p, 0o644); return p }, "chmod 600"},
		"no database": {func(t *testing.T) string {
			p := plant(t, "")
			os.WriteFile(p, []byte(strings.Repeat("hello", 1000)), 0o600)
			return p
		}, "not a database"},
		"a directory":        {func(t *testing.T) string { return t.TempDir() }, "not a regular file"},
		"below a plain file": {func(t *testing.T) string { return plant(t, "") + "/db" }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			path := c.path(t)
			s, err := Open(t.Context(), Options{Path: path})
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q does not say %q", err, c.want)
			}
		})
	}
}

func TestFailedMigrationChangesNothing(t *testing.T) {
	path := plant(t, "")
	db := rawDB(t, path)
	err := migrate(context.Background(), db, []string{"CREATE TABLE a (x)", "CREATE TABLE a (y)"})
	if err == nil || !strings.Contains(err.Error(), "to version 2") {
		t.Fatalf("got %v", err)
	}
	var version, tables int
	if err := db.QueryRow("SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version").Scan(&version, &tables); err != nil || version != 0 || tables != 0 {
		t.Errorf("version %d, %d tables, %v", version, tables, err)
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "state", "yggate.db")
	s := openAt(t, path)
	if err := s.Write(t.Context(), note("x")); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %o", info.Name(), info.Mode().Perm())
		}
	}
	if info, err := os.Stat(filepath.Dir(path)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
}

func TestOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a ?b#c%41&mode=ro.db")
	s := openAt(t, path)
	if err := s.Write(t.Context(), note("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestPragmas(t *testing.T) {
	s := openTemp(t)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "5000"} {
		var got string
		if err := s.writer.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %s, %v; want %s", pragma, got, err, want)
		}
	}
}

func TestOpenOfACurrentDatabaseWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err = Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("opening a database that is up to date changed its file")
	}
}
