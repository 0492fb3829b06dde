package peertest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/yggate/yggate/federation/xmpp/setup"
)

// Direct is an ejabberd and a Prosody that federate with each other without
// yggate: what yggate is measured against.
type Direct struct {
	Ejabberd, Prosody *Server
	CA                *CA
	resolver          *Resolver
}

// StartDirect starts the two servers in dir. In DNS mode a resolver leads them
// to each other, in Hosts mode their hosts files do.
func StartDirect(ctx context.Context, dir string, mode setup.Mode) (_ *Direct, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("start direct pair: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start direct pair: %w", err)
	}
	d := &Direct{}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Stop())
		}
	}()
	if d.CA, err = NewCA(dir); err != nil {
		return nil, err
	}
	const a, b = "a.grid.test", "b.grid.test"
	ipA, ipB := Loopback(), Loopback()
	s2s := map[string]netip.AddrPort{a: netip.AddrPortFrom(ipA, 5269), b: netip.AddrPortFrom(ipB, 5269)}
	if mode == setup.DNS {
		if d.resolver, err = NewResolver(netip.AddrPortFrom(Loopback(), 0), s2s); err != nil {
			return nil, err
		}
	}
	config := func(own, peer string, ip netip.Addr) (ServerConfig, error) {
		cert, err := d.CA.Issue(own, "conference."+own)
		p := setup.Params{Cert: cert, CA: d.CA.File, Gateway: s2s[peer], Mode: mode}
		if mode == setup.DNS {
			p.DNS = d.resolver.Addr
		} else {
			p.PeerDomains = []string{peer, "conference." + peer}
		}
		return ServerConfig{Domain: own, IP: ip, Dir: filepath.Join(dir, own), Setup: p}, err
	}
	cfg, err := config(a, b, ipA)
	if err != nil {
		return nil, err
	}
	if d.Ejabberd, err = NewEjabberd(cfg); err != nil {
		return nil, err
	}
	if cfg, err = config(b, a, ipB); err != nil {
		return nil, err
	}
	if d.Prosody, err = NewProsody(cfg); err != nil {
		return nil, err
	}
	return d, errors.Join(d.Ejabberd.Start(ctx), d.Prosody.Start(ctx))
}

// Stop stops what runs of the pair.
func (d *Direct) Stop() error {
	var errs []error
	for _, s := range []*Server{d.Ejabberd, d.Prosody} {
		if s != nil {
			errs = append(errs, s.Stop())
		}
	}
	if d.resolver != nil {
		errs = append(errs, d.resolver.Close())
	}
	return errors.Join(errs...)
}
