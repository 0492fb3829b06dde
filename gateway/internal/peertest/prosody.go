package peertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

func (s *Server) prosodyCommand() (argv, env []string) {
	return []string{"prosody", "--config", filepath.Join(s.cfg.Dir, "prosody.cfg.lua")}, nil
}

// prosodyRegister writes the account into the data directory. The user that has
// one keeps it.
func (s *Server) prosodyRegister(ctx context.Context, user, password string) error {
	// Prosody keeps a host's data in a directory of the percent-encoded name.
	account := filepath.Join(s.cfg.Dir, "data", encodeStore(s.Domain), "accounts", encodeStore(user)+".dat")
	if _, err := os.Stat(account); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	out, err := exec.CommandContext(ctx, "prosodyctl", "--config", filepath.Join(s.cfg.Dir, "prosody.cfg.lua"), "register", user, s.Domain, password).CombinedOutput()
	if err != nil {
		return fmt.Errorf("prosodyctl register: %w: %s", err, out)
	}
	if _, err := os.Stat(account); err != nil {
		return fmt.Errorf("prosodyctl register made no account: %w: %s", err, out)
	}
	return nil
}

// encodeStore is util.datamanager's encoding of names: all but ASCII letters and
// digits as %xx.
func encodeStore(s string) string {
	var b []byte
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' {
			b = append(b, c)
		} else {
			b = fmt.Appendf(b, "%%%02x", c)
		}
	}
	return string(b)
}
