package peertest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// DirectMatrix is a number of Dendrites that federate with each other without
// yggate: what yggate is measured against. They find each other by their hosts
// files and speak TLS, validated, on port 8448.
type DirectMatrix struct {
	Dendrites []*Dendrite
	CA        *CA
}

// StartDirectMatrix starts a Dendrite for each server name in dir. It takes root.
func StartDirectMatrix(ctx context.Context, dir string, names ...string) (_ *DirectMatrix, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("start direct homeservers: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("start direct homeservers: %w", err)
	}
	m := &DirectMatrix{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Stop())
		}
	}()
	if m.CA, err = NewCA(dir); err != nil {
		return nil, err
	}
	hosts := map[string]netip.Addr{}
	for _, name := range names {
		hosts[name] = Loopback()
	}
	for _, name := range names {
		cert, err := m.CA.Issue(name)
		if err != nil {
			return m, err
		}
		d, err := NewDendrite(DendriteConfig{
			ServerName: name, IP: hosts[name], Dir: filepath.Join(dir, name), CA: m.CA.File, Cert: cert, Hosts: hosts,
		})
		if err != nil {
			return m, err
		}
		m.Dendrites = append(m.Dendrites, d)
		if err := d.Start(ctx); err != nil {
			return m, err
		}
	}
	return m, nil
}

// Stop stops what runs of them.
func (m *DirectMatrix) Stop() error {
	var errs []error
	for _, d := range m.Dendrites {
		errs = append(errs, d.Stop())
	}
	return errors.Join(errs...)
}
