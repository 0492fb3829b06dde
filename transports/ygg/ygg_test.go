package ygg

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/core"

	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/transporttest"
)

// patience is how long tests wait for what must happen.
const patience = 60 * time.Second

var hosts atomic.Int32

// newURI is a peering URI on an address that no other test has, of this process
// or of another that runs at the same time.
func newURI() string {
	pid := os.Getpid()
	return fmt.Sprintf("tcp://127.%d.%d.%d:9000", 100+pid%100, pid/100%250, hosts.Add(1))
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// quiet is a log for nodes of upstream; its own default has a data race.
func quiet() coreLog { return coreLog{log: slog.New(slog.DiscardHandler), links: newLinks()} }

func everyone(transports.Addr) bool { return true }

// newNode fills in what a test leaves open: a key, and everyone is accepted.
func newNode(t testing.TB, cfg Config) *Node {
	t.Helper()
	if cfg.Key == nil {
		cfg.Key = newKey(t)
	}
	if cfg.Accept == nil {
		cfg.Accept = everyone
	}
	if testing.Verbose() {
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// run runs n until the test ends or stop is called.
func run(t testing.TB, n *Node) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

// start is newNode and run.
func start(t testing.TB, cfg Config) *Node {
	t.Helper()
	n := newNode(t, cfg)
	run(t, n)
	return n
}

// rootKey is below all but a few keys, so that its node becomes the tree's
// root, as the public nodes' are: a new node changes nothing for the others.
func rootKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	for {
		if key := newKey(t); key[ed25519.SeedSize] == 0 {
			return key
		}
	}
}

// stockRelay is a node as upstream makes it, with its own queue, and the root of
// the tree.
func stockRelay(t testing.TB, listen string) *core.Core {
	t.Helper()
	return stockRelayAs(t, rootKey(t), listen)
}

func stockRelayAs(t testing.TB, key ed25519.PrivateKey, listen string) *core.Core {
	t.Helper()
	cert, err := selfSigned(key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := core.New(cert, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	u, err := url.Parse(listen)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Listen(u, ""); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not so after %v: %s", patience, what)
		}
	}
}

func dialIn(t testing.TB, d time.Duration, from, to *Node, port uint16) (transports.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	a := to.Self()
	a.Port = port
	return from.Dial(ctx, a)
}

// echo serves a port of n by sending back what comes.
func echo(t testing.TB, n *Node, port uint16) {
	t.Helper()
	l, err := n.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					k, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write(buf[:k]); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// wantEcho sends a few bytes to and fro.
func wantEcho(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := c.Read(buf); err != nil || string(buf) != "hello" {
		t.Fatalf("echo: %q, %v", buf, err)
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		transporttest.Run(t, func(t *testing.T) (a, b transports.Transport) {
			uri := newURI()
			return newNode(t, Config{Listen: []string{uri}}), newNode(t, Config{Peers: []string{uri}})
		})
	})
	t.Run("through a stock relay", func(t *testing.T) {
		t.Parallel()
		transporttest.Run(t, func(t *testing.T) (a, b transports.Transport) {
			uri := newURI()
			stockRelay(t, uri)
			return newNode(t, Config{Peers: []string{uri}}), newNode(t, Config{Peers: []string{uri}})
		})
	})
}
