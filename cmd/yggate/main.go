// Command yggate is the federation gateway of a self-hosted grid. See
// `yggate help`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

// The exit codes.
const (
	exitOK         = 0
	exitFailed     = 1 // it was tried and did not work
	exitUsage      = 2 // the command line makes no sense
	exitNotRunning = 3 // a running gateway is needed
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, &shell{os.Stdin, os.Stdout, os.Stderr}, os.Args[1:]))
}

// shell is what a command reads from and writes to.
type shell struct {
	in       io.Reader
	out, err io.Writer
}

// command is one word of the command line. Its run reports what went wrong as an
// error; a usageError is shown with how to get help.
type command struct {
	name, args, short string
	long              string
	run               func(ctx context.Context, sh *shell, c *command, args []string) error
}

// commands are listed in the order in which an operator meets them.
func commands() []*command {
	return []*command{
		&cmdInit, &cmdCheck, &cmdServe, &cmdStatus, &cmdSetup,
		&cmdInvite, &cmdAccept, &cmdPeer, &cmdDomain, &cmdRoute, &cmdOutbox,
		&cmdReload, &cmdRotate, &cmdVersion,
	}
}

func find(name string) *command {
	for _, c := range commands() {
		if c.name == name {
			return c
		}
	}
	return nil
}

// run is main with everything passed in; it returns the exit code.
func run(ctx context.Context, sh *shell, args []string) int {
	if len(args) == 0 {
		usage(sh.err)
		return exitUsage
	}
	name, rest := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		return help(sh, rest)
	case "-version", "--version":
		name = "version"
	}
	c := find(name)
	if c == nil {
		fmt.Fprintf(sh.err, "yggate: there is no command %q\n\n", name)
		usage(sh.err)
		return exitUsage
	}
	return exitCode(sh, c, c.run(ctx, sh, c, rest))
}

// exitCode tells the user what went wrong and the shell how.
func exitCode(sh *shell, c *command, err error) int {
	var bad *usageError
	var told *toldError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.As(err, &told):
		return exitFailed
	case errors.As(err, &bad):
		fmt.Fprintf(sh.err, "yggate %s: %v\n`yggate help %s` shows how it is used\n", c.name, err, c.name)
		return exitUsage
	case errors.Is(err, admin.ErrNotRunning):
		fmt.Fprintf(sh.err, "yggate %s: %v\n", c.name, err)
		return exitNotRunning
	}
	fmt.Fprintf(sh.err, "yggate %s: %v\n", c.name, err)
	return exitFailed
}

// usageError is a command line that makes no sense.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func badUsage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// toldError is a failure whose text the user has seen already.
type toldError struct{ error }

func usage(w io.Writer) {
	fmt.Fprint(w, "yggate carries XMPP, Matrix and MQTT between your servers and those of your peers.\n\nUsage: yggate COMMAND [ARGUMENTS]\n\n")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-8s %s\n", c.name, c.short)
	}
	fmt.Fprintf(w, "\n`yggate help COMMAND` explains one. The configuration is %s,\nunless --config or YGGATE_CONFIG names another.\n", config.DefaultPath)
}

func help(sh *shell, args []string) int {
	if len(args) == 0 {
		usage(sh.out)
		return exitOK
	}
	c := find(args[0])
	if c == nil {
		fmt.Fprintf(sh.err, "yggate: there is no command %q\n\n", args[0])
		usage(sh.err)
		return exitUsage
	}
	return exitCode(sh, c, c.run(context.Background(), sh, c, []string{"--help"}))
}

// flags returns the command's flag set, with --config and, on request, --json.
type flags struct {
	*flag.FlagSet
	config string
	json   bool
	help   func()
}

func newFlags(sh *shell, c *command) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(c.name, flag.ContinueOnError)}
	f.SetOutput(io.Discard) // exitCode reports; help sets its own
	f.Usage = func() {}     // what a script takes is no place for it
	path := config.DefaultPath
	if env := os.Getenv("YGGATE_CONFIG"); env != "" {
		path = env
	}
	f.StringVar(&f.config, "config", path, "the configuration `FILE`")
	f.help = func() {
		fmt.Fprintf(sh.out, "Usage: yggate %s\n\n%s\n", strings.TrimSpace(c.name+" "+c.args), strings.TrimSpace(c.long))
		fmt.Fprint(sh.out, "\nFlags:\n")
		f.SetOutput(sh.out)
		f.PrintDefaults()
		f.SetOutput(io.Discard)
	}
	return f
}

// withJSON adds --json.
func (f *flags) withJSON() *flags {
	f.BoolVar(&f.json, "json", false, "print JSON instead of text")
	return f
}

// parse reads flags wherever they stand between the other arguments, which it
// returns; there must be at least low and at most high of them.
func (f *flags) parse(args []string, low, high int) ([]string, error) {
	var rest []string
	for len(args) > 0 {
		if args[0] == "--" {
			rest = append(rest, args[1:]...)
			break
		}
		if len(args[0]) < 2 || args[0][0] != '-' {
			rest, args = append(rest, args[0]), args[1:]
			continue
		}
		// One flag at a time, so that "--" and words keep their meaning.
		if err := f.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				f.help()
				return nil, err
			}
			return nil, badUsage("%v", err)
		}
		left := f.Args()
		if n := len(args) - len(left); n > 0 && args[n-1] == "--" {
			rest = append(rest, left...)
			break
		}
		args = left
	}
	switch {
	case len(rest) < low:
		return nil, badUsage("%d more argument(s) needed", low-len(rest))
	case len(rest) > high:
		return nil, badUsage("%q is one argument too many", rest[high])
	}
	return rest, nil
}

// load reads the configuration and shows all its mistakes.
func (f *flags) load(sh *shell) (*config.Config, error) {
	c, err := config.Load(f.config)
	var ps config.Problems
	if errors.As(err, &ps) {
		fmt.Fprintln(sh.err, ps.Error())
		return nil, &toldError{err}
	}
	return c, unread(err)
}

// unread adds to the error of a configuration that cannot be read what to do.
func unread(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w; `yggate init` writes one, or name yours with --config", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run this as root, or as the user that the gateway runs as", err)
	}
	return err
}

// client returns a client of the gateway that runs with this configuration.
func (f *flags) client(sh *shell) (*admin.Client, error) {
	c, err := f.load(sh)
	if err != nil {
		return nil, err
	}
	return admin.NewClient(admin.SocketPath(c.State)), nil
}

// list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }
