package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/config"
)

var cmdInit = command{
	name: "init", args: "{--domain DOMAIN... | --matrix SERVER_NAME... | --mqtt URL} [FLAGS]",
	short: "make this grid's identity and its configuration",
	long: `
Makes the grid key, the keys of this node and a commented configuration, and
shows the recovery sheet, once: print it, it is on no disk.

--domain is for a grid with an XMPP server, --matrix for one with a homeserver, --mqtt
for one with a broker; give those of all that you have. With --mqtt alone --name is
needed. Which topics cross stands in the configuration, and is nothing at first.

A configuration that exists is kept and used; an identity is never replaced.
`,
	run: runInit,
}

func runInit(_ context.Context, sh *shell, c *command, args []string) error {
	f := newFlags(sh, c).withJSON()
	e := config.ExampleDefaults()
	e.Name = ""
	f.StringVar(&e.Name, "name", "", "what peers see this grid called (default: the first domain)")
	f.StringVar(&e.State, "state", e.State, "the `DIRECTORY` of keys and database")
	xmppFlags(f, &e)
	matrixFlags(f, &e)
	f.StringVar(&e.Broker, "mqtt", "", "`URL` of your MQTT broker, such as mqtt://127.0.0.1:1883")
	f.Var((*list)(&e.MeshPeers), "mesh-peer", "peering `URI` of a Yggdrasil node to connect to; may be given several times")
	f.Var((*list)(&e.MeshListen), "mesh-listen", "`URI` where Yggdrasil nodes may connect; may be given several times")
	f.Var((*list)(&e.Advertise), "advertise", "peering `URI` that invites carry; may be given several times")
	f.BoolVar(&e.Multicast, "multicast", false, "find Yggdrasil nodes on the local network")
	f.StringVar(&e.Metrics, "metrics", "", "`IP:PORT` for Prometheus (default: none)")
	show := f.Bool("print", false, "only print the configuration")
	if _, err := f.parse(args, 0, 0); err != nil {
		return err
	}
	_, err := os.Stat(f.config)
	switch none := len(e.Protocols()) == 0; {
	case none && !*show && errors.Is(err, fs.ErrNotExist):
		return badUsage("--domain, --matrix or --mqtt is needed: the domain of your XMPP users, the server name of your Matrix users, such as a.grid, or the URL of your broker")
	case none:
		shown := config.ExampleDefaults()
		e.Name, e.Domains, e.MUC = cmp.Or(e.Name, shown.Name), shown.Domains, shown.MUC
	default:
		if err := f.without(e); err != nil {
			return err
		}
	}
	if e.Name == "" && len(e.Domains)+len(e.ServerNames) == 0 {
		return badUsage("--name is needed: what peers see your grid called")
	}
	if e.Name == "" {
		e.Name = slices.Concat(e.Domains, e.ServerNames)[0]
	}
	for _, s := range []*string{&e.DNS, &e.MatrixProxy} {
		if *s == "off" {
			*s = ""
		}
	}
	if *show {
		return e.Write(sh.out)
	}
	return initialise(sh, f, e)
}

func xmppFlags(f *flags, e *config.Example) {
	e.Domains, e.MUC = nil, nil
	f.Var((*list)(&e.Domains), "domain", "a `DOMAIN` of your XMPP users; may be given several times")
	f.Var((*list)(&e.MUC), "muc", "a `DOMAIN` of your group chat service; may be given several times")
	f.StringVar(&e.Server, "server", e.Server, "`HOST:PORT` where your XMPP server takes s2s connections")
	f.StringVar(&e.Listen, "listen", e.Listen, "`IP:PORT` where your XMPP server finds the gateway")
	f.StringVar(&e.DNS, "dns", e.DNS, "`IP:PORT` of the DNS responder for your XMPP server, or off for hosts mode")
}

func matrixFlags(f *flags, e *config.Example) {
	f.Var((*list)(&e.ServerNames), "matrix", "a `SERVER_NAME` of your Matrix users; may be given several times")
	f.StringVar(&e.MatrixServer, "matrix-server", e.MatrixServer, "`URL` where your homeserver listens for HTTP")
	f.StringVar(&e.MatrixProxy, "matrix-proxy", e.MatrixProxy, "`IP:PORT` where the gateway is the proxy of your homeserver, or off")
	f.Var((*list)(&e.MatrixListen), "matrix-listen", "`IP:PORT` where a homeserver without a proxy finds the gateway; may be given several times")
}

