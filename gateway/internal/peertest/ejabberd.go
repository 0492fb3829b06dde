package peertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
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

// addSections puts fragments of ejabberd.yml where they say that they belong: each is
// one or more sections "name:", whose lines go to the beginning of the section that is
// there.
func addSections(base, fragments string) (string, error) {
	var heading string
	sections := map[string]string{}
	for line := range strings.Lines(fragments) {
		if line[0] != ' ' {
			heading = line
			continue
		}
		sections[heading] += line
	}
	for heading, lines := range sections {
		at := "\n" + heading
		if heading == "" || strings.Count(base, at) != 1 {
			return "", fmt.Errorf("%d sections %q to add to", strings.Count(base, at), heading)
		}
		base = strings.Replace(base, at, at+lines, 1)
	}
	return base, nil
}

// freePort finds a port that is free on all addresses of this machine, for a server
// that does not listen on one alone. It is none of those that the system gives to
// clients, one of which might take it before the server does.
func freePort() (uint16, error) {
	for range 100 {
		port := 20000 + rand.N(12000)
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		return uint16(port), l.Close()
	}
	return 0, fmt.Errorf("no port between 20000 and 32000 is free")
}
