package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// crashEnv names the database for the child of TestKill.
const crashEnv = "YGGATE_TEST_CRASH_DB"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashEnv); path != "" {
		if err := writeForever(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeForever writes numbers from 8 goroutines and prints each one after its
// Write has returned.
func writeForever(path string) error {
	s, err := Open(context.Background(), Options{Path: path})
	if err != nil {
		return err
	}
	epoch, err := s.NextEpoch(context.Background())
	if err != nil {
		return err
	}
	errs := make(chan error)
	var mu sync.Mutex
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				line := fmt.Sprintf("%d.%d.%d", epoch, w, i)
				if err := s.Write(context.Background(), note(line)); err != nil {
					errs <- err
					return
				}
				mu.Lock()
				_, err := fmt.Println(line)
				mu.Unlock()
				if err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	return <-errs
}

// TestKill kills a writing process over and over. Whatever Write acknowledged
// must be there, the database must be whole, and each life must get a higher epoch.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	acked := map[string]bool{}
	for round := range 5 {
		for _, line := range runAndKill(t, path, 50*(round+1)) {
			if acked[line] {
				t.Errorf("%s was written by two lives: an epoch came twice", line)
			}
			acked[line] = true
		}
	}
	s := openAt(t, path)
	have := map[string]bool{}
	for _, line := range notes(t, s) {
		have[line] = true
	}
	for line := range acked {
		if !have[line] {
			t.Errorf("%s was acknowledged and is lost", line)
		}
	}
	if len(acked) < 500 {
		t.Errorf("only %d writes were acknowledged", len(acked))
	}
	var ok string
	if err := s.Read().QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Errorf("integrity: %s, %v", ok, err)
	}
}

// runAndKill runs the child, kills it (SIGKILL) once it has acknowledged some
// writes, and returns all that it had acknowledged.
func runAndKill(t *testing.T, path string, after int) (lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		lines = append(lines, scan.Text())
		if len(lines) == after {
			if err := cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended by itself after %d lines: %v", len(lines), err)
	}
	// The kill may have cut the last line; it stands only if it is whole.
	if n := len(lines); n > 0 {
		lines = lines[:n-1]
	}
	return lines
}
