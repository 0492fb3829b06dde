package admin

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	path := SocketPath(dir)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]os.FileMode{path: os.ModeSocket | 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if st, err := os.Stat(p); err != nil || st.Mode() != want {
			t.Errorf("%s has mode %v, %v; want %v", p, st.Mode(), err, want)
		}
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another gateway is running") {
		t.Errorf("a second listener beside a live one: %v", err)
	}
	// A crash leaves the socket behind; that must not stop the next start.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen(path); err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there after Close: %v", err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file in the way was removed: %v", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 120))); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("an overlong path: %v", err)
	}
}

func TestClientAndHandler(t *testing.T) {
	path := SocketPath(t.TempDir())
	c := NewClient(path)
	_, err := c.Status(context.Background())
	if !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "yggate serve") {
		t.Errorf("without a gateway: %v", err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	Handle(mux, "POST /v1/domains", func(_ *http.Request, in DomainRequest) (Done, error) {
		if in.Peer == "nobody" {
			return Done{}, ErrNotFound
		}
		return Done{Done: in.Domain + " is " + in.Peer + "'s"}, nil
	})
	Handle(mux, "POST /v1/peers/{name}/{verb}", func(r *http.Request, _ struct{}) (Done, error) {
		return Done{Done: r.PathValue("verb") + " " + r.PathValue("name")}, nil
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })

	if d, err := c.Assign(t.Context(), DomainRequest{"xmpp", "b.grid", "bob"}); err != nil || d.Done != "b.grid is bob's" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := c.Assign(t.Context(), DomainRequest{"xmpp", "b.grid", "nobody"}); err == nil || err.Error() != ErrNotFound.Error() {
		t.Errorf("err = %v", err)
	}
	if d, err := c.Decide(t.Context(), "a b/c", "pause"); err != nil || d.Done != "pause a b/c" {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := call[Done](t.Context(), c, "POST", "/v1/domains", map[string]string{"surprise": "x"}); err == nil || !strings.Contains(err.Error(), "surprise") {
		t.Errorf("an unknown field was taken: %v", err)
	}
}
