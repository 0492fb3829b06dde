package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/yggate/yggate/federation"
)

// growthLimit is what any abuse may add to the memory of the process, which
// here holds the abuser too.
const growthLimit = 32 << 20

// watchMemory samples the memory in use until stop, which returns its growth at
// the highest.
func watchMemory() (stop func() int64) {
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	runtime.GC()
	before := inUse()
	var peak atomic.Int64
	peak.Store(before)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			peak.Store(max(peak.Load(), inUse()))
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(done); <-ended; return peak.Load() - before }
}

// goodPeer returns a peer of g with an open lane.
func goodPeer(t *testing.T, g *testGateway) (*testGateway, io.ReadWriteCloser) {
	t.Helper()
	good := newGateway(t, quick)
	link(g, good)
	good.await(true)
	return good, good.lane(g)
}

// One body that nobody reads must not stop the others, whatever the number of
// streams that the peer's limits allow.
func TestStalledBodiesBlockNoOther(t *testing.T) {
	for _, streams := range []int{8, 64, 250} {
		t.Run(strconv.Itoa(streams), func(t *testing.T) {
			g, from := newGateway(t, quick), newGateway(t, quick)
			release := make(chan struct{})
			var stalled atomic.Int32
			g.Handle("POST /v1/stall", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				stalled.Add(1)
				<-release
			}))
			g.Handle("POST /v1/count", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				fmt.Fprint(w, n, err)
			}))
			defer close(release)
			g.knows(from, federation.StateActive)
			g.change(from.id.ID(), func(p *federation.Peer) { p.Policy.Limits.Streams = streams })
			grown := watchMemory()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			conn, _, err := from.DialPinned(ctx, tcpAddr(g.ip), g.id.Key())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			waitFor(t, "the limit of streams", func() bool { return conn.Available() == streams })
			for range streams - 1 {
				req, err := http.NewRequestWithContext(ctx, "POST", requestURL("/v1/stall"), endless{})
				if err != nil {
					t.Fatal(err)
				}
				go conn.RoundTrip(req)
			}
			waitFor(t, "the stalled streams", func() bool { return int(stalled.Load()) == streams-1 })
			const size = 4 << 20
			req, err := http.NewRequestWithContext(ctx, "POST", requestURL("/v1/count"), bytes.NewReader(make([]byte, size)))
			if err != nil {
				t.Fatal(err)
			}
			res, err := conn.RoundTrip(req)
			if err != nil {
				t.Fatalf("a body beside %d stalled ones: %v", streams-1, err)
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != fmt.Sprint(size, nil) {
				t.Fatalf("%q, %v", body, err)
			}
			n := grown()
			t.Logf("memory grew by %d MiB, the sender's included", n>>20)
			// The sender holds a frame per stream.
			if n > growthLimit+int64(streams)*peerFrame {
				t.Errorf("memory grew by %d MiB", n>>20)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// patient never ends a handshake by itself.
func patient(c *Config, g *testGateway) { quick(c, g); c.Timing.Handshake = time.Hour }

func TestUnfinishedHandshakesHarmNobody(t *testing.T) {
	g := newGateway(t, patient)
	_, lane := goodPeer(t, g)
	grown := watchMemory()
	for i := range 100 {
		// Five connections per node, of which four are let wait.
		ip := fmt.Sprintf("127.62.%d.%d", os.Getpid()%250+1, i/5+1)
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		c, err := d.Dial("tcp", net.JoinHostPort(g.ip, fmt.Sprint(testPort)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			// Half of them begin a ClientHello.
			if _, err := c.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252}); err != nil {
				t.Log(err)
			}
		}
	}
	waitFor(t, "the gate to fill", func() bool {
		g.gate.mu.Lock()
		defer g.gate.mu.Unlock()
		return g.gate.unknown == maxHandshakes
	})
	if err := talk(lane, "unharmed"); err != nil {
		t.Fatal(err)
	}
	// A peer that comes new gets in as well: its node is known.
	_, second := goodPeer(t, g)
	if err := talk(second, "let in"); err != nil {
		t.Fatal(err)
	}
	n := grown()
	t.Logf("memory grew by %d KiB", n>>10)
	if n > growthLimit {
		t.Errorf("memory grew by %d MiB", n>>20)
	}
}

func TestOneNodeCannotKeepOthersOut(t *testing.T) {
	g, stranger := newGateway(t, patient), newGateway(t, quick)
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(newIP())}}
	for range 2 * maxHandshakes {
		c, err := d.Dial("tcp", net.JoinHostPort(g.ip, fmt.Sprint(testPort)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if code, text := post(t, stranger, g, "/v1/pair", "body"); code != 200 {
		t.Fatalf("%d %q", code, text)
	}
}

// Grid keys cost nothing, so that they are counted by the node that they come from.
func TestOneNodeOfManyGridsCannotKeepOthersOut(t *testing.T) {
	g, stranger := newGateway(t, quick), newGateway(t, quick)
	ip := newIP()
	for range maxUnknown {
		c, err := g.dialRaw(ip, leafOf(t, newIdentity(t), ip, time.Now()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waitFor(t, "what becomes of it", func() bool {
			g.gate.mu.Lock()
			defer g.gate.mu.Unlock()
			return g.gate.unknown == 0
		})
	}
	g.Links.mu.Lock()
	n := len(g.inbound)
	g.Links.mu.Unlock()
	if n > maxUnknownSource {
		t.Errorf("one node has %d connections", n)
	}
	if code, text := post(t, stranger, g, "/v1/pair", "body"); code != 200 {
		t.Fatalf("%d %q", code, text)
	}
}

func TestUnfinishedHandshakesEnd(t *testing.T) {
	short := func(c *Config, _ *testGateway) { c.Timing.Handshake = 50 * time.Millisecond }
	g := newGateway(t, short)
	c, err := net.Dial("tcp", net.JoinHostPort(g.ip, fmt.Sprint(testPort)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("the connection was left open")
	}
	waitFor(t, "the gate to empty", func() bool {
		g.gate.mu.Lock()
		defer g.gate.mu.Unlock()
		return g.gate.unknown == 0 && len(g.gate.perSource) == 0
	})
}

func TestIdleUnknownConnections(t *testing.T) {
	g := newGateway(t, quick, func(c *Config, _ *testGateway) { c.Timing.UnknownLife = time.Second })
	_, lane := goodPeer(t, g)
	stranger := newIdentity(t)
	grown := watchMemory()
	var wg sync.WaitGroup
	room := make(chan struct{}, 50)
	for i := range 1000 {
		wg.Add(1)
		room <- struct{}{}
		go func() {
			defer wg.Done()
			defer func() { <-room }()
			ip := fmt.Sprintf("127.63.%d.%d", os.Getpid()%250+1, i%250+1)
			leaf, err := stranger.IssueLeaf(tcpAddr(ip), time.Now())
			if err != nil {
				t.Error(err)
				return
			}
			c, err := g.dialRaw(ip, leaf)
			if err == nil {
				// Idle until the far side ends it.
				io.Copy(io.Discard, c)
			}
			if c != nil {
				c.Close()
			}
		}()
	}
	if err := talk(lane, "unharmed"); err != nil {
		t.Fatal(err)
	}
	waitIn(t, &wg, "the connections to be closed")
	n := grown()
	t.Logf("memory grew by %d KiB", n>>10)
	if n > growthLimit {
		t.Errorf("memory grew by %d MiB", n>>20)
	}
	waitFor(t, "the last to be forgotten", func() bool {
		g.Links.mu.Lock()
		defer g.Links.mu.Unlock()
		return len(g.inbound) == 1
	})
}

// Being busy does not lengthen the life of a stranger's connection.
func TestBusyUnknownConnectionEnds(t *testing.T) {
	g := newGateway(t, quick, func(c *Config, _ *testGateway) { c.Timing.UnknownLife = 200 * time.Millisecond })
	stranger := newGateway(t, quick)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, _, err := stranger.DialPinned(ctx, tcpAddr(g.ip), g.id.Key())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for conn.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, "POST", requestURL("/v1/pair"), strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		if res, err := conn.RoundTrip(req); err == nil {
			res.Body.Close()
		}
		if ctx.Err() != nil {
			t.Fatal("the connection lives on")
		}
	}
}

func waitIn(t *testing.T, wg *sync.WaitGroup, what string) {
	t.Helper()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
}

// An attacker that speaks HTTP/2 frame by frame, as an unknown grid and as an
// active peer.
func TestAbuseOfHTTP2(t *testing.T) {
	attacks := map[string]func(*http2.Framer) error{
		"header flood": func(f *http2.Framer) error {
			for id := uint32(1); ; id += 2 {
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: request("/v1/pair"), EndHeaders: false}); err != nil {
					return err
				}
				for {
					if err := f.WriteContinuation(id, false, bytes.Repeat([]byte{0x40, 1, 'a', 100}, 1000)); err != nil {
						return err
					}
				}
			}
		},
		"huge header": func(f *http2.Framer) error {
			for id := uint32(1); ; id += 2 {
				block := append(request("/v1/pair"), header("x-big", strings.Repeat("x", 10<<10))...)
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
					return err
				}
			}
		},
		"rapid reset": func(f *http2.Framer) error {
			for id := uint32(1); ; id += 2 {
				if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: request("/v1/pair"), EndHeaders: true}); err != nil {
					return err
				}
				if err := f.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
					return err
				}
			}
		},
		"settings flood": func(f *http2.Framer) error {
			for {
				if err := f.WriteSettings(); err != nil {
					return err
				}
			}
		},
		"ping flood": func(f *http2.Framer) error {
			for {
				if err := f.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
		},
		"large frame": func(f *http2.Framer) error {
			f.AllowIllegalWrites = true
			for {
				if err := f.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, 1<<20)); err != nil {
					return err
				}
			}
		},
	}
	for name, attack := range attacks {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/peer=%v", name, known), func(t *testing.T) {
				g := newGateway(t, quick, func(c *Config, _ *testGateway) { c.Timing.UnknownLife = 3 * time.Second })
				_, lane := goodPeer(t, g)
				evil := newGateway(t, quick)
				evil.stop()
				if known {
					g.knows(evil, federation.StateActive)
				}
				conn, err := g.dialRaw(evil.ip, leafOf(t, evil.id, evil.ip, time.Now()))
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(2 * time.Second))
				grown := watchMemory()
				if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
					t.Fatal(err)
				}
				f := http2.NewFramer(conn, conn)
				if err := f.WriteSettings(); err != nil {
					t.Fatal(err)
				}
				if name != "ping flood" && name != "settings flood" {
					go io.Copy(io.Discard, conn) // those two do not read what they cause
				}
				err = attack(f)
				t.Logf("ended by %v", err)
				if err := talk(lane, "unharmed"); err != nil {
					t.Error(err)
				}
				n := grown()
				t.Logf("memory grew by %d KiB", n>>10)
				if n > growthLimit {
					t.Errorf("memory grew by %d MiB", n>>20)
				}
			})
		}
	}
}

func header(name, value string) []byte {
	var b bytes.Buffer
	if err := hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: name, Value: value}); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func request(path string) []byte {
	var b []byte
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", authority}, {":path", path}} {
		// Each with an encoder of its own, so that no block depends on another.
		b = append(b, header(h[0], h[1])...)
	}
	return b
}
