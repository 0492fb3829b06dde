// Package setup holds the lines that an operator adds to ejabberd or Prosody so
// that the server federates through yggate. The same fragments make the whole
// configurations (Complete) that the tests run the servers with: what is printed
// is what is tested.
package setup

import (
	"bufio"
	"bytes"
	"embed"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/textproto"
	"path"
	"strconv"
	"strings"
	"text/template"
)

// The servers that For and Complete know.
const (
	Ejabberd = "ejabberd"
	Prosody  = "prosody"
)

// Servers lists them, for usage texts.
func Servers() []string { return []string{Ejabberd, Prosody} }

// Fragment is one piece to add to one file of the operator's.
type Fragment struct {
	// File is the path it has on Debian.
	File string
	// Place says where in the file, and what to heed there.
	Place string
	// Optional, when set, says for whom the fragment is.
	Optional string
	// What explains each line.
	What string
	// Text is the lines themselves, ending in a newline.
	Text string
}

// Guide is all that one server needs, in the order in which to do it.
type Guide struct {
	Server    string
	Intro     string
	Fragments []Fragment
	// End tells how to apply the fragments and how to see that they work.
	End string
}

//go:embed ejabberd prosody complete
var files embed.FS

var functions = template.FuncMap{
	// The values are validated: no quote, backslash or control character is in
	// them, so one quoting serves YAML and Lua.
	"quote":   strconv.Quote,
	"join":    strings.Join,
	"erlAddr": erlangAddr,
}

// For returns the guide for a server ("ejabberd" or "prosody"). It fails on an
// unknown server and on parameters that Validate refuses.
func For(server string, p Params) (*Guide, error) {
	if server != Ejabberd && server != Prosody {
		return nil, fmt.Errorf("set up %q: unknown server, want one of %s", server, strings.Join(Servers(), ", "))
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("set up %s: %w", server, err)
	}
	names, err := fs.Glob(files, server+"/[0-9]*.tmpl")
	if err != nil {
		return nil, err
	}
	g := &Guide{Server: server}
	for _, name := range names {
		text, err := render(name, p)
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
	if g.Intro, err = render(server+"/intro.tmpl", p); err != nil {
		return nil, err
	}
	g.End, err = render(server+"/end.tmpl", p)
	return g, err
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

func render(name string, data any) (string, error) {
	t, err := template.New(path.Base(name)).Funcs(functions).Option("missingkey=error").ParseFS(files, name)
	if err != nil {
		return "", fmt.Errorf("parse template %s: %w", name, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return "", fmt.Errorf("run template %s: %w", name, err)
	}
	return b.String(), nil
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

// erlangAddr writes an address as an Erlang tuple: {127,0,0,1}.
func erlangAddr(a netip.Addr) string {
	var parts []string
	if a.Is4() {
		for _, b := range a.As4() {
			parts = append(parts, strconv.Itoa(int(b)))
		}
	} else {
		b := a.As16()
		for i := 0; i < len(b); i += 2 {
			parts = append(parts, strconv.Itoa(int(b[i])<<8|int(b[i+1])))
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}
