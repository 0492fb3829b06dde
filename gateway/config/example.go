package config

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/template"

	"github.com/yggate/yggate/federation"
)

//go:embed example.yaml.tmpl
var exampleText string

// Example is what differs between one operator's first file and another's.
type Example struct {
	Name, State                      string
	MeshPeers, MeshListen, Advertise []string
	Multicast                        bool
	// XMPP, where there are Domains; else its section is a comment.
	Domains, MUC   []string
	Server, Listen string
	DNS            string // empty for hosts mode
	// Matrix, where there are ServerNames; else its section is a comment.
	ServerNames  []string
	MatrixServer string
	MatrixProxy  string   // empty for none
	MatrixListen []string // none, or where a homeserver without a proxy connects
	// MQTT, where there is a Broker; else its section is a comment.
	Broker  string
	Metrics string // empty for none
}

// Protocols are those that the example has a section for.
func (e Example) Protocols() []string {
	var run []string
	if len(e.Domains) > 0 {
		run = append(run, string(federation.XMPP))
	}
	if len(e.ServerNames) > 0 {
		run = append(run, string(federation.Matrix))
	}
	if e.Broker != "" {
		run = append(run, string(federation.MQTT))
	}
	return run
}

// ExampleDefaults is the example that documents the format.
func ExampleDefaults() Example {
	return Example{
		Name: "riverside", State: "/var/lib/yggate",
		Domains: []string{"a.grid"}, MUC: []string{"muc.a.grid"},
		Server: "127.0.0.1:5269", Listen: "127.0.10.11:5269", DNS: "127.0.10.53:53",
		MatrixServer: "http://127.0.0.1:8008", MatrixProxy: "127.0.0.1:8118",
	}
}

// Write renders the commented file. Every value is quoted where YAML asks for it.
func (e Example) Write(w io.Writer) error {
	quoted := e
	for _, s := range []*string{
		&quoted.Name, &quoted.State, &quoted.Server, &quoted.Listen, &quoted.DNS, &quoted.MatrixServer, &quoted.MatrixProxy, &quoted.Broker, &quoted.Metrics,
	} {
		*s = scalarText(*s)
	}
	t := template.New("example")
	_, err := t.Funcs(template.FuncMap{"list": listText, "commented": commented(t)}).Parse(exampleText)
	if err == nil {
		err = t.Execute(w, quoted)
	}
	if err != nil {
		return fmt.Errorf("write example configuration: %w", err)
	}
	return nil
}

// commented renders a part of the example as what the reader may uncomment, with
// names that show the form.
func commented(t *template.Template) func(string, Example) (string, error) {
	return func(part string, e Example) (string, error) {
		e.Domains, e.MUC, e.ServerNames = []string{"a.grid"}, []string{"muc.a.grid"}, []string{"a.grid"}
		e.Broker = "mqtt://127.0.0.1:1883"
		var b strings.Builder
		err := t.ExecuteTemplate(&b, part, e)
		text := strings.TrimSuffix(b.String(), "\n")
		return "# " + strings.ReplaceAll(text, "\n", "\n# ") + "\n", err
	}
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
