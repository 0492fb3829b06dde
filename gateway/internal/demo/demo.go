package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// stage is what the demo plays on.
type stage struct {
	program
	out   io.Writer
	dir   string
	begun time.Time
	grids []*peertest.Grid
}

// demo plays everything once. Unless once is set it then stays until ctx is done.
func demo(ctx context.Context, out io.Writer, p program, once bool) (err error) {
	if err := peertest.Need(p.needs()...); err != nil {
		return fmt.Errorf("%w; DEMO=xmpp, DEMO=matrix and DEMO=mqtt show one protocol alone", err)
	}
	dir, err := os.MkdirTemp("", "yggate-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	s := &stage{program: p, out: out, dir: dir, begun: time.Now()}
	defer func() { err = s.clear(err) }()
	if err := s.play(ctx); err != nil {
		if ctx.Err() != nil { // whatever was under way failed because of that
			return context.Cause(ctx)
		}
		return err
	}
	if once {
		return nil
	}
	s.invite()
	<-ctx.Done()
	s.say("\nStopping ...")
	return nil
}

// play sets up both grids, makes them peers and lets their users talk.
func (s *stage) play(ctx context.Context) error {
	s.say("yggate demo: grid a with %s and grid b with %s, each behind a yggate of its own.\nEverything is in %s and on addresses of 127/8.",
		s.servers(setup.Ejabberd), s.servers(setup.Prosody), s.dir)
	s.act("Building yggate")
	program, err := peertest.Build(ctx, "cmd/yggate")
	if err != nil {
		return err
	}
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	a, err := s.grid(ctx, setup.Ejabberd, peertest.GridConfig{
		Name: "a", Program: program, Mesh: []string{"--mesh-listen", mesh, "--advertise", mesh},
	})
	if err != nil {
		return err
	}
	b, err := s.grid(ctx, setup.Prosody, peertest.GridConfig{Name: "b", Program: program})
	if err != nil {
		return err
	}
	s.act("The operators exchange one string, and wait until the link is up")
	if err := peertest.Pair(ctx, a, b); err != nil {
		return err
	}
	if s.xmpp {
		s.act("alice and bob talk, with ordinary XMPP clients")
		if err := s.talk(ctx, a, b); err != nil {
			return err
		}
	}
	if s.matrix {
		s.act("alice and bob talk, with ordinary Matrix clients")
		if err := s.talkMatrix(ctx, a, b); err != nil {
			return err
		}
	}
	if s.mqtt {
		s.act("A sensor of a, and a subscriber of b, with mosquitto's own clients")
		if err := s.measure(ctx, a, b); err != nil {
			return err
		}
	}
	return s.look(ctx, a)
}

// servers names what runs on a grid whose XMPP server is kind.
func (s *stage) servers(kind string) string {
	var names []string
	if s.xmpp {
		names = append(names, map[string]string{setup.Ejabberd: "ejabberd", setup.Prosody: "Prosody"}[kind])
	}
	if s.matrix {
		names = append(names, "Dendrite")
	}
	if s.mqtt {
		names = append(names, "mosquitto")
	}
	if last := len(names) - 1; last > 0 {
		return strings.Join(names[:last], ", ") + " and " + names[last]
	}
	return names[0]
}

// grid prepares and starts one operator's side.
func (s *stage) grid(ctx context.Context, kind string, cfg peertest.GridConfig) (*peertest.Grid, error) {
	s.act("Grid %s: identity, configuration, and the lines for %s", cfg.Name, s.servers(kind))
	cfg.Dir, cfg.Mode, cfg.Matrix = filepath.Join(s.dir, cfg.Name), setup.DNS, s.matrix
	if s.xmpp {
		cfg.Kind = kind
	}
	if s.xmpp || s.matrix { // topics are of no domain
		cfg.Domain = cfg.Name + ".grid.test"
	}
	if s.mqtt {
		cfg.MQTT, cfg.MQTTConfig = true, sensors
	}
	cfg.OnCommand = func(args []string) { s.command(cfg.Name, args) }
	g, err := peertest.NewGrid(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.grids = append(s.grids, g)
	s.act("Grid %s: starting yggate with %s", cfg.Name, s.servers(kind))
	s.command(cfg.Name, []string{"serve", "&"})
	return g, g.Start(ctx)
}

func (s *stage) talk(ctx context.Context, a, b *peertest.Grid) error {
	alice, err := a.User(ctx, "alice")
	if err != nil {
		return err
	}
	bob, err := b.User(ctx, "bob")
	if err != nil {
		return errors.Join(err, alice.Close())
	}
	err = peertest.Conversation(ctx, alice, bob, s.out)
	return errors.Join(err, alice.Close(), bob.Close())
}

func (s *stage) talkMatrix(ctx context.Context, a, b *peertest.Grid) error {
	alice, err := a.Homeserver.User(ctx, "alice")
	if err != nil {
		return err
	}
	bob, err := b.Homeserver.User(ctx, "bob")
	if err != nil {
		return errors.Join(err, alice.Close())
	}
	err = peertest.MatrixConversation(ctx, alice, bob, s.out)
	return errors.Join(err, alice.Close(), bob.Close())
}

// look shows what an operator sees afterwards.
func (s *stage) look(ctx context.Context, g *peertest.Grid) error {
	s.act("How grid %s looks now", g.Name)
	status, err := g.Gateway.Run(ctx, "status")
	if err != nil {
		return err
	}
	s.say("%s", status)
	s.say("Everything worked.")
	return nil
}

// invite tells people how to join.
func (s *stage) invite() {
	s.say("\nIt all stays up until Ctrl-C. Connect clients of your own, one on each side:")
	for i, user := range []string{"alice", "bob"} {
		g := s.grids[i]
		if s.xmpp {
			s.say("\n  XMPP: %s@%s   password: %s\n    server %s port %d (set by hand: the domain is in no DNS), STARTTLS\n    certificate authority: %s\n    group chat: any room @%s",
				user, g.Server.Domain, peertest.Password(user), g.Server.C2SAddr.Addr(), g.Server.C2SAddr.Port(), g.Issued.CA, g.Server.MUCDomain)
		}
		if s.matrix {
			s.say("\n  Matrix: @%s:%s   password: %s\n    homeserver: http://%s (set by hand), user: %s",
				user, g.Homeserver.ServerName, peertest.Password(user), g.Homeserver.HTTP, user)
		}
		if s.mqtt {
			s.say("\n  MQTT: mosquitto_sub -h %[1]s -v -t 'grid/#' -t '$grid/#'\n    mosquitto_pub -h %[1]s -t sensors/desk -m hello   (it crosses from here)", g.Broker.MQTT.Addr())
		}
	}
	s.say("\nLook at the gateways:\n")
	for _, g := range s.grids {
		s.say("  %s status --config %s", g.Gateway.Argv[0], g.Gateway.Config)
	}
}

// clear stops every process and removes the directory unless something failed.
func (s *stage) clear(failed error) error {
	for _, g := range s.grids {
		failed = errors.Join(failed, g.Stop())
	}
	if failed != nil && !errors.Is(failed, context.Canceled) {
		for _, g := range s.grids {
			s.log(g.Gateway.Log, g.Gateway.LogTail(20))
			if g.Server != nil {
				s.log(g.Server.LogFile(), g.Server.LogTail(20))
			}
			if g.Homeserver != nil {
				s.log(g.Homeserver.LogFile(), g.Homeserver.LogTail(20))
			}
			if g.Broker != nil {
				s.log(g.Broker.LogFile(), g.Broker.LogTail(20))
			}
		}
		return fmt.Errorf("%w\nlogs and configurations are kept in %s", failed, s.dir)
	}
	return errors.Join(failed, os.RemoveAll(s.dir))
}

// log shows the end of a file that a process has written.
func (s *stage) log(file, tail string) { s.say("\n%s:\n%s", file, tail) }

// act is a line of progress.
func (s *stage) act(format string, args ...any) {
	s.say("\n[%4.1fs] %s", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
}

// command shows what an operator would type.
func (s *stage) command(grid string, args []string) {
	s.say("  %s$ yggate %s", grid, strings.Join(args, " "))
}

// say prints a line. Somebody who closed the output has left; the demo goes on to
// its end all the same.
func (s *stage) say(format string, args ...any) { _, _ = fmt.Fprintf(s.out, format+"\n", args...) }
