package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"
)

// maxSocketPath is what a unix socket's address has room for on Linux.
const maxSocketPath = 107

// SocketPath returns where the gateway with that state directory listens.
func SocketPath(state string) string { return filepath.Join(state, "run", "admin.sock") }

// CheckPath says whether a path is short enough for a socket.
func CheckPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("%s has %d bytes, a socket's path at most %d; use a shorter state directory", path, len(path), maxSocketPath)
	}
	return nil
}

// Listen opens the admin socket, mode 0600 in a directory of mode 0700. What a
// dead gateway left behind is removed; anything else that is in the way, a live
// gateway above all, is an error. Close removes the socket.
func Listen(path string) (net.Listener, error) {
	fail := func(err error) (net.Listener, error) { return nil, fmt.Errorf("open admin socket: %w", err) }
	if err := CheckPath(path); err != nil {
		return fail(err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	// The directory keeps others out from the first moment, so that the mode of
	// the socket itself may come a moment after it.
	if err := os.Chmod(dir, 0o700); err != nil {
		return fail(err)
	}
	if err := removeStale(path); err != nil {
		return fail(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fail(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fail(err)
	}
	return l, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way and not a socket; move it", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("another gateway is running on %s; stop it first", path)
	}
	return os.Remove(path)
}
