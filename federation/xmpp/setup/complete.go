package setup

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strings"
)

// Standalone is what a whole configuration needs beside the fragments.
type Standalone struct {
	// Dir is the absolute directory that the files are for and where the
	// server keeps its data and logs, in "data" and "log".
	Dir string
	// C2S and S2S are where the server listens for clients and for yggate.
	C2S, S2S netip.AddrPort
	// API, if set, is where ejabberd serves its HTTP API, without
	// authentication: use it on a loopback address or in a network namespace.
	API netip.AddrPort
}

// File is one file of a whole configuration, its name relative to
// Standalone.Dir.
type File struct{ Name, Text string }

// Complete returns a minimal whole configuration of a server with one domain
// and one MUC service: a base as Debian ships it, reduced, and every fragment of
// For(server, p), optional ones included, where a person would put it. In Hosts
// mode there is also the file "hosts", which Prosody reads in the place of
// /etc/hosts.
func Complete(server string, p Params, s Standalone) ([]File, error) {
	p.Isolated = true
	g, err := For(server, p)
	if err != nil {
		return nil, err
	}
	if err := s.validate(p); err != nil {
		return nil, fmt.Errorf("whole configuration of %s: %w", server, err)
	}
	data := struct {
		Params
		Standalone
		Options, Modules, Global string
	}{Params: p, Standalone: s}

	var out []File
	if p.HostsMode() {
		out = append(out, File{"hosts", "127.0.0.1 localhost\n::1 localhost\n" + g.Text("/etc/hosts")})
	}
	var main string
	switch server {
	case Ejabberd:
		main = "ejabberd.yml"
		for _, f := range g.Fragments {
			switch {
			case f.File != "/etc/ejabberd/ejabberd.yml":
			case strings.HasPrefix(f.Text, "modules:\n"):
				data.Modules = f.Text
			default:
				data.Options += f.Text
			}
		}
		base, err := templates.Render("complete/inetrc.tmpl", data)
		if err != nil {
			return nil, err
		}
		out = append(out, File{"inetrc", base + g.Text("/etc/ejabberd/inetrc")})
	case Prosody:
		main = "prosody.cfg.lua"
		const dropIn = "/etc/prosody/conf.d/yggate.cfg.lua"
		text := strings.ReplaceAll(g.Text(dropIn), `"/etc/hosts"`, `"`+path.Join(s.Dir, "hosts")+`"`)
		out = append(out, File{"conf.d/" + path.Base(dropIn), text})
	}
	text, err := templates.Render("complete/"+main+".tmpl", data)
	if err != nil {
		return nil, err
	}
	return append(out, File{main, text}), nil
}

func (s Standalone) validate(p Params) error {
	switch {
	case len(p.Domains) != 1 || len(p.MUC) != 1:
		return fmt.Errorf("want one domain and one MUC service, have %d and %d", len(p.Domains), len(p.MUC))
	case len(p.Detached()) > 0:
		return fmt.Errorf("MUC service %q: want one directly below %q", p.MUC[0], p.Domains[0])
	case !filepath.IsAbs(s.Dir) || strings.ContainsFunc(s.Dir, unfit):
		return fmt.Errorf("directory %q: want an absolute path without spaces and quotes", s.Dir)
	case !fitListen(s.C2S) || !fitListen(s.S2S):
		return fmt.Errorf("addresses %q for clients and %q for servers: want an IP address and a port for each", s.C2S, s.S2S)
	case s.API.IsValid() && !fitListen(s.API):
		return fmt.Errorf("address %q for the API: want an IP address and a port", s.API)
	}
	return nil
}
