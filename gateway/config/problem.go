package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one mistake and where it stands.
type Problem struct {
	// File is the configuration file, or the environment variable at fault
	// (then Line is 0).
	File         string `json:"file"`
	Line, Column int    `json:"-"`
	// Key is the path of the value, such as "xmpp.domains[1]"; it may be empty.
	Key string `json:"key,omitempty"`
	// Text says what is wrong and how to mend it.
	Text string `json:"text"`
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	return b.String()
}

// Problems is every mistake in one configuration, never empty as an error.
type Problems []Problem

// Error lists one mistake on a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (ps Problems) sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// nearest returns the allowed word that in was probably meant to be, or "".
func nearest(in string, allowed []string) string {
	best, word := 3, "" // further than two edits is another word
	for _, a := range allowed {
		if d := distance(in, a); d < best && d < len(a) {
			best, word = d, a
		}
	}
	return word
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diag
			if a[i] != b[j] {
				d = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
