// Package setup holds the lines that an operator adds to ejabberd or Prosody so
// that the server federates through yggate. The same fragments make the whole
// configurations (Complete) that the tests run the servers with: what is printed
// is what is tested.
package setup

import (
	"embed"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"text/template"

	"github.com/yggate/yggate/federation/guide"
)

// The servers that For and Complete know.
const (
	Ejabberd = "ejabberd"
	Prosody  = "prosody"
)

// Servers lists them, for usage texts.
func Servers() []string { return []string{Ejabberd, Prosody} }

// Fragment and Guide are those of package guide.
type (
	Fragment = guide.Fragment
	Guide    = guide.Guide
)

//go:embed ejabberd prosody complete
var files embed.FS

var templates = guide.Templates{Files: files, Functions: template.FuncMap{"erlAddr": erlangAddr}}

// For returns the guide for a server ("ejabberd" or "prosody"). It fails on an
// unknown server and on parameters that Validate refuses.
func For(server string, p Params) (*Guide, error) {
	if server != Ejabberd && server != Prosody {
		return nil, fmt.Errorf("set up %q: unknown server, want one of %s", server, strings.Join(Servers(), ", "))
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("set up %s: %w", server, err)
	}
	return templates.Guide(server, p)
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
