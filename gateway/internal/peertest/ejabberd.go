package peertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
)

// ejabberdCommand runs ejabberd as a plain Erlang program without distribution:
// no epmd, no node name, no port beyond those of its configuration.
func (s *Server) ejabberdCommand() (argv, env []string) {
	dir := s.cfg.Dir
	data := filepath.Join(dir, "data")
	return []string{"erl", "+K", "true", "-mnesia", "dir", `"` + data + `"`, "-s", "ejabberd", "-noinput"},
		[]string{
			"EJABBERD_CONFIG_PATH=" + filepath.Join(dir, "ejabberd.yml"),
			"EJABBERD_LOG_PATH=" + filepath.Join(dir, "log", "ejabberd.log"),
			"ERL_INETRC=" + filepath.Join(dir, "inetrc"),
			// Where Debian's packages put Erlang libraries.
			"ERL_LIBS=/usr/lib/x86_64-linux-gnu:/usr/lib/aarch64-linux-gnu",
			"ERL_CRASH_DUMP=" + filepath.Join(dir, "log", "crash.dump"),
			"ERL_CRASH_DUMP_BYTES=0",
			"HOME=" + data,
		}
}

// ejabberdRegister uses the HTTP API: ejabberdctl would start a second Erlang,
// which takes as long as the server's own start.
func (s *Server) ejabberdRegister(ctx context.Context, user, password string) error {
	body, err := json.Marshal(map[string]string{"user": user, "host": s.Domain, "password": password})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.api.String()+"/api/register", bytes.NewReader(body))
	if err != nil {
		return err
	}
	t := &http.Transport{DialContext: s.Dial}
	defer t.CloseIdleConnections()
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	// 409: the user exists.
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusConflict {
		return fmt.Errorf("ejabberd answered %s: %s", resp.Status, answer)
	}
	return nil
}
