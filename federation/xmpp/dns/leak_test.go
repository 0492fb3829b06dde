package dns_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/yggate/yggate/federation/xmpp/dns"
)

const inNamespace = "YGGATE_DNS_TEST_NAMESPACE"

// TestNoLeak counts every datagram and connection of a network namespace in
// which nothing runs but a responder without upstream and its client.
func TestNoLeak(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		countTraffic(t)
		return
	}
	if slices.Contains(strings.Split(os.Getenv("YGGATE_SKIP"), ","), "netns") {
		t.Skip("netns: skipped by YGGATE_SKIP")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestNoLeak$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNoLeak") {
		t.Fatalf("in a network namespace of its own (which takes root, or user namespaces; YGGATE_SKIP=netns does without): %v\n%s", err, out)
	}
}

func countTraffic(t *testing.T) {
	raiseLoopback(t)
	at := netip.MustParseAddrPort("127.0.0.53:53")
	r, err := dns.New(dns.Config{Listen: at, Answer: peers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	if !serving(t, at, done) {
		t.Fatal("the address is taken")
	}
	before := counters(t)
	const questions = 40
	for i := range questions {
		for _, network := range []string{"udp", "tcp"} {
			name := fmt.Sprintf("host%d.leak.example.", i)
			if i%2 == 0 {
				name = "_xmpp-server._tcp." + name
			}
			ask(t, network, at, new(mdns.Msg).SetQuestion(name, mdns.TypeSRV))
		}
	}
	after := counters(t)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for name, want := range map[string]int{
		"Udp OutDatagrams": 2 * questions, // each question and each answer
		"Tcp ActiveOpens":  questions,     // those of the client
		"Tcp AttemptFails": 0,
		"Icmp OutMsgs":     0,
		"Ip OutNoRoutes":   0,
		"Udp6OutDatagrams": 0,
		"Ip6OutNoRoutes":   0,
	} {
		if _, known := after[name]; !known {
			t.Errorf("this kernel does not count %s", name)
		}
		if got := after[name] - before[name]; got != want {
			t.Errorf("%s grew by %d, want %d", name, got, want)
		}
	}
}

// counters reads snmp, as "Udp OutDatagrams", and snmp6 of this namespace.
func counters(t *testing.T) map[string]int {
	t.Helper()
	all := map[string]int{}
	text, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var name string
		var n int
		if _, err := fmt.Sscan(line, &name, &n); err != nil {
			t.Fatal(err)
		}
		all[name] = n
	}
	if text, err = os.ReadFile("/proc/thread-self/net/snmp"); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i := 0; i+1 < len(lines); i += 2 { // names, then values
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for k := 1; k < len(names); k++ {
			var n int
			if _, err := fmt.Sscan(values[k], &n); err != nil {
				t.Fatal(err)
			}
			all[strings.TrimSuffix(names[0], ":")+" "+names[k]] = n
		}
	}
	return all
}

func raiseLoopback(t *testing.T) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("raise lo: %v", err)
	}
}
