// Package guide makes the lines that an operator adds to a server out of templates:
// as text for people, and in pieces for the tests, which run the servers with them.
// What is printed is what is tested.
package guide

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/textproto"
	"path"
	"strconv"
	"strings"
	"text/template"
)

// Fragment is one piece to add to one file of the operator's.
type Fragment struct {
	// File is the path it has on Debian.
	File string `json:"file"`
	// Place says where in the file, and what to heed there.
	Place string `json:"place"`
	// Optional, when set, says for whom the fragment is.
	Optional string `json:"optional,omitempty"`
	// What explains each line.
	What string `json:"what"`
	// Text is the lines themselves, ending in a newline.
	Text string `json:"text"`
}

// Guide is all that one server needs, in the order in which to do it.
type Guide struct {
	Server    string     `json:"server"`
	Intro     string     `json:"intro"`
	Fragments []Fragment `json:"fragments"`
	// End tells how to apply the fragments and how to see that they work.
	End string `json:"end"`
}

// Templates are the files of guides: in a directory for each server, intro.tmpl,
// end.tmpl, and a fragment in each other one whose name begins with a digit. The
// values in them must be validated before: no quote, backslash or control
// character may be in what "quote" gets.
type Templates struct {
	Files fs.FS
	// Functions are those that the templates have beside "quote" and "join".
	Functions template.FuncMap
}

// Guide returns the guide for a server. A fragment that comes out empty is left out.
func (t Templates) Guide(server string, data any) (*Guide, error) {
	names, err := fs.Glob(t.Files, server+"/[0-9]*.tmpl")
	if err != nil {
		return nil, err
	}
	g := &Guide{Server: server}
	for _, name := range names {
		text, err := t.Render(name, data)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(text) == "" {
			continue // not for this mode
		}
		f, err := parseFragment(text)
		if err != nil {
			return nil, fmt.Errorf("template %s: %w", name, err)
		}
		g.Fragments = append(g.Fragments, f)
	}
	if g.Intro, err = t.Render(server+"/intro.tmpl", data); err != nil {
		return nil, err
	}
	g.End, err = t.Render(server+"/end.tmpl", data)
	return g, err
}

// Render runs one template.
func (t Templates) Render(name string, data any) (string, error) {
	// One quoting serves YAML, TOML and Lua.
	funcs := template.FuncMap{"quote": strconv.Quote, "join": strings.Join}
	parsed, err := template.New(path.Base(name)).Funcs(funcs).Funcs(t.Functions).Option("missingkey=error").ParseFS(t.Files, name)
	if err != nil {
		return "", fmt.Errorf("parse template %s: %w", name, err)
	}
	var b strings.Builder
	if err := parsed.Execute(&b, data); err != nil {
		return "", fmt.Errorf("run template %s: %w", name, err)
	}
	return b.String(), nil
}

// WriteTo prints the guide as text for people.
func (g *Guide) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	b.WriteString(g.Intro)
	for i, f := range g.Fragments {
		fmt.Fprintf(&b, "\n%d. %s\n", i+1, f.File)
		if f.Optional != "" {
			fmt.Fprintf(&b, "   Optional: %s.\n", f.Optional)
		}
		fmt.Fprintf(&b, "   Place: %s\n\n", f.Place)
		indent(&b, "   ", f.What)
		b.WriteByte('\n')
		indent(&b, "       ", f.Text)
	}
	b.WriteByte('\n')
	b.WriteString(g.End)
	return b.WriteTo(w)
}

// Text returns what goes into one file, the fragments one after the other.
func (g *Guide) Text(file string) string {
	var b strings.Builder
	for _, f := range g.Fragments {
		if f.File == file {
			b.WriteString(f.Text)
		}
	}
	return b.String()
}

func indent(b *bytes.Buffer, by, text string) {
	for line := range strings.Lines(text) {
		if line != "\n" {
			b.WriteString(by)
		}
		b.WriteString(line)
	}
}

// parseFragment reads a header of "Name: value" lines, the explanation, a line
// of four dashes and the text.
func parseFragment(s string) (Fragment, error) {
	head, text, ok := strings.Cut(s, "\n----\n")
	if !ok {
		return Fragment{}, fmt.Errorf("no ---- line")
	}
	r := bufio.NewReader(strings.NewReader(head + "\n"))
	h, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		return Fragment{}, fmt.Errorf("read header: %w", err)
	}
	what, err := io.ReadAll(r)
	if err != nil {
		return Fragment{}, err
	}
	f := Fragment{
		File: h.Get("File"), Place: h.Get("Place"), Optional: h.Get("Optional"),
		What: strings.TrimLeft(string(what), "\n"),
		Text: strings.TrimRight(text, "\n") + "\n",
	}
	if f.File == "" || f.Place == "" || f.What == "" || f.Text == "\n" {
		return Fragment{}, fmt.Errorf("file, place, explanation and text are all needed")
	}
	return f, nil
}
