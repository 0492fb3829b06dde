package peertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/admin"
)

// upWithin bounds how long two gateways may take to meet.
const upWithin = 60 * time.Second

// GridConfig is one operator's side.
type GridConfig struct {
	// Name is what the operator's peers call the grid.
	Name string
	// Kind is the XMPP server: setup.Ejabberd or setup.Prosody; empty: none.
	Kind string
	// Matrix adds a homeserver, whose server name is Domain.
	Matrix bool
	// MQTT adds a broker, set up as `yggate setup mosquitto` says. MQTTConfig is added
	// to the gateway's configuration under peer_defaults, indented by two.
	MQTT       bool
	MQTTConfig string
	// MQTTVersion is which MQTT the gateway speaks; empty: what yggate chooses.
	MQTTVersion string
	// MQTTAddr is where the gateway is to reach the broker, if not where that listens.
	MQTTAddr netip.AddrPort
	// MQTTOptions are added to the section mqtt of the gateway's configuration, indented
	// by two; with MQTTS the gateway speaks TLS with the broker.
	MQTTOptions string
	MQTTS       bool
	// EjabberdMQTT makes the XMPP server, an ejabberd, the broker, set up as `yggate setup
	// ejabberd-mqtt` says. The gateway is its user MQTTUser.
	EjabberdMQTT bool
	Domain       string
	Dir          string
	Netns        *Netns
	// ServerIP, GatewayIP and DNSIP are the addresses of server, gateway and
	// DNS responder; unset ones are taken from 127/8. Hosts mode, in which the
	// peer domains must be known beforehand, has no responder.
	ServerIP, GatewayIP, DNSIP netip.Addr
	Mode                       setup.Mode
	PeerDomains                []string
	// Mesh are flags for `yggate init`: --mesh-peer, --mesh-listen, ...
	Mesh []string
	// Program is the yggate to run; empty builds the one of this module.
	Program string
	// OnCommand is told each yggate command that is run, without --config.
	OnCommand func(args []string)
}

// Grid is a yggate and the servers behind it.
type Grid struct {
	Name, Domain string
	Gateway      *Gateway
	Server       *Server // the XMPP server, or nil
	Issued       Issued  // for it
	// Listen is where the gateway takes its s2s streams.
	Listen     netip.AddrPort
	Homeserver *Dendrite  // or nil
	Broker     *Mosquitto // or nil
}

// NewGrid does what an operator does first: yggate init and yggate setup. Start
// starts both programs.
func NewGrid(ctx context.Context, cfg GridConfig) (*Grid, error) {
	g, err := newGrid(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("prepare grid %s: %w", cfg.Name, err)
	}
	return g, nil
}

