package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/internal/peertest"
)

// site is one operator's side: a gateway and the stand-in for its XMPP server.
type site struct {
	name        string
	domain, muc string
	// serverAddr and gatewayAddr are where the two listen. Each is reached over a
	// cable of its own.
	serverAddr, gatewayAddr string
	toServer, toGateway     *peertest.Cable
	state                   string // the gateway's state directory
	disk                    *disk  // nil where it has none of its own
	gateway                 *peertest.Gateway
	server                  *standIn
	checks                  *checks
	log                     *slog.Logger

	// life counts the lives of this side in which its server hears from the
	// gateway: what both knew of each other is gone with each.
	life atomic.Uint64

	tally *tally

	// mu is held while the gateway is killed or started.
	mu   sync.Mutex
	down bool // the gateway was killed and is not to run
}

// siteConfig says where a site is.
type siteConfig struct {
	name, dir, program string
	mesh               []string // flags for `yggate init`
	disk               int64    // bytes of a file system of its own for the state; 0 for none
}

// newSite does what an operator does first.
func newSite(ctx context.Context, cfg siteConfig, t *tally, log *slog.Logger) (*site, error) {
	s := &site{
		name: cfg.name, domain: cfg.name + ".grid.test", muc: "conference." + cfg.name + ".grid.test",
		serverAddr:  netip.AddrPortFrom(peertest.Loopback(), 5269).String(),
		gatewayAddr: netip.AddrPortFrom(peertest.Loopback(), 5269).String(),
		log:         log.With("grid", cfg.name), tally: t,
	}
	var err error
	if s.gateway, err = peertest.NewGateway(ctx, cfg.name, filepath.Join(cfg.dir, cfg.name), nil, cfg.program); err != nil {
		return nil, err
	}
	s.state = filepath.Join(s.gateway.Dir, "state")
	if err := os.Mkdir(s.state, 0o700); err != nil {
		return nil, err
	}
	if s.checks, err = newChecks(filepath.Join(s.gateway.Dir, "copy"), filepath.Join(s.state, "yggate.db")); err != nil {
		return nil, err
	}
	if cfg.disk > 0 {
		if s.disk, err = mountDisk(s.state, cfg.disk); err != nil {
			return nil, err
		}
	}
	if err := s.wire(); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	init := []string{"--name", s.name, "--domain", s.domain, "--muc", s.muc,
		"--server", s.toServer.Addr(), "--listen", s.gatewayAddr, "--dns", "off"}
	if err := errors.Join(s.gateway.Init(ctx, append(init, cfg.mesh...)...), unlimit(s.gateway.Config)); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// wire lays the cables between gateway and server.
func (s *site) wire() (err error) {
	front := func() string { return netip.AddrPortFrom(peertest.Loopback(), 5269).String() }
	if s.toServer, err = peertest.NewCable(front(), s.serverAddr); err != nil {
		return err
	}
	s.toGateway, err = peertest.NewCable(front(), s.gatewayAddr)
	return err
}

// unlimit lets a peer send as fast as this machine can.
func unlimit(config string) error {
	b, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	const allow = "peer_defaults:\n  allow: [xmpp]\n"
	if !strings.Contains(string(b), allow) {
		return fmt.Errorf("%s is not as `yggate init` writes it: no %q", config, allow)
	}
	text := strings.Replace(string(b), allow, allow+"  limits: {messages_per_second: 1000000, burst: 1000000, bytes_per_second: 1GiB}\n", 1)
	return os.WriteFile(config, []byte(text), 0o600)
}

// status asks the gateway how it is.
func (s *site) status(ctx context.Context) (admin.Status, error) {
	return admin.NewClient(admin.SocketPath(s.state)).Status(ctx)
}

// linked says whether the gateway's link to its one peer is up.
func (s *site) linked(ctx context.Context) bool {
	st, err := s.status(ctx)
	return err == nil && len(st.Peers) == 1 && st.Peers[0].Up
}

// empty says what the gateway still holds for its peer or its server, if anything.
func (s *site) empty(ctx context.Context) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	for _, p := range st.Peers {
		for _, l := range p.Lanes {
			if l.Items > 0 {
				return fmt.Errorf("the gateway of %s holds %d items on lane %s, direction %s", s.name, l.Items, l.Lane, l.Dir)
			}
		}
	}
	if len(st.Untold) > 0 {
		return fmt.Errorf("the gateway of %s has senders to tell", s.name)
	}
	return nil
}

