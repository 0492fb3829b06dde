package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// subject is one way to carry a stream. Its measure is called once a round.
type subject interface {
	measure(limits) (sample, error)
	Close() error
}

// local is a subject whose both ends are in this process.
type local struct {
	dial  func() (net.Conn, error)
	close func() error
}

func (s *local) Close() error { return s.close() }

func (s *local) measure(lim limits) (sample, error) {
	// What others left behind must not be collected on this one's time.
	runtime.GC()
	before, err := cpuTime()
	if err != nil {
		return sample{}, err
	}
	n, took, err := throughput(s.dial, lim)
	if err != nil {
		return sample{}, fmt.Errorf("throughput: %w", err)
	}
	after, err := cpuTime()
	if err != nil {
		return sample{}, err
	}
	p50, p99, err := latency(s.dial, lim)
	if err != nil {
		return sample{}, fmt.Errorf("latency: %w", err)
	}
	return sample{
		MBps: float64(n) / 1e6 / took.Seconds(), CPUPerGB: (after - before).Seconds() / (float64(n) / 1e9),
		P50: p50, P99: p99,
	}, nil
}

// newTCP is a plain stream on the loopback interface.
func newTCP() (subject, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go serve(l)
	return &local{close: l.Close, dial: func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) }}, nil
}

// newTLS is what one would use between two hosts that reach each other.
func newTLS() (subject, error) {
	server, client, err := tlsConfigs()
	if err != nil {
		return nil, err
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		return nil, err
	}
	go serve(l)
	return &local{close: l.Close, dial: func() (net.Conn, error) { return tls.Dial("tcp", l.Addr().String(), client) }}, nil
}

// tlsConfigs are the two ends of a TLS 1.3 connection.
func tlsConfigs() (server, client *tls.Config, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"bench"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	return server, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: "bench"}, nil
}

// newOurs is two nodes of transports/ygg that peer over loopback TCP.
func newOurs() (subject, error) {
	s, l, err := newNodes()
	if err != nil {
		return nil, err
	}
	go serve(l)
	return s, nil
}

// newOursTLS is the same through TLS, which every link between gateways has on top.
func newOursTLS() (subject, error) {
	s, l, err := newNodes()
	if err != nil {
		return nil, err
	}
	server, client, err := tlsConfigs()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	go serve(tls.NewListener(l, server))
	bare := s.dial
	s.dial = func() (net.Conn, error) {
		conn, err := bare()
		if err != nil {
			return nil, err
		}
		return tls.Client(conn, client), nil
	}
	return s, nil
}

// newNodes are two nodes, one of which listens and the other dials it.
func newNodes() (*local, net.Listener, error) {
	uri, err := freeURI()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, ctx := errgroup.WithContext(ctx)
	var nodes [2]*ygg.Node
	for i, cfg := range []ygg.Config{{Listen: []string{uri}}, {Peers: []string{uri}}} {
		if _, cfg.Key, err = ed25519.GenerateKey(rand.Reader); err != nil {
			cancel()
			return nil, nil, err
		}
		cfg.Accept = func(transports.Addr) bool { return true }
		if nodes[i], err = ygg.New(cfg); err != nil {
			cancel()
			return nil, nil, err
		}
		g.Go(func() error { return nodes[i].Run(ctx) })
	}
	l, err := nodes[0].Listen(port)
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return &local{
		close: func() error { cancel(); return g.Wait() },
		dial: func() (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, setupTime)
			defer cancel()
			return nodes[1].Dial(ctx, l.Addr())
		},
	}, netListener{l}, nil
}

// netListener makes a net.Listener of ours.
type netListener struct{ l transports.Listener }

func (l netListener) Accept() (net.Conn, error) { return l.l.Accept() }
func (l netListener) Close() error              { return l.l.Close() }
func (l netListener) Addr() net.Addr            { return l.l.Addr() }

// freeURI is a peering URI on a loopback port that was free just now.
func freeURI() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return "tcp://" + l.Addr().String(), l.Close()
}
