//go:build integration

package s2s

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/yggate/yggate/federation/localca"
)

// kind is a stock server: how to configure and how to run it.
type kind struct {
	name   string
	binary string
	files  func(site) map[string]string
	start  func(site) *exec.Cmd
}

// site is one installation of a server for the domain a.grid.
type site struct {
	dir      string
	addr     string // its s2s listener, host:port
	gateway  string // where SRV records lead it for every other domain
	resolver string // host:port
	cert     string // PEM bundle
	ca       string // whom it trusts; empty for nobody we know
}

var kinds = map[string]kind{
	"ejabberd": {"ejabberd", "erl", ejabberdFiles, ejabberdCmd},
	"prosody":  {"prosody", "prosody", prosodyFiles, prosodyCmd},
}

func ejabberdFiles(s site) map[string]string {
	host, port, _ := net.SplitHostPort(s.addr)
	resolver, resolverPort, _ := net.SplitHostPort(s.resolver)
	trust := ""
	if s.ca != "" {
		trust = "ca_file: " + s.ca + "\n"
	}
	return map[string]string{
		"ejabberd.yml": fmt.Sprintf(`hosts: [a.grid]
loglevel: debug
certfiles: [%s]
%slisten:
  - {port: %s, ip: %q, module: ejabberd_s2s_in}
s2s_use_starttls: required
s2s_max_retry_delay: 2
outgoing_s2s_families: [ipv4]
modules:
  mod_s2s_dialback: {}
  mod_ping: {}
`, s.cert, trust, port, host),
		"inetrc": fmt.Sprintf("{resolv_conf,\"\"}.\n{lookup,[file,dns]}.\n{nameserver,{%s},%s}.\n", strings.ReplaceAll(resolver, ".", ","), resolverPort),
	}
}

func ejabberdCmd(s site) *exec.Cmd {
	cmd := exec.Command("erl", "-noinput", "+K", "true", "-mnesia", "dir", `"`+s.dir+`"`, "-s", "ejabberd")
	cmd.Env = append(os.Environ(), "EJABBERD_CONFIG_PATH="+s.dir+"/ejabberd.yml", "EJABBERD_LOG_PATH="+s.dir+"/server.log",
		"ERL_INETRC="+s.dir+"/inetrc", "ERL_LIBS=/usr/lib/x86_64-linux-gnu", "ERL_CRASH_DUMP="+s.dir+"/crash.dump", "HOME="+s.dir)
	return cmd
}

func prosodyFiles(s site) map[string]string {
	host, port, _ := net.SplitHostPort(s.addr)
	resolver, resolverPort, _ := net.SplitHostPort(s.resolver)
	tls := fmt.Sprintf("{ key = %q; certificate = %q }", s.cert, s.cert)
	if s.ca != "" {
		tls = fmt.Sprintf("{ key = %q; certificate = %q; cafile = %q }", s.cert, s.cert, s.ca)
	}
	return map[string]string{"prosody.cfg.lua": fmt.Sprintf(`daemonize = false
run_as_root = true
pidfile = "%[1]s/pid"
data_path = "%[1]s"
log = { debug = "%[1]s/server.log" }
modules_enabled = { "tls"; "saslauth"; "dialback"; "disco"; "ping"; "smacks"; "s2s_bidi"; "posix" }
smacks_s2s_resend = true
s2s_interfaces = { %[2]q }
s2s_ports = { %[3]s }
c2s_ports = { }
s2s_require_encryption = true
s2s_secure_auth = %[4]v
unbound = { resolvconf = false; hoststxt = false; forward = { "%[5]s@%[6]s" } }
VirtualHost "a.grid"
	ssl = %[7]s
`, s.dir, host, port, s.ca != "", resolver, resolverPort, tls)}
}

func prosodyCmd(s site) *exec.Cmd {
	return exec.Command("prosody", "--config", s.dir+"/prosody.cfg.lua")
}

// install writes the configuration of a server that uses cert and trusts ca,
// and starts it and a resolver that leads it to the gateway.
func install(t *testing.T, k kind, gateway string, issuer *localca.CA, trusted *localca.CA) *stock {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv("YGGATE_SKIP"), ","), k.name) {
		t.Skipf("%s: skipped by YGGATE_SKIP", k.name)
	}
	if _, err := exec.LookPath(k.binary); err != nil {
		t.Fatalf("%s is missing: apt-get install ejabberd prosody lua-unbound, or set YGGATE_SKIP=%s to do without", k.name, k.name)
	}
	s := site{dir: t.TempDir(), addr: freeAddr(), gateway: gateway, resolver: resolver(t, gateway)}
	s.cert = filepath.Join(s.dir, "server.pem")
	if err := issuer.WriteServer(s.cert, []string{"a.grid"}, 0o600); err != nil {
		t.Fatal(err)
	}
	if trusted != nil {
		s.ca = filepath.Join(s.dir, "ca.pem")
		if err := os.WriteFile(s.ca, trusted.CertPEM(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range k.files(s) {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := &stock{t: t, kind: k, site: s}
	r.start()
	t.Cleanup(func() {
		r.stop(syscall.SIGTERM)
		if t.Failed() {
			r.showLog()
		}
	})
	return r
}

// stock is a running server.
type stock struct {
	t    *testing.T
	kind kind
	site site
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
}

func (r *stock) start() {
	r.t.Helper()
	r.cmd = r.kind.start(r.site)
	r.cmd.Dir = r.site.dir
	r.cmd.Stdout, r.cmd.Stderr = &r.out, &r.out
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		_ = cmd.Wait() // a server that was told to end may end in any way
		close(done)
	}(r.cmd, r.done)
	for late := time.Now().Add(time.Minute); ; {
		conn, err := net.Dial("tcp", r.site.addr)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-r.done:
			r.t.Fatalf("%s ended: %s", r.kind.binary, r.out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(late) {
			r.t.Fatalf("%s does not listen: %v; it said: %s", r.kind.binary, err, r.out.String())
		}
	}
}

func (r *stock) stop(sig syscall.Signal) {
	if err := r.cmd.Process.Signal(sig); err != nil {
		return // it has ended already
	}
	select {
	case <-r.done:
	case <-time.After(time.Minute):
		r.t.Errorf("%s does not end on signal %v", r.kind.binary, sig)
		_ = r.cmd.Process.Kill()
		<-r.done
	}
}

func (r *stock) showLog() {
	log, err := os.ReadFile(filepath.Join(r.site.dir, "server.log"))
	r.t.Logf("log of %s (%v), last part:\n%s\n%s", r.kind.binary, err, log[max(0, len(log)-12000):], r.out.String())
}

// resolver answers every SRV question with the gateway.
func resolver(t *testing.T, gateway string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(gateway)
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if name := q.Question[0].Name; q.Question[0].Qtype == dns.TypeSRV && strings.HasPrefix(name, "_xmpp-server.") {
			rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN SRV 0 0 %s %s.", name, port, host))
			if err != nil {
				t.Error(err)
				return
			}
			m.Answer = []dns.RR{rr}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m) // the server asks again
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := srv.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return pc.LocalAddr().String()
}