// without refuses flags for a protocol whose section will not be there.
func (f *flags) without(e config.Example) (err error) {
	f.Visit(func(set *flag.Flag) {
		switch set.Name {
		case "muc", "server", "listen", "dns":
			if len(e.Domains) == 0 {
				err = badUsage("--%s is for XMPP, which needs --domain as well", set.Name)
			}
		case "matrix-server", "matrix-proxy", "matrix-listen":
			if len(e.ServerNames) == 0 {
				err = badUsage("--%s is for Matrix, which needs --matrix as well", set.Name)
			}
		}
	})
	return err
}

// made is what init tells.
type made struct {
	Config      string `json:"config"`
	Written     bool   `json:"config_written"`
	State       string `json:"state"`
	Grid        string `json:"grid"`
	Fingerprint string `json:"fingerprint"`
	Recovery    string `json:"recovery"`

	xmpp, matrix, mqtt bool // there is an XMPP server, a homeserver, a broker to set up
}

func initialise(sh *shell, f *flags, e config.Example) error {
	written, err := writeConfig(f.config, e)
	if err != nil {
		return err
	}
	c, err := f.load(sh)
	if err != nil {
		if written { // what the flags made is of no use to anyone
			err = errors.Join(err, os.Remove(f.config))
		}
		return err
	}
	// The identity last: nothing may fail between it and its sheet, which is on no disk.
	if err := makeMeshKey(c); err != nil {
		return err
	}
	id, recovery, err := federation.CreateIdentity(c.State)
	if err != nil {
		return err
	}
	m := made{f.config, written, c.State, string(id.ID()), id.ID().Fingerprint(), recovery, c.XMPP != nil, c.Matrix != nil, c.MQTT != nil}
	if f.json {
		err = printJSON(sh.out, m)
	} else {
		_, err = io.WriteString(sh.out, m.text())
	}
	if err != nil {
		return fmt.Errorf("show the recovery sheet: %w; remove %s and run this again for another", err, filepath.Join(c.State, federation.GridKeyFile))
	}
	return nil
}

// makeMeshKey makes the mesh key unless there is one. A grid that has an identity gets
// none: CreateIdentity refuses then, and that its mesh key is lost has to be seen.
func makeMeshKey(c *config.Config) error {
	if _, err := os.Lstat(filepath.Join(c.State, federation.GridKeyFile)); err == nil {
		return nil
	}
	if err := os.MkdirAll(c.State, 0o700); err != nil {
		return fmt.Errorf("create mesh key: %w", err)
	}
	_, err := federation.LoadKeyFile(c.MeshKey())
	if errors.Is(err, fs.ErrNotExist) {
		_, err = federation.CreateKeyFile(c.MeshKey())
	}
	return err
}

// writeConfig writes the file unless it exists.
func writeConfig(path string, e config.Example) (written bool, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	if err := errors.Join(e.Write(out), out.Close()); err != nil {
		return false, errors.Join(fmt.Errorf("write configuration: %w", err), os.Remove(path))
	}
	return true, nil
}

func (m made) text() string {
	var b strings.Builder
	if m.Written {
		fmt.Fprintf(&b, "Wrote the configuration   %s\n", m.Config)
	} else {
		fmt.Fprintf(&b, "Kept the configuration    %s (flags that would change it were not used)\n", m.Config)
	}
	fmt.Fprintf(&b, "Made the identity         %s\n\n", m.State)
	fmt.Fprintf(&b, "Your grid's fingerprint, which peers compare with you:\n\n  %s\n\n", m.Fingerprint)
	fmt.Fprintf(&b, "Your recovery sheet. It is the only way to take the grid back when its key is\nstolen, and it is shown only now. Print it or write it down, then clear the screen:\n\n  %s\n\n",
		strings.ReplaceAll(strings.TrimSpace(m.Recovery), "\n", "\n  "))
	conf := ""
	if m.Config != config.DefaultPath {
		conf = " --config " + m.Config
	}
	steps := []string{fmt.Sprintf("Look through %s, then: yggate check%s", m.Config, conf)}
	if m.xmpp {
		steps = append(steps, fmt.Sprintf("yggate setup ejabberd%s   (or prosody), and add the lines it prints", conf))
	}
	if m.matrix {
		steps = append(steps, fmt.Sprintf("yggate setup dendrite%s   (or synapse, conduit, ejabberd-matrix), and add the lines it prints", conf))
	}
	if m.mqtt {
		steps = append(steps, fmt.Sprintf("yggate setup mosquitto%s   (or ejabberd-mqtt), and add the lines it prints", conf))
	}
	fmt.Fprintln(&b, "Next:")
	for i, step := range append(steps, "yggate serve"+conf) {
		fmt.Fprintf(&b, "  %d. %s\n", i+1, step)
	}
	return b.String()
}
