package ygg

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// inNamespace is set in the environment of the process that TestMulticast runs
// itself in.
const inNamespace = "YGG_TEST_NAMESPACE"

// TestMulticast has two nodes find each other on a link. Both are in a network
// namespace of the test's own, so that no announcement leaves it.
func TestMulticast(t *testing.T) {
	t.Parallel()
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMulticast$", "-test.v")
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if os.Getuid() != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("in a network namespace (needs root or user namespaces): %v\n%s", err, out)
		}
		return
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth0"}, PeerName: "veth1"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lo", "veth0", "veth1"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	a, b := start(t, Config{Multicast: true}), start(t, Config{Multicast: true})
	echo(t, b, 7)
	c, err := dialIn(t, patience, a, b, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	wantEcho(t, c)
	// Without multicast a node stays alone.
	alone := start(t, Config{})
	<-alone.ready
	if alone.Status().Up {
		t.Error("a node without multicast has a peering")
	}
}
