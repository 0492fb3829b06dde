package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// patience is how long a script waits for what should take a moment.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"yggate": main})
}

// TestScripts runs testdata/scripts. Each script is what operators type and see:
// the operator of grid a writes "a peer list", and so on for b and c. Nobody runs
// an XMPP server; gateways meet over TCP on 127/8.
//
// Beside testscript's own there are these commands:
//
//	grid NAME [FLAGS]       writes NAME.yaml and the state NAME by yggate init
//	a, b, c COMMAND [ARGS]  runs a yggate command with that grid's configuration
//	let VAR [PATH]          sets a variable to what the last command printed, or
//	                        to a value in its JSON
//	typo VAR                changes one character in the middle of a variable
//	until PATTERN CMD       repeats a command until its output matches
//	json [PATH WANT]        wants the last output to be JSON, with a value in it
//	mode PERM FILE...       wants files to have those permissions
//	append FILE OTHER       adds the text of another file
//	replace OLD NEW FILE    changes a text that the file has
//	plant GRID PEER LANE N AGE [TOLD]
//	                        puts N messages into the outbox of a gateway that
//	                        does not run, or with told or untold into its dead
//	                        letters
//	hangup                  sends SIGHUP to what runs in the background
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("..", "..", "testdata", "scripts"),
		Setup:         addresses,
		UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"grid": grid, "a": operator("a"), "b": operator("b"), "c": operator("c"),
			"let": let, "typo": typo, "until": until, "json": jsonValue, "mode": mode,
			"append": appendTo, "replace": replace, "hangup": hangup,
			"plant": plant,
		},
	})
}

// addresses gives each script an address for each grid.
func addresses(env *testscript.Env) error {
	// The race detector has each process wait a second at its end, and a script is
	// dozens of them.
	env.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	for _, name := range []string{"A", "B", "C"} {
		n := rand.Uint32()
		env.Setenv(name, fmt.Sprintf("127.%d.%d.%d", 64|n>>16&0x3f, n>>8&0xff, 1+n%253))
	}
	return nil
}

func grid(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: grid NAME [FLAGS]")
	}
	name, ip := args[0], ts.Getenv(strings.ToUpper(args[0]))
	init := []string{
		"init", "--config", name + ".yaml", "--state", ts.MkAbs(name), "--domain", name + ".grid",
		"--server", ip + ":5270", "--listen", ip + ":5269", "--dns", "off",
		"--mesh-listen", "tcp://" + ip + ":9001", "--advertise", "tcp://" + ip + ":9001",
	}
	ts.Check(ts.Exec("yggate", append(init, args[1:]...)...))
}

func operator(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if len(args) == 0 {
			ts.Fatalf("usage: %s COMMAND [ARGUMENTS]", name)
		}
		err := ts.Exec("yggate", asOperator(name, args)...)
		switch {
		case neg && err == nil:
			ts.Fatalf("unexpected success")
		case !neg && err != nil:
			ts.Fatalf("%v", err)
		}
	}
}

func asOperator(name string, args []string) []string {
	return append([]string{args[0], "--config", name + ".yaml"}, args[1:]...)
}

func let(ts *testscript.TestScript, neg bool, args []string) {
	switch {
	case !neg && len(args) == 1:
		ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
	case !neg && len(args) == 2:
		ts.Setenv(args[0], inJSON(ts, args[1]))
	default:
		ts.Fatalf("usage: let VAR [PATH]")
	}
}

func typo(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || len(ts.Getenv(args[0])) < 3 {
		ts.Fatalf("usage: typo VAR, which has some text")
	}
	b := []byte(ts.Getenv(args[0]))
	if mid := len(b) / 2; b[mid] == 'A' {
		b[mid] = 'B'
	} else {
		b[mid] = 'A'
	}
	ts.Setenv(args[0], string(b))
}

// until logs what it took: the scripts fail only for what never comes.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: until PATTERN GRID COMMAND [ARGUMENTS]")
	}
	pattern := regexp.MustCompile("(?m)" + args[0])
	start := time.Now()
	for {
		// Its exit code does not matter: a route may still end early.
		_ = ts.Exec("yggate", asOperator(args[1], args[2:])...)
		out := ts.ReadFile("stdout")
		took := time.Since(start)
		switch {
		case pattern.MatchString(out):
			ts.Logf("%q after %v", args[0], took.Round(time.Millisecond))
			return
		case took > patience:
			ts.Fatalf("no match for %q within %v in:\n%s%s", args[0], patience, out, ts.ReadFile("stderr"))
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

func jsonValue(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 && len(args) != 2 {
		ts.Fatalf("usage: json [PATH WANT]")
	}
	if len(args) == 0 {
		args = []string{"", ""}
	}
	if got := inJSON(ts, args[0]); args[0] != "" && got != args[1] {
		ts.Fatalf("%s is %q, want %q", args[0], got, args[1])
	}
}

// inJSON returns the value at a path such as "peers.0.name" in the last output.
func inJSON(ts *testscript.TestScript, path string) string {
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("stdout")), &v))
	if path == "" {
		return ""
	}
	for _, key := range strings.Split(path, ".") {
		switch in := v.(type) {
		case map[string]any:
			v = in[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(in) {
				ts.Fatalf("%s: a list of %d has no %q", path, len(in), key)
			}
			v = in[i]
		default:
			ts.Fatalf("%s: there is nothing at %q", path, key)
		}
	}
	return fmt.Sprint(v)
}

func appendTo(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: append FILE OTHER")
	}
	text := ts.ReadFile(args[0]) + ts.ReadFile(args[1])
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o640))
}

func hangup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: hangup")
	}
	for _, cmd := range ts.BackgroundCmds() {
		if cmd.ProcessState == nil {
			ts.Check(cmd.Process.Signal(syscall.SIGHUP))
		}
	}
}

func replace(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: replace OLD NEW FILE")
	}
	text := ts.ReadFile(args[2])
	if !strings.Contains(text, args[0]) {
		ts.Fatalf("%s has no %q", args[2], args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(strings.ReplaceAll(text, args[0], args[1])), 0o640))
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: mode PERM FILE...")
	}
	for _, name := range args[1:] {
		st, err := os.Stat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, got, args[0])
		}
	}
}
