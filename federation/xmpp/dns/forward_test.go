package dns_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/yggate/yggate/federation/xmpp/dns"
)

// upstream is a resolver that knows public.example and large.example, and keeps
// questions for slow.example until it is released.
type upstream struct {
	addr    netip.AddrPort
	mu      sync.Mutex
	asked   []string
	waiting atomic.Int32
	held    chan struct{}
	release func() // answers slow.example from now on
}

func startUpstream(t *testing.T) *upstream {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.53.251:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: packets.LocalAddr().(*net.UDPAddr).AddrPort(), held: make(chan struct{})}
	u.release = sync.OnceFunc(func() { close(u.held) })
	streams, err := net.Listen("tcp", u.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*mdns.Server{{PacketConn: packets, Handler: u}, {Listener: streams, Handler: u}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			u.release() // Shutdown waits for what is being answered
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return u
}

func (u *upstream) ServeDNS(w mdns.ResponseWriter, q *mdns.Msg) {
	name := strings.ToLower(q.Question[0].Name)
	u.mu.Lock()
	u.asked = append(u.asked, w.RemoteAddr().Network()+" "+name)
	u.mu.Unlock()
	m := new(mdns.Msg).SetReply(q)
	m.Authoritative = true
	header := func(rrtype uint16) mdns.RR_Header {
		return mdns.RR_Header{Name: q.Question[0].Name, Rrtype: rrtype, Class: mdns.ClassINET, Ttl: 7}
	}
	switch {
	case name == "public.example.":
		m.Answer = []mdns.RR{&mdns.A{Hdr: header(mdns.TypeA), A: net.IPv4(192, 0, 2, 7)}}
	case name == "large.example.":
		for i := range 100 {
			m.Answer = append(m.Answer, &mdns.TXT{Hdr: header(mdns.TypeTXT), Txt: []string{fmt.Sprint(i, " ", strings.Repeat("x", 100))}})
		}
	case strings.HasSuffix(name, "slow.example."):
		u.waiting.Add(1)
		<-u.held
	default:
		m.Rcode = mdns.RcodeNameError
	}
	if name == "liar.example." {
		m.Question[0].Name = "other.example."
	}
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		m.Truncate(1232)
	}
	if q.IsEdns0() != nil {
		m.SetEdns0(1232, false)
	}
	// Who asked may have given up.
	_ = w.WriteMsg(m)
}

func (u *upstream) questions() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]string(nil), u.asked...)
}

func TestForward(t *testing.T) {
	u := startUpstream(t)
	at := start(t, dns.Config{Upstream: []netip.AddrPort{netip.MustParseAddrPort("127.0.53.252:9"), u.addr}, UpstreamTimeout: patience})
	for _, network := range []string{"udp", "tcp"} {
		reply := ask(t, network, at, new(mdns.Msg).SetQuestion("Public.example.", mdns.TypeA))
		if got := summary(reply); got != "NOERROR Public.example. 7 IN A 192.0.2.7" {
			t.Errorf("%s: %s", network, got)
		}
		if reply.Authoritative || reply.IsEdns0() != nil {
			t.Errorf("%s: what was between upstream and us shows: %v", network, reply)
		}
		if got := summary(ask(t, network, at, new(mdns.Msg).SetQuestion("nobody.example.", mdns.TypeA))); got != "NXDOMAIN" {
			t.Errorf("%s: %s", network, got)
		}
	}
	if got := summary(ask(t, "udp", at, new(mdns.Msg).SetQuestion("liar.example.", mdns.TypeA))); got != "SERVFAIL" {
		t.Errorf("the answer to another question: %s", got)
	}
	large := new(mdns.Msg).SetQuestion("large.example.", mdns.TypeTXT)
	if reply := ask(t, "tcp", at, large); len(reply.Answer) != 100 || reply.Truncated {
		t.Errorf("tcp: %d records", len(reply.Answer))
	}
	reply := ask(t, "udp", at, large)
	reply.Compress = true // as it came
	if !reply.Truncated || reply.Len() > mdns.MinMsgSize {
		t.Errorf("udp: %d bytes, truncated is %v", reply.Len(), reply.Truncated)
	}
}

// TestPeersAreNobodyElsesToKnow: with upstream too, a peer's names are answered
// here, whatever is asked.
func TestPeersAreNobodyElsesToKnow(t *testing.T) {
	u := startUpstream(t)
	at := start(t, dns.Config{Upstream: []netip.AddrPort{u.addr}})
	for _, name := range []string{"b.grid.example.", "_tcp.b.grid.example.", "_xmpp-server._tcp.b.grid.example.", "_xmpps-server._tcp.b.grid.example.", "_XMPPconnect.b.GRID.example."} {
		for _, qtype := range []uint16{mdns.TypeSRV, mdns.TypeA, mdns.TypeAAAA, mdns.TypeTXT} {
			ask(t, "udp", at, new(mdns.Msg).SetQuestion(name, qtype))
		}
	}
	if got := u.questions(); len(got) != 0 {
		t.Errorf("upstream was asked for %v", got)
	}
	ask(t, "udp", at, new(mdns.Msg).SetQuestion("other.example.", mdns.TypeA))
	if got := u.questions(); len(got) != 1 || got[0] != "udp other.example." {
		t.Errorf("upstream was asked for %v, want only the other name", got)
	}
}

