// Command demo shows yggate at work: it starts ejabberd and Prosody on addresses
// of 127/8 and a yggate in front of each, makes the two grids peers by one
// string, and lets alice of one and bob of the other do what users do. It shows
// the operators' commands and a transcript.
//
// With DEMO_ONCE=1 in the environment it ends after the transcript, with exit
// code 0 if every step worked. Otherwise all stays up until Ctrl-C, and it tells
// how to connect a client of one's own.
//
// Everything lives in a temporary directory, which is removed at the end, but
// kept and named when something failed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := demo(ctx, os.Stdout, os.Getenv("DEMO_ONCE") == "1")
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}
