package s2s

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func runStoppable(t *testing.T, c Config) (stop func(), ended <-chan error, g *Streams) {
	t.Helper()
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:0")
	g, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	end := make(chan error, 1)
	go func() { end <- g.Run(ctx) }()
	for g.Addr() == nil {
		time.Sleep(time.Millisecond)
	}
	return stop, end, g
}

type acceptor struct {
	conn *net.TCPConn
	end  func()
}

func (a acceptor) AcceptTCP() (*net.TCPConn, error) {
	a.end()
	return a.conn, nil
}

func TestStopWhileAccepting(t *testing.T) {
	g, err := New(Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: freeAddr()}}})
	if err != nil {
		t.Fatal(err)
	}
	ours, far := linked(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := g.accept(ctx, acceptor{ours.TCPConn, cancel}); err != nil {
		t.Error(err)
	}
	if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read %d, %v; want EOF", n, err)
	}
}

func TestStopDoesNotWaitForReaders(t *testing.T) {
	f := newFake(t)
	stop, ended, g := runStoppable(t, Config{
		CA: f.ca, Handler: newRecorder(), Servers: []Server{{Addr: f.l.Addr().String()}},
		Limits: Limits{Write: time.Hour, Queue: 64 << 20},
	})
	stanza := []byte("<message>" + strings.Repeat("x", 16<<20) + "</message>") // more than the kernels take
	sent := make(chan error, 1)
	go func() { sent <- g.Send(t.Context(), "b.grid", "a.grid", stanza) }()
	f.accept().play(accepted + "< <message>") // it is writing
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("it still waits for the server")
	}
}

func TestHurry(t *testing.T) {
	for name, before := range map[string]bool{"under way": false, "later": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, far := net.Pipe()
				defer far.Close()
				st := newStream(ours, time.Hour)
				began := time.Now()
				if before {
					st.hurry(ours)
				}
				wrote := make(chan error, 1)
				go func() { wrote <- st.write([]byte("x")) }()
				synctest.Wait()
				if !before {
					st.hurry(ours)
				}
				if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != goodbye {
					t.Errorf("%v after %v", err, time.Since(began))
				}
			})
		})
	}
}

func TestStopTakesWhatWasSent(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	stop, ended, g := runStoppable(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}, Limits: Limits{goodbye: patience}})
	d := dial(t, g, ca)
	d.play(authenticated + "> <message id='early'/>")
	h.received(t, "early")
	stop()
	d.play("< <system-shutdown \n< </stream:error></stream:stream>\n> <message id='late'/><message id='last'/>")
	h.received(t, "last")
	h.received(t, "late")
	d.play("> </stream:stream>\nend")
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestStopTellsTheServer(t *testing.T) {
	ca := openCA(t)
	stop, ended, g := runStoppable(t, Config{CA: ca, Handler: newRecorder(), Servers: []Server{{Addr: freeAddr()}}})
	d := dial(t, g, ca)
	d.play(authenticated)
	stop()
	d.play("< <system-shutdown \n< " + refused)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<message/>")); !errors.Is(err, ErrStopped) {
		t.Errorf("send after the end: %v", err)
	}
}
