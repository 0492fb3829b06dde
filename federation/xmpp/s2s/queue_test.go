package s2s

import (
	"errors"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// brokenAfter is a connection that takes some writes and then none.
type brokenAfter struct {
	net.Conn
	writes int
}

var errBroken = errors.New("broken on purpose")

func (c *brokenAfter) SetWriteDeadline(time.Time) error { return nil }

func (c *brokenAfter) Write(b []byte) (int, error) {
	if c.writes--; c.writes < 0 {
		return 0, errBroken
	}
	return len(b), nil
}

// TestWriteThatFails has three stanzas too big for one write: the first is out,
// the second may be, the third and what came meanwhile wait for the next stream.
func TestWriteThatFails(t *testing.T) {
	h := newRecorder()
	g, err := New(Config{CA: openCA(t), Handler: h, Servers: []Server{{Addr: freeAddr()}}})
	if err != nil {
		t.Fatal(err)
	}
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	var batch []item
	for _, id := range []string{"1", "2", "3"} {
		batch = append(batch, item{stanza: []byte(id + strings.Repeat("x", writeSize/2))})
	}
	later := item{stanza: []byte("later")}
	o.queue = []item{later}
	o.grow(size(sentBy(batch)) + len(later.stanza))

	n, err := o.write(&stream{conn: &brokenAfter{writes: 1}, writeWait: time.Second}, &flight{}, batch)
	if n != 1 || !errors.Is(err, errBroken) {
		t.Errorf("wrote %d: %v", n, err)
	}
	if len(h.failed) != 1 || !strings.HasPrefix(h.failed[0], "b.grid>a.grid 2x") {
		t.Errorf("given back: %.40q", h.failed)
	}
	waiting := sentBy(o.queue)
	if !slices.EqualFunc(waiting, [][]byte{batch[2].stanza, later.stanza}, slices.Equal) || o.bytes != size(waiting) {
		t.Errorf("%d stanzas of %d bytes wait, accounted for as %d", len(waiting), size(waiting), o.bytes)
	}
}

// TestServerUpEndsThePause has a server that was down and then comes to us.
func TestServerUpEndsThePause(t *testing.T) {
	ca, h := openCA(t), newRecorder()
	g := start(t, Config{CA: ca, Handler: h, Servers: []Server{{Addr: freeAddr()}}})
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.retry, o.err = time.Now().Add(time.Hour), errBroken
	o.mu.Unlock()
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<iq/>")); !errors.Is(err, ErrDown) || !errors.Is(err, errBroken) {
		t.Fatalf("in the pause: %v, want ErrDown and why", err)
	}
	dial(t, g, ca).play(authenticated + "> <message/>")
	h.received(t, "<message/>")
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<iq/>")); err != nil {
		t.Errorf("when the server is up: %v", err)
	}
}

// TestForgotten keeps the table of pairs small and never revives a pair that was
// taken out of it: a sender that still holds it has to look again.
func TestForgotten(t *testing.T) {
	g, err := New(Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: freeAddr()}}})
	if err != nil {
		t.Fatal(err)
	}
	old, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.outbound(pair{"c.grid", "a.grid"}); err != nil {
		t.Fatal(err)
	}
	if len(g.out) != 1 {
		t.Errorf("%d pairs kept, one is in use", len(g.out))
	}
	if _, err := old.put([][]byte{[]byte("<iq/>")}, 5, nil); !errors.Is(err, errForgotten) {
		t.Errorf("put into a forgotten pair: %v", err)
	}
}

// piecemeal is a connection that takes one byte at a time.
type piecemeal struct {
	net.Conn
	got []byte
}

func (c *piecemeal) SetWriteDeadline(time.Time) error { return nil }

func (c *piecemeal) Write(b []byte) (int, error) {
	for _, x := range b {
		c.got = append(c.got, x)
		runtime.Gosched()
	}
	return len(b), nil
}

// TestWritesAreWhole has stanzas and acknowledgements come from many goroutines.
func TestWritesAreWhole(t *testing.T) {
	c := &piecemeal{}
	st := &stream{conn: c, writeWait: time.Second}
	var writers sync.WaitGroup
	for range 20 {
		writers.Go(func() {
			if err := st.write([]byte("<stanza/>")); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	if got := string(c.got); got != strings.Repeat("<stanza/>", 20) {
		t.Errorf("written: %s", got)
	}
}
