package tcp_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/tcp"
	"github.com/yggate/yggate/transports/transporttest"
)

var nodes atomic.Int32

// newNode has an address that no other node has, of this process or of another
// that runs at the same time.
func newNode(t *testing.T, cfg tcp.Config) *tcp.Transport {
	t.Helper()
	pid := os.Getpid()
	cfg.IP = fmt.Sprintf("127.%d.%d.%d", 100+pid%100, pid/100%250, nodes.Add(1))
	tr, err := tcp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestConformance(t *testing.T) {
	transporttest.Run(t, func(t *testing.T) (a, b transports.Transport) {
		return newNode(t, tcp.Config{}), newNode(t, tcp.Config{})
	})
}

func TestOnlyLoopback(t *testing.T) {
	for _, ip := range []string{"", "localhost", "10.0.0.1", "::1", "128.0.0.1", "::ffff:127.0.0.1", "127.0.0.1%lo"} {
		if _, err := tcp.New(tcp.Config{IP: ip}); err == nil || !strings.Contains(err.Error(), "127.0.0.0/8") {
			t.Errorf("New with IP %q: %v", ip, err)
		}
	}
	tr := newNode(t, tcp.Config{})
	if _, err := tr.Dial(context.Background(), transports.Addr{Net: "tcp", Node: "192.0.2.1", Port: 80}); err == nil || !strings.Contains(err.Error(), "127.0.0.0/8") {
		t.Errorf("dial off the machine: %v", err)
	}
}

func TestAccept(t *testing.T) {
	friend, stranger := newNode(t, tcp.Config{}), newNode(t, tcp.Config{})
	n := newNode(t, tcp.Config{Accept: func(a transports.Addr) bool { return a == friend.Self() }})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, tr := range []*tcp.Transport{friend, stranger, n} {
		go tr.Run(ctx)
	}
	l, err := n.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tr := range []*tcp.Transport{stranger, friend} {
		c, err := tr.Dial(ctx, l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Remote().ID() != friend.Self().ID() {
		t.Errorf("accepted a stream of %s", c.Remote())
	}
}
