//go:build integration

package peertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/yggate/yggate/federation/xmpp/setup"
)

func newNetns(t *testing.T, name string) *Netns {
	t.Helper()
	n, err := NewNetns(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func connect(t *testing.T, a, b *Netns, addrA, addrB string) *Link {
	t.Helper()
	l, err := Connect(t.Context(), a, b, netip.MustParsePrefix(addrA), netip.MustParsePrefix(addrB))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func eventually(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := poll(ctx, nil, f); err != nil {
		t.Fatal(err)
	}
}

// Two nodes in their own namespaces meet at a stock node in a third one; a cut
// cable is noticed and mended.
func TestStockNode(t *testing.T) {
	//	a 10.77.1.1 ---- 10.77.1.2 r 10.77.2.2 ---- 10.77.2.1 b
	Require(t, "netns")
	a, r, b := newNetns(t, "a"), newNetns(t, "r"), newNetns(t, "b")
	link := connect(t, a, r, "10.77.1.1/24", "10.77.1.2/24")
	connect(t, b, r, "10.77.2.1/24", "10.77.2.2/24")

	node := func(name string, ns *Netns, listen string, peers ...string) *StockNode {
		n, err := NewStockNode(t.Context(), filepath.Join(t.TempDir(), name), ns, netip.MustParseAddrPort(listen), peers...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("%s:\n%s", n.Log, tail(n.Log, 20))
			}
		})
		if err := n.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	router := node("r", r, "0.0.0.0:9001")
	node("a", a, "127.0.0.1:9001", "tcp://10.77.1.2:9001")
	node("b", b, "127.0.0.1:9001", "tcp://10.77.2.2:9001")
	eventually(t, func(context.Context) error {
		log, err := os.ReadFile(router.Log)
		// A busy machine may have one come twice.
		if n := bytes.Count(log, []byte("Connected inbound:")); err == nil && n < 2 {
			err = fmt.Errorf("%d inbound peerings at the router", n)
		}
		return err
	})

	reach := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := a.Dial(ctx, "tcp", "10.77.1.2:9001")
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := reach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := link.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := reach(t.Context()); err == nil {
		t.Error("the router is reached over a cut cable")
	}
	if err := link.Restore(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, reach)
}

// A server in a namespace is used by a client outside of it.
func TestServerInNetns(t *testing.T) {
	Require(t, "netns", "ejabberd", "prosody")
	dir := t.TempDir()
	ca, err := NewCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	for kind, prepare := range map[string]func(ServerConfig) (*Server, error){setup.Ejabberd: NewEjabberd, setup.Prosody: NewProsody} {
		domain := kind + ".grid"
		cert, err := ca.Issue(domain, "conference."+domain)
		if err != nil {
			t.Fatal(err)
		}
		s, err := prepare(ServerConfig{
			Domain: domain, IP: netip.MustParseAddr("127.0.10.1"), Dir: filepath.Join(dir, kind), Netns: newNetns(t, kind),
			Setup: setup.Params{Cert: cert, CA: ca.File, Gateway: netip.MustParseAddrPort("127.0.10.11:5269"), Mode: setup.DNS, DNS: netip.MustParseAddrPort("127.0.10.53:53")},
		})
		if err != nil {
			t.Fatal(err)
		}
		Run(t, s)
		cfg := ClientConfig{Roots: ca.Pool}
		alice, bob := User(t, s, cfg, "alice"), User(t, s, cfg, "bob")
		if err := Conversation(t.Context(), alice, bob, os.Stderr); err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("tcp", s.C2SAddr.String()); err == nil {
			c.Close()
			t.Errorf("%s is reached from outside of its namespace", kind)
		}
		m, err := s.Memory()
		if err != nil || m.RSS < 1<<20 || m.Peak < m.RSS {
			t.Errorf("memory of %s: %+v, %v", kind, m, err)
		}
		if err := s.ResetPeak(); err != nil {
			t.Error(err)
		}
		if cpu, err := s.CPU(); err != nil || cpu <= 0 {
			t.Errorf("processor time of %s: %v, %v", kind, cpu, err)
		}
		if reads, writes, err := s.Calls(); err != nil || reads <= 0 || writes <= 0 {
			t.Errorf("system calls of %s: %d reads, %d writes, %v", kind, reads, writes, err)
		}
	}
}

// What a killed test process leaves is deleted by the next one.
func TestReapNetns(t *testing.T) {
	Require(t, "netns")
	// No process has an id above pid_max, 4194304 at most.
	left := "yg4194399-left-1"
	if err := ip(t.Context(), "netns", "add", left); err != nil {
		t.Fatal(err)
	}
	newNetns(t, "x")
	if _, err := os.Stat(filepath.Join(netnsDir, left)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}
