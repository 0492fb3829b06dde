package peertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps the names of namespaces.
const netnsDir = "/run/netns"

// Netns is a network namespace made by this process. A nil *Netns is the
// namespace that this process itself is in.
type Netns struct {
	// Name is what `ip netns` shows: "yg", the process id, and the given name.
	Name string
}

// NewNetns makes a namespace in which only loopback exists. It takes root. The
// name is for people; another test may use the same. Close deletes it;
// namespaces that a killed test process left behind are deleted here.
func NewNetns(ctx context.Context, name string) (*Netns, error) {
	if err := Need("netns"); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("make network namespace %s: it takes root: run as root, or set %s=netns to do without", name, SkipVar)
	}
	if err := reapNetns(ctx); err != nil {
		return nil, err
	}
	n := &Netns{Name: fmt.Sprintf("yg%d-%s-%d", os.Getpid(), name, counter.Add(1))}
	if err := ip(ctx, "netns", "add", n.Name); err != nil {
		return nil, err
	}
	if err := ip(ctx, "-n", n.Name, "link", "set", "lo", "up"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

var counter atomic.Uint32

// Close deletes the namespace. Processes in it, and links to it, should be
// stopped before: the kernel keeps a namespace while something is in it.
func (n *Netns) Close() error {
	return ip(context.Background(), "netns", "delete", n.Name)
}

var ownNetns = regexp.MustCompile(`^yg(\d+)-`)

// reapNetns deletes the namespaces of processes that no longer are.
func reapNetns(ctx context.Context) error {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		m := ownNetns.FindStringSubmatch(e.Name())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil || unix.Kill(pid, 0) != unix.ESRCH {
			continue
		}
		// Another process may reap at the same time.
		if err := ip(ctx, "netns", "delete", e.Name()); err != nil {
			if _, gone := os.Stat(filepath.Join(netnsDir, e.Name())); !errors.Is(gone, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// wrap makes argv run in the namespace.
func (n *Netns) wrap(argv []string) []string {
	if n == nil {
		return argv
	}
	return append([]string{"ip", "netns", "exec", n.Name}, argv...)
}

// Command is exec.CommandContext in the namespace.
func (n *Netns) Command(ctx context.Context, argv ...string) *exec.Cmd {
	argv = n.wrap(argv)
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// Do runs f on a thread that is in the namespace. Sockets opened by f on the
// calling goroutine stay in the namespace, wherever they are used later.
func (n *Netns) Do(f func() error) error {
	if n == nil {
		return f()
	}
	runtime.LockOSThread()
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer back.Close()
	there, err := os.Open(filepath.Join(netnsDir, n.Name))
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	err = f()
	if e := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); e != nil {
		// The thread stays locked and ends with its goroutine, so that nobody
		// else runs in the wrong namespace.
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.Name, e))
	}
	runtime.UnlockOSThread()
	return err
}

// Dial connects from within the namespace. addr must hold an IP address: the
// attempts for a name would run on other threads.
func (n *Netns) Dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial in network namespace: %w", err)
	}
	err = n.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Link is a cable between two namespaces.
type Link struct {
	a    *Netns
	name string // of a's end
}

// Connect lays a cable (a veth pair) between two namespaces and gives its ends
// addresses, which must be in one network.
func Connect(ctx context.Context, a, b *Netns, addrA, addrB netip.Prefix) (*Link, error) {
	id := strconv.Itoa(int(counter.Add(1)))
	endA, endB := "veth"+id+"a", "veth"+id+"b"
	if err := ip(ctx, "link", "add", endA, "netns", a.Name, "type", "veth", "peer", "name", endB, "netns", b.Name); err != nil {
		return nil, err
	}
	for _, end := range []struct {
		n    *Netns
		name string
		addr netip.Prefix
	}{{a, endA, addrA}, {b, endB, addrB}} {
		if err := ip(ctx, "-n", end.n.Name, "addr", "add", end.addr.String(), "dev", end.name); err != nil {
			return nil, err
		}
		if err := ip(ctx, "-n", end.n.Name, "link", "set", end.name, "up"); err != nil {
			return nil, err
		}
	}
	return &Link{a, endA}, nil
}

// Cut takes the cable out: nothing passes, and neither end is told.
func (l *Link) Cut(ctx context.Context) error {
	return ip(ctx, "-n", l.a.Name, "link", "set", l.name, "down")
}

// Restore puts the cable back.
func (l *Link) Restore(ctx context.Context) error {
	return ip(ctx, "-n", l.a.Name, "link", "set", l.name, "up")
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// noResolver is the /etc/resolv.conf of programs that find names by their hosts
// file alone.
const noResolver = "# none: tests ask nobody outside\n"

// privateEtc makes argv run with the hosts and resolv.conf of dir in the place of
// those in /etc, in a mount namespace. It takes root.
func privateEtc(dir string, argv []string) []string {
	script := ""
	for _, f := range []string{"hosts", "resolv.conf"} {
		if _, err := os.Stat("/etc/" + f); err == nil {
			script += fmt.Sprintf("mount --bind '%s' /etc/%s && ", filepath.Join(dir, f), f)
		}
	}
	return append([]string{"unshare", "--mount", "sh", "-c", script + `exec "$@"`, "sh"}, argv...)
}
