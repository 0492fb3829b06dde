// Command demo shows yggate at work: it starts ejabberd, Prosody, two Dendrites and
// two mosquittos on addresses of 127/8 and a yggate in front of the servers of each
// grid, makes the two grids peers by one string, and lets alice of one and bob of the
// other do what users do, on XMPP and on Matrix, and a subscriber of one see a sensor
// of the other. It shows the operators' commands and a transcript.
//
// DEMO=xmpp, DEMO=matrix or DEMO=mqtt in the environment shows that alone, without the
// servers of the others.
//
// With DEMO_ONCE=1 in the environment it ends after the transcript, with exit
// code 0 if every step worked. Otherwise all stays up until Ctrl-C, and it tells
// how to connect clients of one's own.
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
	p, err := programOf(os.Getenv("DEMO"))
	if err == nil {
		err = demo(ctx, os.Stdout, p, os.Getenv("DEMO_ONCE") == "1")
	}
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

// program is what is played.
type program struct{ xmpp, matrix, mqtt bool }

// programOf reads the variable DEMO.
func programOf(name string) (program, error) {
	switch name {
	case "", "all":
		return program{xmpp: true, matrix: true, mqtt: true}, nil
	case "xmpp":
		return program{xmpp: true}, nil
	case "matrix":
		return program{matrix: true}, nil
	case "mqtt":
		return program{mqtt: true}, nil
	}
	return program{}, fmt.Errorf("DEMO is %q: want xmpp, matrix, mqtt or all", name)
}

// needs are the fixtures that it stands on.
func (p program) needs() (names []string) {
	if p.xmpp {
		names = append(names, "ejabberd", "erlang", "prosody")
	}
	if p.matrix {
		names = append(names, "dendrite")
	}
	if p.mqtt {
		names = append(names, "mosquitto")
	}
	return names
}
