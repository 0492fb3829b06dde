package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownMounts names the environment variable by which this program knows that it is
// in a mount namespace of its own.
const ownMounts = "YGGATE_CHAOS_MOUNTS"

// inOwnMounts runs this program again in a mount namespace of its own, so that no
// file system outlives it however it ends, and returns its exit code. It is false
// where that was done already or takes rights that this process has not.
func inOwnMounts() (code int, ran bool) {
	if os.Getenv(ownMounts) != "" || os.Geteuid() != 0 {
		return 0, false
	}
	self, err := os.Executable()
	if err != nil {
		return 0, false
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownMounts+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGTERM}
	// Ctrl-C reaches the child as well, which has to clear up first.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, true
	case errors.As(err, &exit):
		return max(1, exit.ExitCode()), true
	}
	return 1, true
}

// mayMount says whether disks can be had here.
func mayMount() bool { return os.Getenv(ownMounts) != "" }

// disk is a small file system of its own that can be filled.
type disk struct {
	dir, ballast string
}

// mountDisk mounts a disk of so many bytes on a directory.
func mountDisk(dir string, size int64) (*disk, error) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		return nil, fmt.Errorf("mount a disk of %d bytes at %s: %w", size, dir, err)
	}
	return &disk{dir: dir, ballast: filepath.Join(dir, "ballast")}, nil
}

// unmount takes the disk away with what is on it.
func (d *disk) unmount() error {
	if err := unix.Unmount(d.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.dir, err)
	}
	return nil
}

// fill leaves no block free.
func (d *disk) fill() error {
	f, err := os.OpenFile(d.ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("fill the disk: %w", err)
	}
	defer f.Close()
	at := int64(0)
	for step := int64(1 << 20); step >= 4096; {
		err := unix.Fallocate(int(f.Fd()), 0, at, step)
		switch {
		case err == nil:
			at += step
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

// free makes room again.
func (d *disk) free() error {
	if err := os.Remove(d.ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free the disk: %w", err)
	}
	return nil
}
