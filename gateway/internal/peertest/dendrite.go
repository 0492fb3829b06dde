package peertest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	_ "embed"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/synapseadmin"

	"github.com/yggate/yggate/federation/guide"
)

// DendriteConfig says where a Dendrite runs and how it finds its peers.
type DendriteConfig struct {
	// ServerName is what users and rooms carry after the colon.
	ServerName string
	// IP is the address that it listens on: port 8008 for HTTP, clients and
	// federation alike, and with Cert port 8448 for HTTPS.
	IP netip.Addr
	// Dir is a directory for configuration, data and logs. It is made if
	// needed; a server started on the Dir of an earlier one carries on.
	Dir string
	// Proxy is the CONNECT proxy by which it reaches other servers,
	// "http://127.0.0.1:8118"; empty: none. Go never asks a proxy for peers
	// whose name is localhost or an address of 127/8.
	Proxy string
	// CA is a PEM file of the only certificates that it trusts; empty: those of
	// the system.
	CA string
	// Cert is a PEM file with key and certificate for HTTPS, which peers that
	// come without a gateway need; empty: no HTTPS.
	Cert string
	// Hosts are the names that its own /etc/hosts has. Nobody else is asked for
	// names. That takes root.
	Hosts map[string]netip.Addr
	// Guide holds the lines of `yggate setup dendrite`: with it, they and nothing
	// else say what Proxy and CA would.
	Guide *guide.Guide
	// AppServices are the registration files of application services.
	AppServices []string
	// LogLevel is debug, info, warn or error; empty: info.
	LogLevel string
	// Netns is the namespace to run in; nil is that of this process.
	Netns *Netns
}

// Dendrite is a Matrix homeserver. Its methods are for one goroutine at a time.
type Dendrite struct {
	ServerName string
	// HTTP is where clients and the gateway talk to it, HTTPS where peers do.
	HTTP, HTTPS netip.AddrPort
	// Process is the server's process, for memory, signals and its log.
	*Process

	cfg DendriteConfig
}

//go:embed dendrite.yaml.tmpl
var dendriteYAML string

var dendriteTemplate = template.Must(template.New("dendrite.yaml").Parse(dendriteYAML))

// registrationSecret lets the fixture make users where nobody may register.
const registrationSecret = "yggate-peertest"

// NewDendrite prepares a Dendrite; Start starts it.
func NewDendrite(cfg DendriteConfig) (*Dendrite, error) {
	if err := Need("dendrite"); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare dendrite: %w", err)
	}
	cfg.Dir = dir
	d := &Dendrite{
		ServerName: cfg.ServerName,
		HTTP:       netip.AddrPortFrom(cfg.IP, 8008), HTTPS: netip.AddrPortFrom(cfg.IP, 8448),
		Process: &Process{Name: "dendrite of " + cfg.ServerName, Dir: filepath.Join(dir, "data"), Log: filepath.Join(dir, "dendrite.log")},
	}
	return d, d.Configure(cfg)
}

// Config is how the server is configured.
func (d *Dendrite) Config() DendriteConfig { return d.cfg }

// Configure writes the server's configuration anew. It takes effect at the next
// start. ServerName, IP and Dir stay what they are.
func (d *Dendrite) Configure(cfg DendriteConfig) error {
	if d.cfg.Dir != "" {
		cfg.ServerName, cfg.IP, cfg.Dir = d.cfg.ServerName, d.cfg.IP, d.cfg.Dir
	}
	d.cfg = cfg
	if err := d.configure(); err != nil {
		return fmt.Errorf("configure %s: %w", d.Name, err)
	}
	return nil
}

func (d *Dendrite) configure() error {
	if len(d.cfg.Hosts) > 0 && os.Geteuid() != 0 {
		return errors.New("an own /etc/hosts takes root: run as root or use a proxy")
	}
	if err := os.MkdirAll(d.Dir, 0o755); err != nil {
		return err
	}
	key := d.file("key.pem")
	if err := writeMatrixKey(key); err != nil {
		return err
	}
	level := d.cfg.LogLevel
	if level == "" {
		level = "info"
	}
	var yaml bytes.Buffer
	err := dendriteTemplate.Execute(&yaml, map[string]any{
		"ServerName": d.ServerName, "Key": key, "Secret": registrationSecret, "LogLevel": level,
		"Data": d.Dir, "Media": filepath.Join(d.Dir, "media"), "AppServices": d.cfg.AppServices,
		"Federation": strings.TrimPrefix(d.guided("/dendrite.yaml"), "federation_api:\n"),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.file("dendrite.yaml"), yaml.Bytes(), 0o600); err != nil {
		return err
	}
	return writeEtc(d.cfg.Dir, d.cfg.Hosts)
}

func (d *Dendrite) file(name string) string { return filepath.Join(d.cfg.Dir, name) }

// writeMatrixKey makes a signing key as Dendrite keeps one, unless there is one.
func writeMatrixKey(file string) error {
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{
		Type: "MATRIX PRIVATE KEY", Headers: map[string]string{"Key-ID": "ed25519:" + rand.Text()[:6]}, Bytes: key.Seed(),
	}), 0o600)
}

