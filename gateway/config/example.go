package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"
)

//go:embed example.yaml.tmpl
var exampleText string

// Example is what differs between one operator's first file and another's.
type Example struct {
	Name, State                      string
	MeshPeers, MeshListen, Advertise []string
	Multicast                        bool
	Domains, MUC                     []string
	Server, Listen                   string
	DNS                              string // empty for hosts mode
	Metrics                          string // empty for none
}

// ExampleDefaults is the example that documents the format.
func ExampleDefaults() Example {
	return Example{
		Name: "riverside", State: "/var/lib/yggate",
		Domains: []string{"a.grid"}, MUC: []string{"muc.a.grid"},
		Server: "127.0.0.1:5269", Listen: "127.0.10.11:5269", DNS: "127.0.10.53:53",
	}
}

// Write renders the commented file. Every value is quoted where YAML asks for it.
func (e Example) Write(w io.Writer) error {
	quoted := e
	for _, s := range []*string{&quoted.Name, &quoted.State, &quoted.Server, &quoted.Listen, &quoted.DNS, &quoted.Metrics} {
		*s = scalarText(*s)
	}
	t, err := template.New("example").Funcs(template.FuncMap{"list": listText}).Parse(exampleText)
	if err == nil {
		err = t.Execute(w, quoted)
	}
	if err != nil {
		return fmt.Errorf("write example configuration: %w", err)
	}
	return nil
}

func listText(items []string) string {
	out := make([]string, len(items))
	for i, s := range items {
		out[i] = scalarText(s)
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// scalarText writes a value plainly where that cannot be misread, and as a JSON
// string, which is a YAML double-quoted one, everywhere else.
func scalarText(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:", r))
	}) && !strings.ContainsAny(s[:1], "-:") && !strings.HasSuffix(s, ":")
	switch strings.ToLower(s) {
	case "true", "false", "yes", "no", "on", "off", "null", "y", "n":
		plain = false
	case "":
		return ""
	}
	if plain {
		return s
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Sprintf("%q", s)
	}
	return string(b)
}
