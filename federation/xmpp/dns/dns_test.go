package dns_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/yggate/yggate/federation/xmpp/dns"
)

const patience = 20 * time.Second

var gateway = netip.MustParseAddrPort("127.0.10.11:5299")

// peers answers as the adapter does.
func peers(domain string) (netip.AddrPort, bool) {
	switch domain {
	case "b.grid.example", "conference.b.grid.example", "xn--bcher-kva.example":
		return gateway, true
	case "six.grid.example":
		return netip.MustParseAddrPort("[::1]:5269"), true
	}
	return netip.AddrPort{}, false
}

// start runs a responder on a free port and stops it with the test.
func start(t *testing.T, cfg dns.Config) netip.AddrPort {
	t.Helper()
	at, stop := startStoppable(t, cfg)
	t.Cleanup(stop)
	return at
}

func startStoppable(t *testing.T, cfg dns.Config) (at netip.AddrPort, stop func()) {
	t.Helper()
	if cfg.Answer == nil {
		cfg.Answer = peers
	}
	ip := "127.0.53." + fmt.Sprint(1+rand.IntN(250))
	for {
		// A port that is free for one protocol may be taken for the other.
		probe, err := net.ListenPacket("udp", ip+":0")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Listen = probe.LocalAddr().(*net.UDPAddr).AddrPort()
		probe.Close()
		r, err := dns.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		if !serving(t, cfg.Listen, done) {
			cancel()
			continue
		}
		return cfg.Listen, func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(patience):
				t.Error("Run does not end")
			}
		}
	}
}

// serving waits until TCP, the last to come, is open. False says that the
// address was taken.
func serving(t *testing.T, addr netip.AddrPort, done <-chan error) bool {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		select {
		case err := <-done:
			if errors.Is(err, syscall.EADDRINUSE) {
				return false
			}
			t.Fatalf("Run: %v", err)
		default:
		}
		if conn, err := net.Dial("tcp", addr.String()); err == nil {
			conn.Close()
			return true
		}
	}
	t.Fatal("the responder does not start")
	return false
}

func ask(t *testing.T, network string, at netip.AddrPort, q *mdns.Msg) *mdns.Msg {
	t.Helper()
	c := mdns.Client{Net: network, Timeout: patience}
	reply, _, err := c.Exchange(q, at.String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, q.Question[0].String(), err)
	}
	return reply
}

// summary is what a test compares: the code, the records, the zone that denies.
func summary(m *mdns.Msg) string {
	s := mdns.RcodeToString[m.Rcode]
	for _, rr := range m.Answer {
		s += " " + strings.Join(strings.Fields(rr.String()), " ")
	}
	for _, rr := range m.Ns {
		s += " not in " + rr.Header().Name
	}
	return s
}