// writeEtc writes the files that privateEtc puts in the place of those in /etc.
func writeEtc(dir string, hosts map[string]netip.Addr) error {
	text := "127.0.0.1 localhost\n::1 localhost\n"
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		text += hosts[name].String() + " " + name + "\n"
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "hosts"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(noResolver), 0o644))
}

// Start starts the server and returns when it answers clients and other servers.
func (d *Dendrite) Start(ctx context.Context) error {
	program, err := tool("dendrite")
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	argv := []string{program, "-config", d.file("dendrite.yaml"), "-http-bind-address", d.HTTP.String()}
	if d.cfg.Cert != "" {
		argv = append(argv, "-https-bind-address", d.HTTPS.String(), "-tls-cert", d.cfg.Cert, "-tls-key", d.cfg.Cert)
	}
	if os.Geteuid() == 0 {
		argv = privateEtc(d.cfg.Dir, argv)
	}
	d.Argv, d.Env = d.cfg.Netns.wrap(argv), d.env()
	if err := d.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := d.await(ctx, d.answers); err != nil {
		return errors.Join(err, d.Kill())
	}
	return nil
}

// guided returns what the guide has for a file whose path ends so, or nothing.
func (d *Dendrite) guided(file string) string {
	if d.cfg.Guide == nil {
		return ""
	}
	for _, f := range d.cfg.Guide.Fragments {
		if strings.HasSuffix(f.File, file) {
			return f.Text
		}
	}
	return ""
}

// env sets every variable by which Go finds a proxy or a CA, so that none of
// this process's own takes effect.
func (d *Dendrite) env() []string {
	env := []string{"PPROFLISTEN="}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		value := ""
		if name == "HTTPS_PROXY" {
			value = d.cfg.Proxy
		}
		env = append(env, name+"="+value, strings.ToLower(name)+"="+value)
	}
	if d.cfg.CA != "" {
		env = append(env, "SSL_CERT_FILE="+d.cfg.CA, "SSL_CERT_DIR="+d.Dir)
	}
	for line := range strings.Lines(d.guided("/yggate.conf")) { // of a systemd unit
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "Environment="); ok {
			env = append(env, strings.Trim(v, `"`))
		}
	}
	return env
}

// answers is nil when every listener serves what it is for.
func (d *Dendrite) answers(ctx context.Context) error {
	// Whether it is up is the question, not who vouches for it: peers check that.
	t := &http.Transport{DialContext: d.cfg.Netns.Dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer t.CloseIdleConnections()
	bases := []string{"http://" + d.HTTP.String()}
	if d.cfg.Cert != "" {
		bases = append(bases, "https://"+d.HTTPS.String())
	}
	for _, base := range bases {
		if _, err := get(ctx, t, base+"/_matrix/client/versions"); err != nil {
			return err
		}
		keys, err := get(ctx, t, base+"/_matrix/key/v2/server")
		if err != nil {
			return err
		}
		// Another server may have the port.
		var who struct {
			ServerName string `json:"server_name"`
		}
		if err := json.Unmarshal(keys, &who); err != nil || who.ServerName != d.ServerName {
			return fmt.Errorf("%s is %q, want %q (%v)", base, who.ServerName, d.ServerName, err)
		}
	}
	return nil
}

// get returns the body of a 200.
func get(ctx context.Context, t *http.Transport, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return io.ReadAll(io.LimitReader(resp.Body, 1<<20))
}

// Restart stops the server if it runs and starts it on the same data.
func (d *Dendrite) Restart(ctx context.Context) error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.Start(ctx)
}

// AddUser registers a user. One that exists keeps its password. The server must
// be running.
func (d *Dendrite) AddUser(ctx context.Context, user, password string) error {
	c, err := newMautrix("http://"+d.HTTP.String(), d.cfg.Netns.Dial)
	if err != nil {
		return fmt.Errorf("add user @%s:%s: %w", user, d.ServerName, err)
	}
	defer c.Client.CloseIdleConnections()
	admin := synapseadmin.Client{Client: c}
	_, err = admin.SharedSecretRegister(ctx, registrationSecret, synapseadmin.ReqSharedSecretRegister{
		Username: user, Password: password, InhibitLogin: true,
	})
	if err != nil && !errors.Is(err, mautrix.MUserInUse) {
		return fmt.Errorf("add user @%s:%s: %w", user, d.ServerName, err)
	}
	return nil
}

// User registers a user if need be and logs it in on a new device.
func (d *Dendrite) User(ctx context.Context, name string) (*MatrixClient, error) {
	password := Password(name)
	if err := d.AddUser(ctx, name, password); err != nil {
		return nil, err
	}
	return MatrixLogin(ctx, MatrixConfig{
		URL: "http://" + d.HTTP.String(), User: name, Password: password, Dial: d.cfg.Netns.Dial,
	})
}

// LogFile is the file in which the server says what it does.
func (d *Dendrite) LogFile() string { return d.Log }
