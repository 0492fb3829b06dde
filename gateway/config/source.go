package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// lineBreak is what YAML takes as the end of a line. They are made alike first,
// so that editor, parser and messages count the same lines.
var lineBreak = regexp.MustCompile("\r\n|[\r\n\u0085\u2028\u2029]")

// read parses the file's text and decodes it into c.
func (r *reader) read(src []byte, c *Config) {
	if len(src) > maxFile {
		r.unread = true
		r.failAt("", "the file has %d bytes, at most %d are read", len(src), maxFile)
		return
	}
	if !utf8.Valid(src) {
		r.unread = true
		r.notUTF8(src)
		return
	}
	src = lineBreak.ReplaceAll(src, []byte("\n"))
	r.lines = strings.Split(string(src), "\n")
	doc, err := document(src)
	if err != nil {
		// A value that begins with @ or ` is a syntax error, at which the
		// parser stops, and one with ! may be. Note each of them, take it as
		// text, and look on.
		if fixed := r.reserved(src); fixed != nil {
			doc, err = document(fixed)
		}
	}
	if err != nil {
		r.unread = true
		r.syntax(err)
		return
	}
	if doc == nil {
		return // only comments: everything is at its default
	}
	r.unread = doc.Kind != yaml.MappingNode
	r.value(doc, "", reflect.ValueOf(c).Elem())
}

// document returns the single YAML document in src, nil when there is none.
func document(src []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var first, second yaml.Node
	if err := dec.Decode(&first); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		return nil, err
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fmt.Errorf("yaml: line %d: a second document begins; write one and no --- lines", second.Line)
		}
		return nil, err
	}
	if first.Kind != yaml.DocumentNode || len(first.Content) != 1 {
		return nil, nil
	}
	n := first.Content[0]
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil, nil
	}
	return n, nil
}

func (r *reader) notUTF8(src []byte) {
	for i, line := range bytes.Split(src, []byte("\n")) {
		for col := 0; col < len(line); {
			c, n := utf8.DecodeRune(line[col:])
			if c == utf8.RuneError && n == 1 {
				r.problems = append(r.problems, Problem{r.file, i + 1, col + 1, "", "this byte is not UTF-8 text; save the file as UTF-8"})
				return
			}
			col += n
		}
	}
}

// reserved reports every value that begins with an unquoted @ or `, which YAML
// reserves, or with the ! of a room id, which it takes for a type, and returns the text with a letter in their place; nil when there is
// none.
func (r *reader) reserved(src []byte) []byte {
	found := false
	lines := bytes.Split(bytes.Clone(src), []byte("\n"))
	for i, line := range lines {
		for _, at := range reservedIn(line) {
			found = true
			r.problems = append(r.problems, Problem{r.file, i + 1, utf8.RuneCount(line[:at]) + 1, "", unquoted(line[at:])})
			line[at] = 'x'
		}
	}
	if !found {
		return nil
	}
	return bytes.Join(lines, []byte("\n"))
}

// unquoted says what to do about a value that begins with a character that YAML
// has for itself; rest is its line from there on.
func unquoted(rest []byte) string {
	word := rest
	if end := bytes.IndexAny(word, " \t,]}"); end > 0 {
		word = word[:end]
	}
	return fmt.Sprintf("a value must not begin with an unquoted %c; quote it: %q", rest[0], word)
}

// roomID says whether text that begins with ! may be meant as the id of a Matrix
// room: a type tag of YAML's own has a second one.
func roomID(text []byte) bool {
	return len(text) > 1 && text[0] == '!' && text[1] != '!' && text[1] != ' '
}

// reservedIn returns where in a line values begin with a reserved character,
// outside of quotes and comments.
func reservedIn(line []byte) (at []int) {
	var quote, before byte // before is the last character that is no space
	for i, c := range line {
		spaced := i == 0 || strings.IndexByte(" \t[{,", line[i-1]) >= 0
		begins := spaced && strings.IndexByte("\x00:,[{-", before) >= 0
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case (c == '"' || c == '\'') && begins:
			quote = c
		case c == '#' && spaced:
			return at
		case (c == '@' || c == '`' || c == '!' && roomID(line[i:])) && begins:
			at = append(at, i)
		}
		if c != ' ' && c != '\t' {
			before = c
		}
	}
	return at
}

// parserError matches the errors whose line the parser counts from zero; those of
// its scanner count from one.
var parserError = regexp.MustCompile(`^did not find expected (',' or|key$|'-' indicator|node content|<)`)

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// syntax reports the parser's error. The parser gives a line at most; the column
// is that of the line's first character.
func (r *reader) syntax(err error) {
	text := err.Error()
	m := yamlLine.FindStringSubmatch(text)
	line, column := 1, 1
	if m[1] != "" {
		if n, err := strconv.Atoi(m[1]); err == nil {
			if parserError.MatchString(text[len(m[0]):]) {
				n++
			}
			line = min(max(n, 1), max(len(r.lines), 1))
		}
	}
	text = strings.TrimPrefix(text, m[0])
	if line <= len(r.lines) {
		l := r.lines[line-1]
		column = len(l) - len(strings.TrimLeft(l, " \t")) + 1
		if i := strings.IndexByte(l, '\t'); i >= 0 && i < column {
			text, column = "a tab is used for indentation; use spaces", i+1
		}
	}
	hint := ""
	switch {
	case strings.Contains(text, "could not find expected ':'"), strings.Contains(text, "mapping values are not allowed"):
		hint = " (check the indentation and the \": \" of this line and the one before; quote a value that holds \": \" or \" #\")"
	case strings.Contains(text, "did not find expected"):
		hint = " (a bracket, a quote or the indentation before this does not match)"
	case strings.Contains(text, "cannot start any token"):
		hint = "; quote the value"
	}
	r.problems = append(r.problems, Problem{r.file, line, column, "", "not valid YAML: " + text + hint})
}
