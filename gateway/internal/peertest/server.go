package peertest

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/yggate/yggate/federation/guide"
	"github.com/yggate/yggate/federation/xmpp/setup"
)

// readyWithin bounds the start of a server. ejabberd takes 1.5 s on an idle
// machine.
const readyWithin = 60 * time.Second

// ServerConfig says where an XMPP server runs and how it finds its peers.
type ServerConfig struct {
	// Domain is the virtual host. Group chat is at "conference." before it.
	Domain string
	// IP is the address that the server listens on, with the usual ports.
	IP netip.Addr
	// Dir is an absolute directory for configuration, data and logs. It is
	// made if needed; a server started on the Dir of an earlier one carries on.
	Dir string
	// Setup is what `yggate setup` would be told. Domains and MUC are set here.
	Setup setup.Params
	// MQTT, where it is set, is what `yggate setup ejabberd-mqtt` printed: ejabberd is an
	// MQTT broker, too, on the port of its MQTTPort.
	MQTT     *guide.Guide
	MQTTPort uint16
	// Netns is the namespace to run in; nil is that of this process.
	Netns *Netns
}

// Server is an XMPP server: ejabberd or Prosody. Its methods are for one
// goroutine at a time.
type Server struct {
	// Kind is setup.Ejabberd or setup.Prosody.
	Kind              string
	Domain, MUCDomain string
	C2SAddr, S2SAddr  netip.AddrPort
	// MQTT is where an ejabberd that is a broker speaks MQTT.
	MQTT netip.AddrPort
	// Process is the server's process, for memory, signals and its log.
	*Process

	cfg ServerConfig
	api netip.AddrPort

	users map[string]string
}

// NewEjabberd prepares an ejabberd; Start starts it.
func NewEjabberd(cfg ServerConfig) (*Server, error) {
	if err := Need("ejabberd", "erlang"); err != nil {
		return nil, err
	}
	return newServer(setup.Ejabberd, cfg)
}

// NewProsody prepares a Prosody; Start starts it.
func NewProsody(cfg ServerConfig) (*Server, error) {
	if err := Need("prosody"); err != nil {
		return nil, err
	}
	return newServer(setup.Prosody, cfg)
}

func newServer(kind string, cfg ServerConfig) (*Server, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", kind, err)
	}
	cfg.Dir = dir
	s := &Server{
		Kind: kind, Domain: cfg.Domain, MUCDomain: "conference." + cfg.Domain,
		C2SAddr: netip.AddrPortFrom(cfg.IP, 5222), S2SAddr: netip.AddrPortFrom(cfg.IP, 5269),
		cfg: cfg, api: netip.AddrPortFrom(cfg.IP, 5280), users: map[string]string{},
	}
	if cfg.MQTT != nil {
		s.MQTT = netip.AddrPortFrom(cfg.IP, cfg.MQTTPort)
	}
	s.cfg.Setup.Domains, s.cfg.Setup.MUC = []string{s.Domain}, []string{s.MUCDomain}
	s.Process = &Process{Name: kind + " of " + cfg.Domain, Dir: dir, Log: filepath.Join(dir, "log", "output.log")}
	return s, s.Configure(cfg.Setup)
}

// Configure writes the server's configuration anew. It takes effect at the next
// start.
func (s *Server) Configure(p setup.Params) error {
	p.Domains, p.MUC = []string{s.Domain}, []string{s.MUCDomain}
	s.cfg.Setup = p
	files, err := setup.Complete(s.Kind, p, setup.Standalone{Dir: s.cfg.Dir, C2S: s.C2SAddr, S2S: s.S2SAddr, API: s.api})
	if err != nil {
		return err
	}
	if p.Mode != setup.Hosts {
		files = append(files, setup.File{Name: "hosts", Text: "127.0.0.1 localhost\n::1 localhost\n"})
	}
	files = append(files, setup.File{Name: "resolv.conf", Text: noResolver})
	for _, sub := range []string{"data", "log", "certs"} {
		if err := os.MkdirAll(filepath.Join(s.cfg.Dir, sub), 0o755); err != nil {
			return fmt.Errorf("configure %s: %w", s.Name, err)
		}
	}
	for _, f := range files {
		if s.cfg.MQTT != nil && f.Name == "ejabberd.yml" {
			if f.Text, err = addSections(f.Text, s.cfg.MQTT.Text("/etc/ejabberd/ejabberd.yml")); err != nil {
				return fmt.Errorf("configure %s: %w", s.Name, err)
			}
		}
		name := filepath.Join(s.cfg.Dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("configure %s: %w", s.Name, err)
		}
		if err := os.WriteFile(name, []byte(f.Text), 0o644); err != nil {
			return fmt.Errorf("configure %s: %w", s.Name, err)
		}
	}
	return nil
}

