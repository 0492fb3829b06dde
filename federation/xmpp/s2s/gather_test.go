package s2s

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linked returns two ends of a TCP connection; ours is as one from a local server.
func linked(t *testing.T) (ours *arrivals, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	if ours, err = newArrivals(accepted.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	return ours, conn.(*net.TCPConn)
}

// arrived waits until so many bytes can be read: the kernel hands on what is written to
// loopback when it has the time.
func (a *arrivals) arrived(t *testing.T, bytes int) {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		var n int
		var err error
		if e := a.raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		if n >= bytes {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("%d bytes have arrived, want %d", n, bytes)
		}
	}
}

// TestGathering writes each stanza as a record of its own, as ejabberd does: those
// that have arrived are read at once, and nobody waits for others.
func TestGathering(t *testing.T) {
	below, conn := linked(t)
	cert, err := openCA(t).Mint("b.grid.test")
	if err != nil {
		t.Fatal(err)
	}
	ours, far := tls.Server(below, &tls.Config{Certificates: []tls.Certificate{*cert}}), tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	shaken := make(chan error, 1)
	go func() { shaken <- ours.Handshake() }()
	if err := errors.Join(far.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	g := &gathering{Reader: ours, below: below}
	buf := make([]byte, 1<<10)
	const stanzas = 50
	for range stanzas {
		if _, err := io.WriteString(far, "<message/>"); err != nil {
			t.Fatal(err)
		}
	}
	const record = 5 + len("<message/>") + 1 + 16 // RFC 8446 §5.2: header, type and tag
	below.arrived(t, stanzas*record)
	if n, err := g.Read(buf); err != nil || string(buf[:n]) != strings.Repeat("<message/>", stanzas) {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	for _, part := range []string{"<message", "/>"} { // each alone, though more may follow
		if _, err := io.WriteString(far, part); err != nil {
			t.Fatal(err)
		}
		if n, err := g.Read(buf); err != nil || string(buf[:n]) != part {
			t.Fatalf("read %q, %v", buf[:n], err)
		}
	}
	if _, err := io.WriteString(far, "<iq/>"); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if n, err := g.Read(buf[:5]); err != nil || string(buf[:n]) != "<iq/>" { // no room to look for more
		t.Fatalf("before the end: %q, %v", buf[:n], err)
	}
	for range 2 {
		if n, err := g.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d bytes, %v", n, err)
		}
	}
}

// TestArrivals reads what there is without waiting, and then waits.
func TestArrivals(t *testing.T) {
	ours, far := linked(t)
	buf := make([]byte, 10)
	ours.only = true
	if n, err := ours.Read(buf); n != 0 || err != errNotYet {
		t.Fatalf("with nothing there: %d bytes, %v", n, err)
	}
	if _, err := io.WriteString(far, "x"); err != nil {
		t.Fatal(err)
	}
	ours.arrived(t, 1)
	if n, err := ours.Read(buf); n != 1 || err != nil {
		t.Fatalf("with one byte there: %d bytes, %v", n, err)
	}
	if err := ours.SetReadDeadline(past); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := ours.Read(buf); !errors.As(err, &timeout) || err == errNotYet {
		t.Errorf("after the deadline: %v", err)
	}
	if err := ours.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	far.Close()
	ours.only = false
	if _, err := ours.Read(buf); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	ours.only = true
	if _, err := ours.Read(buf); err != io.EOF {
		t.Errorf("after the end, without waiting: %v", err)
	}
}

// TestPace is which streams are held up.
func TestPace(t *testing.T) {
	stanza, other := []byte("<message/>"), []byte(smRequest)
	burst := func(n int) [][]byte { return slices.Repeat([][]byte{stanza}, n) }
	for name, tt := range map[string]struct {
		batches [][][]byte
		apart   time.Duration
		busy    bool // after the last
	}{
		"one":                 {[][][]byte{burst(1)}, 0, false},
		"a few at once":       {[][][]byte{burst(5)}, 0, false},
		"many at once":        {[][][]byte{burst(6)}, 0, true},
		"many, one by one":    {slices.Repeat([][][]byte{burst(1)}, 6), gatherPause / 6, true},
		"one after the other": {slices.Repeat([][][]byte{burst(1)}, 100), gatherPause / 4, false},
		"what is no stanza":   {[][][]byte{{stanza, other, other, other, other, other, other}}, 0, false},
		"many, then one":      {[][][]byte{burst(9), burst(1)}, gatherPause + 1, true},
		"many, then two":      {[][][]byte{burst(9), burst(1), burst(1)}, gatherPause + 1, false},
		"many, and one later": {[][][]byte{burst(9), burst(1)}, 3*gatherPause + 1, false},
	} {
		var p pace
		now := time.Now()
		var busy bool
		for _, b := range tt.batches {
			busy = p.busy(b, now)
			now = now.Add(tt.apart)
		}
		if busy != tt.busy {
			t.Errorf("%s: busy %v, want %v", name, busy, tt.busy)
		}
	}
}
