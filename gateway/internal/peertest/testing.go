package peertest

import (
	"context"
	"errors"
	"testing"
)

// Require fails the test if a named program is missing, and skips it, saying so,
// if YGGATE_SKIP names one.
func Require(t testing.TB, names ...string) {
	t.Helper()
	err := Need(names...)
	switch {
	case errors.Is(err, ErrSkipped):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
}

// runnable is a Server, a Dendrite or a Mosquitto.
type runnable interface {
	Start(context.Context) error
	Stop() error
	LogFile() string
}

// Run starts a server for the length of a test. If the test fails, the end of
// the server's log is shown.
func Run(t testing.TB, s runnable) {
	t.Helper()
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", s.LogFile(), tail(s.LogFile(), 60))
		}
	})
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// User registers a user, logs it in and ends the session with the test.
func User(t testing.TB, s *Server, cfg ClientConfig, name string) Party {
	t.Helper()
	p, err := s.User(t.Context(), cfg, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// MatrixUser registers a user, logs it in and ends the session with the test.
func MatrixUser(t testing.TB, d *Dendrite, name string) *MatrixClient {
	t.Helper()
	c, err := d.User(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