func TestAnswers(t *testing.T) {
	at := start(t, dns.Config{})
	for _, tt := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV, "NOERROR _xmpp-server._tcp.b.grid.example. 30 IN SRV 0 1 5299 127.0.10.11."},
		{"_XMPP-server._tcp.B.Grid.Example.", mdns.TypeSRV, "NOERROR _XMPP-server._tcp.B.Grid.Example. 30 IN SRV 0 1 5299 127.0.10.11."},
		{"_xmpp-server._tcp.b.grid.example.", mdns.TypeANY, "NOERROR _xmpp-server._tcp.b.grid.example. 30 IN SRV 0 1 5299 127.0.10.11."},
		{"_xmpp-server._tcp.conference.b.grid.example.", mdns.TypeSRV, "NOERROR _xmpp-server._tcp.conference.b.grid.example. 30 IN SRV 0 1 5299 127.0.10.11."},
		{"_xmpp-server._tcp.XN--bcher-kva.example.", mdns.TypeSRV, "NOERROR _xmpp-server._tcp.XN--bcher-kva.example. 30 IN SRV 0 1 5299 127.0.10.11."},
		{"_xmpp-server._tcp.b\\195\\188cher.example.", mdns.TypeSRV, "NXDOMAIN not in ."}, // DNS carries A-labels
		{"_xmpp-server._tcp.six.grid.example.", mdns.TypeSRV, "NOERROR _xmpp-server._tcp.six.grid.example. 30 IN SRV 0 1 5269 ::1."},
		{"_xmpp-server._tcp.b.grid.example.", mdns.TypeA, "NOERROR not in b.grid.example."},
		{"_xmpp-server._tcp.b.grid.example.", mdns.TypeTXT, "NOERROR not in b.grid.example."},
		{"_tcp.b.grid.example.", mdns.TypeSRV, "NOERROR not in b.grid.example."},
		{"b.grid.example.", mdns.TypeA, "NOERROR not in b.grid.example."},
		{"b.grid.example.", mdns.TypeAAAA, "NOERROR not in b.grid.example."},
		{"b.grid.example.", mdns.TypeSRV, "NOERROR not in b.grid.example."},
		{"_xmpps-server._tcp.b.grid.example.", mdns.TypeSRV, "NXDOMAIN not in b.grid.example."},
		{"_xmppconnect.b.grid.example.", mdns.TypeTXT, "NXDOMAIN not in b.grid.example."},
		{"_xmpp-server._tcp._x.b.grid.example.", mdns.TypeSRV, "NXDOMAIN not in b.grid.example."},
		{"_xmpp-server._tcp.x.b.grid.example.", mdns.TypeSRV, "NXDOMAIN not in ."},
		{"_xmpp-server._tcp.c.grid.example.", mdns.TypeSRV, "NXDOMAIN not in ."},
		{"www.example.", mdns.TypeA, "NXDOMAIN not in ."},
		{"_xmpp-server._tcp.", mdns.TypeSRV, "NXDOMAIN not in ."},
		{".", mdns.TypeNS, "NXDOMAIN not in ."},
		{"b.grid.example.", mdns.TypeAXFR, "REFUSED"},
	} {
		for _, network := range []string{"udp", "tcp"} {
			if got := summary(ask(t, network, at, new(mdns.Msg).SetQuestion(tt.name, tt.qtype))); got != tt.want {
				t.Errorf("%s %s %s:\n got %s\nwant %s", network, tt.name, mdns.TypeToString[tt.qtype], got, tt.want)
			}
		}
	}
	chaos := new(mdns.Msg).SetQuestion("version.bind.", mdns.TypeTXT)
	chaos.Question[0].Qclass = mdns.ClassCHAOS
	if got := summary(ask(t, "udp", at, chaos)); got != "REFUSED" {
		t.Errorf("class CHAOS: %s", got)
	}
	notify := new(mdns.Msg).SetNotify("b.grid.example.")
	if got := summary(ask(t, "udp", at, notify)); got != "NOTIMP" {
		t.Errorf("NOTIFY: %s", got)
	}
}

func TestEDNSIsAnswered(t *testing.T) {
	at := start(t, dns.Config{})
	q := new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)
	if reply := ask(t, "udp", at, q); reply.IsEdns0() != nil || !reply.Authoritative || !reply.RecursionAvailable {
		t.Errorf("without EDNS: %v", reply)
	}
	q.SetEdns0(4096, true)
	if reply := ask(t, "udp", at, q); reply.IsEdns0() == nil || !reply.IsEdns0().Do() {
		t.Errorf("with EDNS: %v", reply)
	}
}

func TestAnswerChangesAtOnce(t *testing.T) {
	var known atomic.Bool
	at := start(t, dns.Config{Answer: func(d string) (netip.AddrPort, bool) { return gateway, known.Load() && d == "new.example" }})
	q := new(mdns.Msg).SetQuestion("_xmpp-server._tcp.new.example.", mdns.TypeSRV)
	if got := summary(ask(t, "udp", at, q)); got != "NXDOMAIN not in ." {
		t.Errorf("before: %s", got)
	}
	known.Store(true)
	if got := ask(t, "udp", at, q); len(got.Answer) != 1 {
		t.Errorf("after: %s", summary(got))
	}
}

func TestGarbage(t *testing.T) {
	at := start(t, dns.Config{})
	question := new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)
	for _, network := range []string{"udp", "tcp"} { // so that all of it has started
		ask(t, network, at, question)
	}
	before := runtime.NumGoroutine()
	udp, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	r := rand.New(rand.NewPCG(1, 2))
	good, err := question.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5000 {
		packet := bytes.Clone(good)
		if i%2 == 0 {
			packet = make([]byte, r.IntN(1400))
		}
		for range 1 + r.IntN(8) {
			if len(packet) > 0 {
				packet[r.IntN(len(packet))] = byte(r.Uint32())
			}
		}
		if _, err := udp.Write(packet); err != nil {
			t.Fatal(err)
		}
	}
	for range 200 {
		garbleTCP(t, at, r)
	}
	// The flood may still fill the socket's buffer: as any resolver, ask again.
	waitFor(t, "an answer after the garbage", func() bool {
		c := mdns.Client{Timeout: time.Second}
		got, _, err := c.Exchange(new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV), at.String())
		return err == nil && len(got.Answer) == 1
	})
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