func TestUpstreamDown(t *testing.T) {
	at := start(t, dns.Config{Upstream: []netip.AddrPort{netip.MustParseAddrPort("127.0.53.252:9")}})
	if got := summary(ask(t, "udp", at, new(mdns.Msg).SetQuestion("public.example.", mdns.TypeA))); got != "SERVFAIL" {
		t.Errorf("got %s", got)
	}
}

// TestForwardIsBounded: with every slot waiting, the next question fails at once
// and peers are answered as ever; equal questions go out as one.
func TestForwardIsBounded(t *testing.T) {
	u := startUpstream(t)
	at := start(t, dns.Config{Upstream: []netip.AddrPort{u.addr}, UpstreamTimeout: patience})
	const slots = 64
	replies := make(chan string, slots)
	client := mdns.Client{Timeout: patience}
	send := func(name string) {
		reply, _, err := client.Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), at.String())
		if err != nil {
			replies <- err.Error()
			return
		}
		if reply.Question[0].Name != name {
			replies <- "an answer to " + reply.Question[0].Name
			return
		}
		replies <- summary(reply)
	}
	for i := range slots {
		go send(fmt.Sprintf("%d.%s.example.", i/2, []string{"slow", "SLOW"}[i%2]))
	}
	waitFor(t, "the questions to reach upstream", func() bool { return u.waiting.Load() == slots/2 })
	waitFor(t, "all slots to be taken", func() bool {
		reply := ask(t, "udp", at, new(mdns.Msg).SetQuestion("public.example.", mdns.TypeA))
		return reply.Rcode == mdns.RcodeServerFailure
	})
	if got := ask(t, "udp", at, new(mdns.Msg).SetQuestion("_xmpp-server._tcp.b.grid.example.", mdns.TypeSRV)); len(got.Answer) != 1 {
		t.Errorf("a peer's name meanwhile: %s", summary(got))
	}
	u.release()
	for range slots {
		if got := <-replies; got != "NOERROR" {
			t.Errorf("a slow question: %s", got)
		}
	}
	if n := u.waiting.Load(); n != slots/2 {
		t.Errorf("%d questions went out, want %d", n, slots/2)
	}
	if got := ask(t, "udp", at, new(mdns.Msg).SetQuestion("public.example.", mdns.TypeA)); len(got.Answer) != 1 {
		t.Errorf("afterwards: %s", summary(got))
	}
}

// TestLoop: two responders that are each other's upstream give up a question
// after one round.
func TestLoop(t *testing.T) {
	var asked atomic.Int32
	counted := func(string) (netip.AddrPort, bool) {
		asked.Add(1)
		return netip.AddrPort{}, false
	}
	relay := startRelay(t)
	first := start(t, dns.Config{Answer: counted, Upstream: []netip.AddrPort{relay.addr()}})
	second := start(t, dns.Config{Answer: counted, Upstream: []netip.AddrPort{first}})
	relay.to.Store(&second)
	if got := summary(ask(t, "udp", first, new(mdns.Msg).SetQuestion("loop.example.", mdns.TypeA))); got != "SERVFAIL" {
		t.Errorf("got %s", got)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("the question was seen %d times, want 3: first, second, and first again", n)
	}
}

// relay passes packets on to an address that is known later.
type relay struct {
	conn net.PacketConn
	to   atomic.Pointer[netip.AddrPort]
}

func startRelay(t *testing.T) *relay {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.53.253:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conn: conn}
	t.Cleanup(func() { conn.Close() })
	go func() {
		packet := make([]byte, 2000)
		for {
			n, _, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			// Nothing comes back this way: the loop has no answer to give.
			if _, err := conn.WriteTo(packet[:n], net.UDPAddrFromAddrPort(*r.to.Load())); err != nil {
				return
			}
		}
	}()
	return r
}

func (r *relay) addr() netip.AddrPort { return r.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// TestStopWhileForwarding: Run does not wait for upstream.
func TestStopWhileForwarding(t *testing.T) {
	u := startUpstream(t)
	at, stop := startStoppable(t, dns.Config{Upstream: []netip.AddrPort{u.addr}, UpstreamTimeout: time.Hour})
	conn, err := mdns.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.WriteMsg(new(mdns.Msg).SetQuestion("slow.example.", mdns.TypeA)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the question to reach upstream", func() bool { return u.waiting.Load() == 1 })
	stop() // which is not for ever patient
}
