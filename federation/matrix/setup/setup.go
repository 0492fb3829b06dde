// Package setup holds the lines that an operator adds to a Matrix homeserver so that
// it federates through yggate. The tests run Dendrite with just these fragments. Those
// for the others are made from their documentation and sources, and say so.
package setup

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation/guide"
)

// The servers that For knows.
const (
	Dendrite = "dendrite"
	Synapse  = "synapse"
	Conduit  = "conduit"
	// EjabberdMatrix is the Matrix gateway of ejabberd (mod_matrix_gw).
	EjabberdMatrix = "ejabberd-matrix"
)

// Servers lists them, for usage texts.
func Servers() []string { return []string{Dendrite, Synapse, Conduit, EjabberdMatrix} }

// DefaultMode is the mode that a server can be run in, the better one first.
func DefaultMode(server string) Mode {
	if server == EjabberdMatrix {
		return Hosts
	}
	return Proxy
}

// NeedsPeers says whether the lines for a server name those of peers.
func NeedsPeers(server string, mode Mode) bool { return mode == Hosts || server == Conduit }

//go:embed dendrite synapse conduit ejabberd-matrix
var files embed.FS

var templates = guide.Templates{Files: files}

// For returns the guide for a server, one of Servers. It fails on an unknown server,
// on a mode that the server does not have, and on parameters that Validate refuses.
func For(server string, p Params) (*guide.Guide, error) {
	if !slices.Contains(Servers(), server) {
		return nil, fmt.Errorf("set up %q: unknown server, want one of %s", server, strings.Join(Servers(), ", "))
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("set up %s: %w", server, err)
	}
	switch {
	case server == EjabberdMatrix && p.ProxyMode():
		return nil, fmt.Errorf("set up %s: it cannot use a proxy: set matrix.listen to an address with the ports 443 and 8448", server)
	case server == Conduit && p.HostsMode():
		return nil, fmt.Errorf("set up %s: mode %q is not known to work: set matrix.proxy", server, Hosts)
	}
	return templates.Guide(server, p)
}
