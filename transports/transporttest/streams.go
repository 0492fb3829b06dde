package transporttest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/yggate/yggate/transports"
)

func testEcho(t *testing.T, p *pair) {
	near, far := p.connect(t)
	for _, size := range []int{1, 2, 1000, 40000, 1 << 17} {
		msg := noise(uint64(size), size)
		go func() {
			if _, err := near.Write(msg); err != nil {
				t.Errorf("write %d bytes: %v", size, err)
			}
		}()
		got := readFull(t, far, size)
		go func() {
			if _, err := far.Write(got); err != nil {
				t.Errorf("write back %d bytes: %v", size, err)
			}
		}()
		if back := readFull(t, near, size); !bytes.Equal(back, msg) {
			t.Fatalf("echo of %d bytes differs", size)
		}
	}
}

func testBigTransfer(t *testing.T, p *pair) {
	const size = 24 << 20
	near, far := p.connect(t)
	var wg sync.WaitGroup
	for i, ends := range [][2]transports.Conn{{near, far}, {far, near}} {
		want := make(chan uint64, 1)
		wg.Add(2)
		go func() {
			defer wg.Done()
			sum := crc64.New(crc64.MakeTable(crc64.ECMA))
			r := io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size)
			if n, err := io.Copy(ends[0], io.TeeReader(r, sum)); err != nil {
				t.Errorf("sent %d of %d: %v", n, size, err)
			}
			want <- sum.Sum64()
		}()
		go func() {
			defer wg.Done()
			sum := crc64.New(crc64.MakeTable(crc64.ECMA))
			if n, err := io.CopyN(sum, within(t, ends[1]), size); err != nil {
				t.Errorf("received %d of %d: %v", n, size, err)
				return
			}
			if w := <-want; w != sum.Sum64() {
				t.Error("what arrived is not what was sent")
			}
		}()
	}
	wg.Wait()
}

func testHalfClose(t *testing.T, p *pair) {
	near, far := p.connect(t)
	half, ok := near.(interface{ CloseWrite() error })
	if !ok {
		t.Fatalf("%T has no CloseWrite", near)
	}
	if _, err := near.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(within(t, far))
	if err != nil || string(got) != "last words" {
		t.Fatalf("far end read %q, %v", got, err)
	}
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := far.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(within(t, near)); err != nil || string(got) != "answer" {
		t.Fatalf("near end read %q, %v after its own CloseWrite", got, err)
	}
}

func testReadDeadline(t *testing.T, p *pair) {
	near, far := p.connect(t)
	for _, d := range []time.Time{time.Unix(1, 0), time.Now().Add(50 * time.Millisecond)} {
		if err := near.SetReadDeadline(d); err != nil {
			t.Fatal(err)
		}
		wantTimeout(t, func() error {
			_, err := near.Read(make([]byte, 1))
			return err
		})
	}
	// A deadline moved to the past ends a Read that is under way.
	if err := near.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wantTimeout(t, func() error {
			_, err := near.Read(make([]byte, 1))
			return err
		})
	}()
	if err := near.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	wait(t, "Read ignores a deadline in the past", done)
	// And the stream is whole after all that.
	if err := near.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	readFull(t, near, 1)
}

func testWriteDeadline(t *testing.T, p *pair) {
	near, far := p.connect(t)
	if err := near.SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent := 0
	block := make([]byte, 1<<20)
	wantTimeout(t, func() error {
		// Nobody reads: buffers fill up, and they are bounded.
		for sent < 1<<30 {
			n, err := near.Write(block)
			sent += n
			if err != nil {
				return err
			}
		}
		return fmt.Errorf("%d bytes went into buffers", sent)
	})
	if err := near.SetWriteDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if n := len(readFull(t, far, sent)); n != sent {
		t.Errorf("%d bytes of %d arrived", n, sent)
	}
}

func testConcurrentDials(t *testing.T, p *pair) {
	const streams = 32
	l := listen(t, p.b, p.port)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// A dial may leave a stream behind that it gave up for another;
				// what became of those that count is seen at the near end.
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	var wg sync.WaitGroup
	for i := range streams {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			c, err := p.a.Dial(ctx, l.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			msg := noise(uint64(i), 10000)
			if _, err := c.Write(msg); err != nil {
				t.Error(err)
				return
			}
			if got := readFull(t, c, len(msg)); !bytes.Equal(got, msg) {
				t.Errorf("stream %d got another one's bytes", i)
			}
		})
	}
	wg.Wait()
}

func testRemote(t *testing.T, p *pair) {
	near, far := p.connect(t)
	if got, want := near.Remote().ID(), p.b.Status().Self.ID(); got != want {
		t.Errorf("near end: Remote is %s, want %s", got, want)
	}
	if got := near.Remote().Port; got != p.port {
		t.Errorf("near end: Remote has port %d, want %d", got, p.port)
	}
	if got, want := far.Remote().ID(), p.a.Status().Self.ID(); got != want {
		t.Errorf("far end: Remote is %s, want %s", got, want)
	}
}

func testCloseUnblocksRead(t *testing.T, p *pair) {
	near, far := p.connect(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Read while closing: %v, want net.ErrClosed", err)
		}
	}()
	if err := near.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, "Close leaves Read hanging", done)
	if _, err := near.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v, want net.ErrClosed", err)
	}
	if _, err := within(t, far).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("far end reads %v, want io.EOF", err)
	}
}

// noise is size bytes that depend on seed.
func noise(seed uint64, size int) []byte {
	b := make([]byte, size)
	if _, err := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b); err != nil {
		panic(err) // never: the generator cannot fail
	}
	return b
}

// within gives each read on c the suite's patience.
func within(t *testing.T, c net.Conn) io.Reader { return patient{t, c} }

type patient struct {
	t *testing.T
	c net.Conn
}

func (p patient) Read(b []byte) (int, error) {
	if err := p.c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Error(err)
	}
	return p.c.Read(b)
}

func readFull(t *testing.T, c net.Conn, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	if n, err := io.ReadFull(within(t, c), b); err != nil {
		t.Errorf("read %d of %d bytes: %v", n, size, err)
	}
	return b
}

func wantTimeout(t *testing.T, do func() error) {
	t.Helper()
	var ne net.Error
	if err := do(); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("got %v, want a time-out", err)
	} else if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v (%T) is not os.ErrDeadlineExceeded", err, err)
	}
}
