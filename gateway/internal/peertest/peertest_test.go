package peertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestNeed(t *testing.T) {
	t.Setenv(SkipVar, "matrix,prosody")
	if err := Need("prosody"); !errors.Is(err, ErrSkipped) {
		t.Errorf("a skipped name: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	err := Need("ejabberd")
	if errors.Is(err, ErrSkipped) || err == nil || !strings.Contains(err.Error(), "apt-get install ejabberd") || !strings.Contains(err.Error(), SkipVar+"=ejabberd") {
		t.Errorf("a missing program: %v", err)
	}
	needs["phantom"] = needed{".cache/phantom", "make deps"}
	t.Cleanup(func() { delete(needs, "phantom") })
	if err := Need("phantom"); err == nil || !strings.Contains(err.Error(), "`make deps`") || !strings.Contains(err.Error(), "/.cache/phantom") {
		t.Errorf("a tool that is not built: %v", err)
	}
	if err := Need("nonsense"); err == nil {
		t.Error("an unknown name: no error")
	}
}

func TestPoll(t *testing.T) {
	never := errors.New("not yet")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	n := 0
	if err := poll(ctx, nil, func(context.Context) error { n++; return never }); !errors.Is(err, never) || !errors.Is(err, context.DeadlineExceeded) || n == 0 {
		t.Errorf("poll in vain: %v after %d calls", err, n)
	}
	gone := make(chan struct{})
	close(gone)
	if err := poll(within(t), gone, func(context.Context) error { return never }); !errors.Is(err, never) || !strings.Contains(err.Error(), "ended") {
		t.Errorf("poll of what is gone: %v", err)
	}
}

func process(t *testing.T, script string) *Process {
	p := &Process{Name: "script", Argv: []string{"sh", "-c", script}, Log: filepath.Join(t.TempDir(), "log")}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestProcess(t *testing.T) {
	p := process(t, "echo hello; exec cat /dev/zero > /dev/null")
	err := p.await(within(t), func(context.Context) error {
		if tail(p.Log, 1) != "hello" {
			return errors.New("silent")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err == nil {
		t.Error("it starts twice")
	}
	m, err := p.Memory()
	if err != nil || m.RSS <= 0 || m.Peak < m.RSS {
		t.Errorf("memory %+v, %v", m, err)
	}
	if err := p.ResetPeak(); err != nil {
		t.Error(err)
	}
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	pid := p.Pid()
	if err := p.Kill(); err != nil || p.Running() || p.Pid() != 0 {
		t.Errorf("after Kill: %v, running %v", err, p.Running())
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d after Kill: %v", pid, err)
	}
	if err := p.Start(); err != nil || p.Pid() == pid {
		t.Errorf("second run: %v, pid %d after %d", err, p.Pid(), pid)
	}
	if err := p.Stop(); err != nil || p.Running() {
		t.Errorf("after Stop: %v", err)
	}
	if _, err := p.Memory(); err == nil {
		t.Error("memory of what does not run: no error")
	}
}

func TestProcessThatEnds(t *testing.T) {
	p := process(t, "echo the reason >&2; exit 3")
	err := p.await(within(t), func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("the error does not show the log: %v", err)
	}
}

func TestCA(t *testing.T) {
	ca, err := NewCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, err := ca.Issue("a.grid", "conference.a.grid")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	pool, err := ReadPool(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{"a.grid": true, "conference.a.grid": true, "b.grid": false} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if (err == nil) != good {
			t.Errorf("verify for %s: %v", name, err)
		}
	}
	if _, err := ReadPool(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pool of no file: %v", err)
	}
}

func TestResolver(t *testing.T) {
	r, err := NewResolver(netip.AddrPortFrom(Loopback(), 0), map[string]netip.AddrPort{"b.grid": netip.MustParseAddrPort("127.0.10.2:5269")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, target := range map[string]string{
		"_xmpp-server._tcp.b.grid.": "127.0.10.2.", "_xmpp-server._tcp.Conference.B.grid.": "127.0.10.2.",
		"_xmpp-server._tcp.xb.grid.": "", "_xmpps-server._tcp.b.grid.": "", "b.grid.": "",
	} {
		// By itself the client waits for two seconds.
		m, _, err := (&dns.Client{Timeout: time.Minute}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeSRV), r.Addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if target == "" {
			if m.Rcode != dns.RcodeNameError || len(m.Answer) != 0 {
				t.Errorf("%s exists: %v", name, m)
			}
			continue
		}
		if len(m.Answer) != 1 || m.Answer[0].(*dns.SRV).Target != target || m.Answer[0].(*dns.SRV).Port != 5269 {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func TestLoopback(t *testing.T) {
	for range 1000 {
		if a := Loopback(); !a.IsLoopback() || a.As4()[1] < 64 || a.As4()[3] == 0 || a.As4()[3] == 255 {
			t.Fatalf("address %s", a)
		}
	}
}

func TestEncodeStore(t *testing.T) {
	if got := encodeStore("a-b.Grid1"); got != "a%2db%2eGrid1" {
		t.Errorf("encoded %q", got)
	}
}
