package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"time"
)

func TestConfirm(t *testing.T) {
	for in, want := range map[string]bool{"y\n": true, " Yes \n": true, "yes": true, "n\n": false, "\n": false, "": false, "yeah\n": false} {
		var out strings.Builder
		got, err := confirm(t.Context(), &shell{in: strings.NewReader(in), out: &out}, "Sure?")
		if err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", in, got, err, want)
		}
		if !strings.HasPrefix(out.String(), "Sure? [y/N] ") {
			t.Errorf("asked %q", out.String())
		}
	}
}

// Who presses Ctrl-C at the question is heard.
func TestConfirmInterrupted(t *testing.T) {
	nothing, typed := io.Pipe()
	defer typed.Close()
	ctx, interrupt := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := confirm(ctx, &shell{in: nothing, out: io.Discard}, "Sure?")
		done <- err
	}()
	interrupt()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it still waits for an answer")
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 1023: "1023B", 1024: "1.0KiB", 1536: "1.5KiB", 1<<20 - 1: "1.0MiB", 5 << 30: "5.0GiB", 1 << 40: "1.0TiB",
	} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	const in, want = "jürgen@a.grid/\x1b[2J\u009b1m\u202e\ttab", "jürgen@a.grid/\ufffd[2J\ufffd1m\ufffd\ttab"
	if got := printable(in); got != want {
		t.Errorf("%q became %q, want %q", in, got, want)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 123456 * time.Nanosecond: "120µs", 2345678 * time.Nanosecond: "2.3ms", 61 * time.Second: "1m",
		3*time.Hour + 20*time.Second: "3h0m", 50 * time.Hour: "2d",
	} {
		if got := short(d); got != want {
			t.Errorf("short(%v) = %q, want %q", d, got, want)
		}
	}
}

// Of a file that cannot be read it is said what to do, in each case another thing.
func TestUnread(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("read configuration: %w", fs.ErrNotExist), "`yggate init` writes one"},
		{fmt.Errorf("read configuration: %w", fs.ErrPermission), "run this as root, or as the user that the gateway runs as"},
	} {
		if err := unread(c.err); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %s", err, c.want)
		}
	}
	if err := unread(nil); err != nil {
		t.Errorf("of none: %v", err)
	}
}
