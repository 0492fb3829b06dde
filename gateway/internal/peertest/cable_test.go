package peertest

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo answers every byte on an address of its own until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, c *Cable) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", c.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends a byte and waits for it.
func ask(conn net.Conn, within time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte{'?'}); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func TestCable(t *testing.T) {
	const patience = 20 * time.Second
	c, err := NewCable("127.0.0.1:0", echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	conn := dial(t, c)
	if err := ask(conn, patience); err != nil {
		t.Fatal("whole:", err)
	}
	c.Stall()
	c.Stall()
	if err := ask(conn, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("stalled: got", err)
	}
	c.Mend()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal("what was under way in the stall is lost:", err)
	}
	if err := ask(conn, patience); err != nil {
		t.Fatal("mended:", err)
	}
	c.Cut()
	if err := ask(conn, patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("cut: got", err)
	}
	if err := ask(dial(t, c), patience); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal("a connection while cut: got", err)
	}
	c.Mend()
	if err := ask(dial(t, c), patience); err != nil {
		t.Fatal("a connection after the cut:", err)
	}
}
