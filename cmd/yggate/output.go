package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/term"
)

// printJSON is what every --json does.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// table prints rows in columns under a heading.
func table(w io.Writer, heading []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(heading, "\t"))
	for _, row := range rows {
		for i, cell := range row {
			if cell == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	return tw.Flush()
}

// ago tells a moment in the past by its distance.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return short(time.Since(t)) + " ago"
}

// short rounds a duration to what a person reads.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(100 * time.Microsecond).String()
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return fmt.Sprintf("%dd", int(d/(24*time.Hour)))
}

// bytesText rounds a number of bytes to what a person reads.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%dB", n)
	}
	v := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB"} {
		if v /= 1024; v < 1023.95 {
			return fmt.Sprintf("%.1f%s", v, unit)
		}
	}
	return fmt.Sprintf("%.1fTiB", v/1024)
}

// printable replaces what could move the cursor or change colours: text that
// others wrote must not write on the operator's terminal what it likes.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// isTerminal says whether w is where a person looks.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks a question whose safe answer is no. Ctrl-C is an answer as well.
func confirm(ctx context.Context, sh *shell, question string) (bool, error) {
	answer, err := ask(ctx, sh, question+" [y/N]")
	if err != nil {
		return false, err
	}
	switch strings.ToLower(answer) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}

// ask asks for a line, of which it takes no more than that from what is typed. The end
// of the input is an empty answer.
func ask(ctx context.Context, sh *shell, question string) (string, error) {
	fmt.Fprintf(sh.out, "%s ", question)
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := readLine(sh.in)
		read <- line{text, err}
	}()
	select {
	case answer := <-read:
		switch {
		case answer.err == io.EOF:
			fmt.Fprintln(sh.out)
		case answer.err != nil:
			return "", fmt.Errorf("read the answer: %w", answer.err)
		}
		return strings.TrimSpace(answer.text), nil
	case <-ctx.Done(): // the process ends, and with it the read
		fmt.Fprintln(sh.out)
		return "", context.Cause(ctx)
	}
}

// readLine reads a line of at most 1024 bytes, and nothing behind it.
func readLine(r io.Reader) (string, error) {
	var text []byte
	for b := make([]byte, 1); len(text) < 1024; {
		if _, err := io.ReadFull(r, b); err != nil {
			return string(text), err
		}
		if b[0] == '\n' {
			break
		}
		text = append(text, b[0])
	}
	return string(text), nil
}
