package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("to mount a file system takes root")
	}
	d, err := mountDisk(t.TempDir(), 3<<20+5*4096)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.unmount(); err != nil {
			t.Error(err)
		}
	}()
	file := filepath.Join(d.dir, "file")
	for range 2 {
		if err := d.fill(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, 1), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("on a full disk: got %v", err)
		}
		if err := d.free(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, 2<<20), 0o600); err != nil {
			t.Fatal("on a freed disk:", err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