func newGrid(ctx context.Context, cfg GridConfig) (*Grid, error) {
	for _, ip := range []*netip.Addr{&cfg.ServerIP, &cfg.GatewayIP, &cfg.DNSIP} {
		if !ip.IsValid() {
			*ip = Loopback()
		}
	}
	g := &Grid{Name: cfg.Name, Domain: cfg.Domain}
	var err error
	if g.Gateway, err = NewGateway(ctx, cfg.Name, filepath.Join(cfg.Dir, "yggate"), cfg.Netns, cfg.Program); err != nil {
		return nil, err
	}
	g.Gateway.OnCommand = cfg.OnCommand
	flags := []string{"--name", cfg.Name}
	p := setup.Params{Gateway: netip.AddrPortFrom(cfg.GatewayIP, 5269), Mode: cfg.Mode}
	if cfg.Kind != "" {
		flags = append(flags, g.xmppFlags(&cfg, &p)...)
	}
	if cfg.Matrix {
		flags = append(flags, "--matrix", cfg.Domain, "--matrix-server", "http://"+netip.AddrPortFrom(cfg.ServerIP, 8008).String(),
			"--matrix-proxy", netip.AddrPortFrom(cfg.GatewayIP, 8118).String())
	}
	if cfg.MQTT {
		broker, err := cfg.brokerURL()
		if err != nil {
			return nil, err
		}
		flags = append(flags, "--mqtt", broker)
	}
	if err := g.Gateway.Init(ctx, append(flags, cfg.Mesh...)...); err != nil {
		return nil, err
	}
	if cfg.MQTT {
		if err := g.prepareMQTT(ctx, &cfg); err != nil {
			return nil, err
		}
	}
	if cfg.Kind != "" {
		if err := g.prepareXMPP(ctx, &cfg, p); err != nil {
			return nil, err
		}
	}
	if cfg.Matrix {
		told, err := g.Gateway.Setup(ctx, "dendrite")
		if err != nil {
			return nil, err
		}
		if g.Homeserver, err = NewDendrite(DendriteConfig{
			ServerName: cfg.Domain, IP: cfg.ServerIP, Dir: filepath.Join(cfg.Dir, "dendrite"), Guide: told.Guide, Netns: cfg.Netns,
		}); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// xmppFlags are those of `yggate init`, and completes what the server is set up with.
func (g *Grid) xmppFlags(cfg *GridConfig, p *setup.Params) []string {
	g.Listen = p.Gateway
	flags := []string{
		"--domain", cfg.Domain, "--muc", "conference." + cfg.Domain,
		"--server", netip.AddrPortFrom(cfg.ServerIP, 5269).String(), "--listen", p.Gateway.String(), "--dns",
	}
	if cfg.Mode != setup.DNS {
		p.PeerDomains = cfg.PeerDomains
		return append(flags, "off")
	}
	// Not 53: a port that takes no root.
	p.DNS = netip.AddrPortFrom(cfg.DNSIP, 5353)
	return append(flags, p.DNS.String())
}

func (g *Grid) prepareXMPP(ctx context.Context, cfg *GridConfig, p setup.Params) (err error) {
	var flags []string
	for _, d := range p.PeerDomains {
		flags = append(flags, "--peer-domain", d)
	}
	if g.Issued, err = g.Gateway.Setup(ctx, cfg.Kind, flags...); err != nil {
		return err
	}
	p.Cert, p.CA = g.Issued.Cert, g.Issued.CA
	prepare := NewEjabberd
	if cfg.Kind == setup.Prosody {
		prepare = NewProsody
	}
	server := ServerConfig{Domain: cfg.Domain, IP: cfg.ServerIP, Dir: filepath.Join(cfg.Dir, cfg.Kind), Setup: p, Netns: cfg.Netns}
	if cfg.EjabberdMQTT {
		told, err := g.Gateway.Setup(ctx, "ejabberd-mqtt")
		if err != nil {
			return err
		}
		server.MQTT, server.MQTTPort = told.Guide, cfg.MQTTAddr.Port()
	}
	if g.Server, err = prepare(server); err == nil && cfg.EjabberdMQTT {
		g.Server.users[MQTTUser] = Password(MQTTUser) // is registered at the start
	}
	return err
}

// prepareMQTT writes what the operator would into the configuration of the gateway, and
// what `yggate setup` prints into that of the broker.
func (g *Grid) prepareMQTT(ctx context.Context, cfg *GridConfig) error {
	conf, err := os.ReadFile(g.Gateway.Config)
	if err != nil {
		return err
	}
	const heading = "peer_defaults:\n"
	if n := strings.Count(string(conf), heading); n != 1 {
		return fmt.Errorf("%s: %d times %q", g.Gateway.Config, n, heading)
	}
	text := strings.Replace(string(conf), heading, heading+cfg.MQTTConfig, 1)
	options := cfg.MQTTOptions
	if cfg.EjabberdMQTT {
		options += fmt.Sprintf("  user: %s@%s\n  password: %s\n  state: grid-state/\n", MQTTUser, cfg.Domain, Password(MQTTUser))
	}
	text = strings.Replace(text, "\nmqtt:\n", "\nmqtt:\n"+options, 1)
	if cfg.MQTTVersion != "" {
		const auto = "\n  version: auto"
		if n := strings.Count(text, auto); n != 1 {
			return fmt.Errorf("%s: %d times %q", g.Gateway.Config, n, auto)
		}
		text = strings.Replace(text, auto, "\n  version: "+cfg.MQTTVersion, 1)
	}
	if err := os.WriteFile(g.Gateway.Config, []byte(text), 0o600); err != nil {
		return err
	}
	if cfg.EjabberdMQTT {
		return nil
	}
	told, err := g.Gateway.Setup(ctx, "mosquitto")
	if err != nil {
		return err
	}
	g.Broker, err = NewMosquitto(MosquittoConfig{
		Name: cfg.Name, IP: cfg.ServerIP, Dir: filepath.Join(cfg.Dir, "mosquitto"), Netns: cfg.Netns,
		Lines: strings.Split(strings.TrimSpace(told.Guide.Text("/etc/mosquitto/conf.d/yggate.conf")), "\n"),
		ACL:   told.Guide.Text("/etc/mosquitto/acl"),
	})
	return err
}

// MQTTUser is as whom the gateway comes to an ejabberd.
const MQTTUser = "yggate"

// brokerURL says where the gateway is to reach the broker.
func (cfg *GridConfig) brokerURL() (string, error) {
	scheme, port := "mqtt://", uint16(1883)
	if cfg.MQTTS {
		scheme, port = "mqtts://", 8883
	}
	if cfg.EjabberdMQTT { // which listens on all addresses
		var err error
		if port, err = freePort(); err != nil {
			return "", err
		}
	}
	if !cfg.MQTTAddr.IsValid() {
		cfg.MQTTAddr = netip.AddrPortFrom(cfg.ServerIP, port)
	}
	return scheme + cfg.MQTTAddr.String(), nil
}

// Start starts the gateway and the servers.
func (g *Grid) Start(ctx context.Context) error {
	if err := g.Gateway.Start(ctx); err != nil {
		return err
	}
	if g.Server != nil {
		if err := g.Server.Start(ctx); err != nil {
			return err
		}
	}
	if g.Homeserver != nil {
		if err := g.Homeserver.Start(ctx); err != nil {
			return err
		}
	}
	if g.Broker != nil {
		return g.Broker.Start(ctx)
	}
	return nil
}

// Stop stops what runs of them.
func (g *Grid) Stop() error {
	var errs []error
	if g.Broker != nil {
		errs = append(errs, g.Broker.Stop())
	}
	if g.Homeserver != nil {
		errs = append(errs, g.Homeserver.Stop())
	}
	if g.Server != nil {
		errs = append(errs, g.Server.Stop())
	}
	return errors.Join(append(errs, g.Gateway.Stop())...)
}

// User registers a user on the grid's XMPP server if need be and logs it in.
func (g *Grid) User(ctx context.Context, name string) (Party, error) {
	return g.Server.User(ctx, ClientConfig{Roots: g.Issued.Pool}, name)
}

// AwaitUp waits until the link to a peer is up and returns the status that says
// so.
func (g *Grid) AwaitUp(ctx context.Context, peer string) (admin.Status, error) {
	var st admin.Status
	out, err := g.Gateway.Run(ctx, "status", "--json", "--wait", upWithin.String(), "--up", peer)
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("yggate status: read what it printed: %w", err)
	}
	return st, nil
}

// Pair makes two running grids peers as their operators do, by one string, and
// waits until the link is up on both sides.
func Pair(ctx context.Context, inviter, accepter *Grid) error {
	var expect []string
	if accepter.Domain != "" { // what is below it is expected with it
		expect = []string{accepter.Domain}
	}
	invite, err := inviter.Gateway.Invite(ctx, accepter.Name, expect...)
	if err != nil {
		return err
	}
	if err := accepter.Gateway.Accept(ctx, invite, inviter.Name); err != nil {
		return err
	}
	if accepter.Domain == "" { // nothing by which it could be known to be expected
		if _, err := inviter.Gateway.Run(ctx, "peer", "approve", accepter.Name); err != nil {
			return err
		}
	}
	if _, err := inviter.AwaitUp(ctx, accepter.Name); err != nil {
		return err
	}
	_, err = accepter.AwaitUp(ctx, inviter.Name)
	return err
}