func garbleTCP(t *testing.T, at netip.AddrPort, r *rand.Rand) {
	t.Helper()
	tcp, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	body := make([]byte, r.IntN(60))
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	// The write fails where the responder has hung up already, which it may.
	_, _ = tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(r.IntN(100))), body...))
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestIdleClients: those who connect and say nothing take what they can get and
// leave UDP, and after their time TCP, to others.
func TestIdleClients(t *testing.T) {
	at := start(t, dns.Config{})
	before := runtime.NumGoroutine()
	for range 300 {
		conn, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if n := runtime.NumGoroutine() - before; n > 100 {
		t.Errorf("%d goroutines serve idle clients", n)
	}
	q := new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)
	if got := ask(t, "udp", at, q); len(got.Answer) != 1 {
		t.Errorf("UDP: %s", summary(got))
	}
}

func TestOnlyAllowedSourcesAreAnswered(t *testing.T) {
	log := &logged{}
	at := start(t, dns.Config{
		AllowFrom: []netip.Prefix{netip.MustParsePrefix("127.0.7.0/24"), netip.MustParsePrefix("127.0.0.1/32")},
		Log:       slog.New(slog.NewTextHandler(log, nil)),
	})
	q := new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)
	from := func(network, ip string) (*mdns.Msg, error) {
		c := mdns.Client{Net: network, Timeout: patience}
		if network == "udp" {
			c.Dialer = &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}
		} else {
			c.Dialer = &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		}
		reply, _, err := c.Exchange(q, at.String())
		return reply, err
	}
	for _, network := range []string{"udp", "tcp"} {
		if reply, err := from(network, "127.0.7.9"); err != nil || len(reply.Answer) != 1 {
			t.Errorf("%s, allowed: %v, %v", network, reply, err)
		}
	}
	if reply, err := from("tcp", "127.0.8.9"); err == nil {
		t.Errorf("tcp, not allowed: %v", reply)
	}
	// Whoever configured it wrong can find that out.
	if got := log.String(); !strings.Contains(got, "xmpp.allow_from") || !strings.Contains(got, "127.0.8.9") || strings.Contains(got, "127.0.7.9") {
		t.Errorf("log: %s", got)
	}
	// What is not answered over UDP shows in that a later question of an allowed
	// source is, while this socket has still nothing to read. Bad packets too.
	stranger, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP("127.0.8.9")}, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	packet, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(packet)
	bad[5] = 2 // two questions are said to follow
	for _, p := range [][]byte{packet, bad} {
		if _, err := stranger.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		if _, err := from("udp", "127.0.7.9"); err != nil {
			t.Fatal(err)
		}
	}
	if err := stranger.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := stranger.Read(make([]byte, 512)); err == nil {
		t.Errorf("udp, not allowed: %d bytes came back", n)
	}
}

// logged is a log that can be read while it is written.
type logged struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

func TestNewRefuses(t *testing.T) {
	at := netip.MustParseAddrPort
	lan := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	for _, tt := range []struct {
		name, want string
		cfg        dns.Config
	}{
		{"no address", "required", dns.Config{Answer: peers}},
		{"no port", "required", dns.Config{Answer: peers, Listen: at("127.0.0.1:0")}},
		{"no answers", "required", dns.Config{Listen: at("127.0.0.1:53")}},
		{"open to others", "open to other machines", dns.Config{Answer: peers, Listen: at("10.1.2.3:53")}},
		{"open to all", "open to other machines", dns.Config{Answer: peers, Listen: at("0.0.0.0:53"), AllowFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}},
		{"asks itself", "is the responder itself", dns.Config{Answer: peers, Listen: at("127.0.0.1:53"), Upstream: []netip.AddrPort{at("127.0.0.1:53")}}},
	} {
		if _, err := dns.New(tt.cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := dns.New(dns.Config{Answer: peers, Listen: at("10.1.2.3:53"), AllowFrom: lan}); err != nil {
		t.Errorf("open to others by intent: %v", err)
	}
}

func TestAddressTaken(t *testing.T) {
	at := start(t, dns.Config{})
	r, err := dns.New(dns.Config{Listen: at, Answer: peers})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(context.Background()); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), at.String()) {
		t.Errorf("Run: %v", err)
	}
}

// TestRunEnds: after Run nothing of it is left, not even with a client that
// stays connected.
func TestRunEnds(t *testing.T) {
	before := runtime.NumGoroutine()
	at, stop := startStoppable(t, dns.Config{})
	conn, err := mdns.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMsg(new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.ReadMsg(); err != nil || len(reply.Answer) != 1 {
		t.Fatalf("before: %v, %v", reply, err)
	}
	stop()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("a client that stayed: %v, %v, want the end", reply, err)
	}
	packets, err := net.ListenPacket("udp", at.String())
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	defer packets.Close()
	streams, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	defer streams.Close()
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}
