package main

import (
	"context"
	"errors"
	"io"
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