// Start starts the server and returns when clients and servers are answered for
// its domain and its MUC service, and every user ever added exists.
func (s *Server) Start(ctx context.Context) error {
	argv, env := s.command()
	argv, err := s.private(argv)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.Name, err)
	}
	s.Argv, s.Env = s.cfg.Netns.wrap(argv), env
	if err := s.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	err = s.await(ctx, func(ctx context.Context) error {
		if err := s.greet(ctx, s.C2SAddr, "jabber:client", s.Domain); err != nil {
			return err
		}
		if err := s.greet(ctx, s.S2SAddr, "jabber:server", s.MUCDomain); err != nil {
			return err
		}
		if !s.MQTT.IsValid() {
			return nil
		}
		return greetMQTT(ctx, s.cfg.Netns, s.MQTT)
	})
	if err != nil {
		return errors.Join(err, s.Kill())
	}
	// A killed ejabberd may have lost what it had not flushed to disk.
	for user, pass := range s.users {
		if err := s.register(ctx, user, pass); err != nil {
			return errors.Join(err, s.Kill())
		}
	}
	return nil
}

// Restart stops the server if it runs and starts it on the same data.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	return s.Start(ctx)
}

// AddUser registers a user of Domain. One that exists keeps its password. The
// server must be running.
func (s *Server) AddUser(ctx context.Context, user, password string) error {
	if err := s.register(ctx, user, password); err != nil {
		return fmt.Errorf("add user %s@%s: %w", user, s.Domain, err)
	}
	s.users[user] = password
	return nil
}

func (s *Server) register(ctx context.Context, user, password string) error {
	if s.Kind == setup.Ejabberd {
		return s.ejabberdRegister(ctx, user, password)
	}
	return s.prosodyRegister(ctx, user, password)
}

func (s *Server) command() (argv, env []string) {
	if s.Kind == setup.Ejabberd {
		return s.ejabberdCommand()
	}
	return s.prosodyCommand()
}

// private lets the server have its own /etc/hosts and an empty
// /etc/resolv.conf, in a mount namespace. That takes root; without it only DNS
// mode works, and names of no peer may be asked for outside.
func (s *Server) private(argv []string) ([]string, error) {
	if os.Geteuid() != 0 {
		if s.cfg.Setup.Mode == setup.Hosts && s.Kind == setup.Ejabberd {
			return nil, errors.New("an own /etc/hosts takes root: run as root or use DNS mode")
		}
		return argv, nil
	}
	return privateEtc(s.cfg.Dir, argv), nil
}

// Dial connects to an address as seen by the server.
func (s *Server) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return s.cfg.Netns.Dial(ctx, network, addr)
}

// greet opens a stream to a host of the server and wants its features: only
// then is the host (a MUC service is one) up.
func (s *Server) greet(ctx context.Context, addr netip.AddrPort, ns, host string) error {
	conn, err := s.Dial(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(conn, "<?xml version='1.0'?><stream:stream xmlns='%s' xmlns:stream='http://etherx.jabber.org/streams' to='%s' version='1.0'>", ns, host)
	if err != nil {
		return err
	}
	d := xml.NewDecoder(bufio.NewReader(conn))
	for {
		tok, err := d.Token()
		if err != nil {
			return fmt.Errorf("open stream to %s at %s: %w", host, addr, err)
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		switch start.Name.Local {
		case "stream":
		case "features":
			return nil
		default:
			return fmt.Errorf("open stream to %s at %s: answered with <%s>", host, addr, start.Name.Local)
		}
	}
}

// Password is what User gives a user of that name.
func Password(name string) string { return "secret of " + name }

// User registers a user if need be and logs it in. Of cfg only Roots is read.
func (s *Server) User(ctx context.Context, cfg ClientConfig, name string) (Party, error) {
	password := Password(name)
	if err := s.AddUser(ctx, name, password); err != nil {
		return Party{}, err
	}
	cfg.JID, cfg.Password, cfg.Addr, cfg.Dial = name+"@"+s.Domain+"/desk", password, s.C2SAddr.String(), s.Dial
	c, err := Login(ctx, cfg)
	if err != nil {
		return Party{}, err
	}
	return Party{Client: c, Name: name, Domain: s.Domain, MUCDomain: s.MUCDomain}, nil
}

// LogFile is the file in which the server says what it does.
func (s *Server) LogFile() string { return filepath.Join(s.cfg.Dir, "log", s.Kind+".log") }

// LogTail returns the last lines of LogFile.
func (s *Server) LogTail(lines int) string { return tail(s.LogFile(), lines) }