// kill ends the gateway as kill -9 does, and returns when all that it wrote to its
// server has been read. It is false if none was running.
func (s *site) kill(ctx context.Context) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gateway.Running() {
		return false, nil
	}
	s.down = true
	if err := s.gateway.Kill(); err != nil {
		return false, err
	}
	return true, s.bury(ctx)
}

// bury looks at what a gateway left behind. It needs s.mu.
func (s *site) bury(ctx context.Context) error {
	if err := s.server.drained(ctx); err != nil {
		return err
	}
	s.life.Add(1)
	return s.checks.take(ctx)
}

// start starts the gateway and does not wait for it.
func (s *site) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = false
	if s.gateway.Running() {
		return nil
	}
	return s.gateway.Process.Start()
}

// restartPause is how long a service manager waits before it starts what has ended.
const restartPause = 100 * time.Millisecond

// supervise starts the gateway anew when it ends by itself, as a service manager
// does, until ctx ends.
func (s *site) supervise(ctx context.Context) error {
	for {
		select {
		case <-s.gateway.Done():
		case <-ctx.Done():
			return nil
		}
		if err := s.revive(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(restartPause):
		case <-ctx.Done():
			return nil
		}
	}
}

// revive starts a gateway that ended by itself.
func (s *site) revive(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down || s.gateway.Running() {
		return nil
	}
	s.tally.exits.Add(1)
	s.log.Warn("the gateway has ended by itself", "said", s.gateway.LogTail(1))
	if err := s.bury(ctx); err != nil {
		return err
	}
	return s.gateway.Process.Start()
}

// outage takes the XMPP server away for as long as wait takes.
func (s *site) outage(wait func()) error {
	if err := s.server.halt(); err != nil {
		return err
	}
	s.life.Add(1)
	wait()
	return s.server.start()
}

// unplug cuts both cables between gateway and server for as long as wait takes.
// What is on its way on them is lost, acknowledgements among it.
func (s *site) unplug(ctx context.Context, wait func()) error {
	s.toServer.Cut()
	s.toGateway.Cut()
	defer s.toServer.Mend()
	defer s.toGateway.Mend()
	if err := s.server.drained(ctx); err != nil {
		return err
	}
	s.life.Add(1)
	wait()
	return nil
}

// fill fills the gateway's disk. SQLite writes its log over and over within the
// room that the file has once taken, and would not notice for long; so the log is
// cut to nothing first.
func (s *site) fill(ctx context.Context) error {
	s.mu.Lock() // nobody looks at what a dead gateway left behind meanwhile
	defer s.mu.Unlock()
	if s.gateway.Running() {
		if err := truncateLog(ctx, s.checks.database); err != nil {
			s.log.Info("the disk is filled beside a log with room in it", "err", err)
		}
	}
	return s.disk.fill()
}

// stop ends everything of the site, and looks at the database once more.
func (s *site) stop() error {
	errs := []error{s.gateway.Stop()}
	if s.server != nil {
		errs = append(errs, s.server.halt(), s.checks.take(context.Background()))
	}
	errs = append(errs, s.checks.wait())
	for _, c := range []*peertest.Cable{s.toServer, s.toGateway} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	if s.disk != nil {
		errs = append(errs, s.disk.unmount())
	}
	return errors.Join(errs...)
}

// await polls until cond holds or ctx ends.
func await(ctx context.Context, every time.Duration, cond func() bool) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
