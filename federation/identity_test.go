package federation

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newIdentity makes an identity in a fresh directory.
func newIdentity(t testing.TB) (id *Identity, dir, recovery string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "keys")
	id, recovery, err := CreateIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id, dir, recovery
}

func TestCreateIdentity(t *testing.T) {
	id, dir, _ := newIdentity(t)
	if id.ID() != NewGridID(id.Key()) {
		t.Errorf("id %s is not made of the key", id.ID())
	}
	for _, name := range []string{GridKeyFile, NodeKeyFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, info.Mode().Perm())
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	again, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID() != id.ID() || !again.Key().Equal(id.Key()) || again.next != id.next || again.NodeSPKI() != id.NodeSPKI() {
		t.Error("the loaded identity is not the created one")
	}
	if _, _, err := CreateIdentity(dir); err == nil || !strings.Contains(err.Error(), "has an identity already") {
		t.Errorf("second creation: %v", err)
	}
}

func TestCreateIdentityAfterCrash(t *testing.T) {
	dir := t.TempDir()
	if _, err := CreateKeyFile(filepath.Join(dir, NodeKeyFile)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := CreateIdentity(dir); err != nil {
		t.Fatalf("a node key alone stands in the way: %v", err)
	}
}

func TestNextKeyIsNotOnDisk(t *testing.T) {
	_, dir, recovery := newIdentity(t)
	secret, err := parseRecovery(recovery)
	if err != nil {
		t.Fatal(err)
	}
	next, err := recoveryKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{GridKeyFile, NodeKeyFile} {
		path := filepath.Join(dir, name)
		key, err := LoadKeyFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if key.Equal(next) {
			t.Errorf("%s holds the next key", name)
		}
	}
}

func TestLoadIdentityErrors(t *testing.T) {
	rsa := "-----BEGIN PRIVATE KEY-----\nMFQCAQAwEAYHKoZIzj0CAQYFK4EEAAoEPTA7AgEBBCA=\n-----END PRIVATE KEY-----\n"
	for name, c := range map[string]struct {
		spoil func(t *testing.T, dir string)
		want  []string
	}{
		"no grid key":       {func(t *testing.T, d string) { unlink(t, d, GridKeyFile) }, []string{GridKeyFile, "yggate init"}},
		"no node key":       {func(t *testing.T, d string) { unlink(t, d, NodeKeyFile) }, []string{NodeKeyFile, "restore it from your backup"}},
		"grid key readable": {func(t *testing.T, d string) { chmod(t, d, GridKeyFile) }, []string{"0640", "chmod 600"}},
		"node key readable": {func(t *testing.T, d string) { chmod(t, d, NodeKeyFile) }, []string{"0640", "chmod 600"}},
		"garbage":           {func(t *testing.T, d string) { write(t, d, "hello") }, []string{"PEM", "backup"}},
		"another key type":  {func(t *testing.T, d string) { write(t, d, rsa) }, []string{"backup"}},
		"empty":             {func(t *testing.T, d string) { write(t, d, "") }, []string{"PEM"}},
		"too long":          {func(t *testing.T, d string) { write(t, d, strings.Repeat("x", 70<<10)) }, []string{"71680 bytes"}},
		"history cut off":   {func(t *testing.T, d string) { cut(t, d) }, []string{pemGrid, "backup"}},
		"key of another":    {func(t *testing.T, d string) { swap(t, d) }, []string{"history of the grid key", "backup"}},
		"a directory":       {func(t *testing.T, d string) { unlink(t, d, GridKeyFile); mkdir(t, d, GridKeyFile) }, []string{"not a regular file"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, dir, _ := newIdentity(t)
			c.spoil(t, dir)
			_, err := LoadIdentity(dir)
			if err == nil {
				t.Fatal("loaded")
			}
			for _, w := range append(c.want, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func unlink(t *testing.T, dir, name string) { must(t, os.Remove(filepath.Join(dir, name))) }
func chmod(t *testing.T, dir, name string)  { must(t, os.Chmod(filepath.Join(dir, name), 0o640)) }
func mkdir(t *testing.T, dir, name string)  { must(t, os.Mkdir(filepath.Join(dir, name), 0o700)) }
func write(t *testing.T, dir, s string) {
	must(t, os.WriteFile(filepath.Join(dir, GridKeyFile), []byte(s), 0o600))
}

func cut(t *testing.T, dir string) {
	raw, err := os.ReadFile(filepath.Join(dir, GridKeyFile))
	must(t, err)
	key, _, _ := strings.Cut(string(raw), "-----BEGIN "+pemGrid)
	write(t, dir, key)
}

func swap(t *testing.T, dir string) {
	key, err := os.ReadFile(filepath.Join(dir, NodeKeyFile))
	must(t, err)
	grid, err := os.ReadFile(filepath.Join(dir, GridKeyFile))
	must(t, err)
	_, history, _ := strings.Cut(string(grid), "-----BEGIN "+pemGrid)
	write(t, dir, string(key)+"-----BEGIN "+pemGrid+history)
}

func TestRotate(t *testing.T) {
	first, dir, sheet := newIdentity(t)
	firstKey := first.Key()
	for rot := 1; rot <= 3; rot++ {
		before, err := LoadIdentity(dir)
		must(t, err)
		var next string
		id, err := Rotate(dir, strings.ToLower(sheet), func(s string) error { next = s; return nil })
		must(t, err)
		if id.ID() != first.ID() || id.Key().Equal(before.Key()) || id.Rot() != rot || HashKey(id.Key()) != before.next {
			t.Fatalf("rotation %d: id %s key %x rot %d", rot, id.ID(), id.Key(), id.Rot())
		}
		loaded, err := LoadIdentity(dir)
		must(t, err)
		if loaded.NodeSPKI() == before.NodeSPKI() || loaded.NodeSPKI() != id.NodeSPKI() {
			t.Fatalf("rotation %d left the node its key", rot)
		}
		if !loaded.Key().Equal(id.Key()) || verifyHistory(first.ID(), loaded.past, loaded.Key()) != nil {
			t.Fatalf("rotation %d was not written", rot)
		}
		if _, err := Rotate(dir, sheet, func(string) error { return nil }); err == nil || !strings.Contains(err.Error(), "not the recovery sheet") {
			t.Fatalf("a sheet was good twice: %v", err)
		}
		sheet = next
	}
	if first.ID() != NewGridID(firstKey) {
		t.Error("the id moved")
	}
}

func TestRotateKeepsTheKeyWhenTheSheetIsNotKept(t *testing.T) {
	id, dir, sheet := newIdentity(t)
	full := errors.New("printer is on fire")
	if _, err := Rotate(dir, sheet, func(string) error { return full }); !errors.Is(err, full) {
		t.Fatalf("got %v", err)
	}
	same, err := LoadIdentity(dir)
	must(t, err)
	if !same.Key().Equal(id.Key()) {
		t.Fatal("the key was rotated, and nobody has the new sheet")
	}
}

func TestRecoverySheet(t *testing.T) {
	_, _, sheet := newIdentity(t)
	if groups := strings.Fields(sheet); len(groups) != 8 || len(sheet) != 63 {
		t.Errorf("sheet %d groups, %d characters", len(groups), len(sheet))
	}
	want, err := parseRecovery(sheet)
	must(t, err)
	for _, typed := range []string{
		strings.ToLower(sheet), strings.ReplaceAll(sheet, " ", "-"), strings.ReplaceAll(sheet, " ", "\n"),
		strings.NewReplacer("O", "0", "I", "1", "B", "8").Replace(sheet),
	} {
		if got, err := parseRecovery(typed); err != nil || string(got) != string(want) {
			t.Errorf("%v", err)
		}
	}
	wrong := []byte(sheet)
	if wrong[10]++; wrong[10] > 'Z' || wrong[10] < 'A' {
		wrong[10] = 'A'
	}
	for typed, says := range map[string]string{
		string(wrong):   "mistyped",
		sheet[1:]:       "55 characters",
		"$" + sheet[1:]: "A-Z",
		"":              "0 characters",
	} {
		if _, err := parseRecovery(typed); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error that says %q, got %v", says, err)
		}
	}
}
