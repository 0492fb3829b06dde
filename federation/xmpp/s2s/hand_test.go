package s2s

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// result is what a Hand returned.
type result struct {
	n   int
	err error
}

// handing begins to hand stanzas over.
func handing(ctx context.Context, s *Streams, ids ...string) <-chan result {
	var stanzas [][]byte
	for _, id := range ids {
		stanzas = append(stanzas, []byte("<message id='"+id+"'/>"))
	}
	done := make(chan result, 1)
	go func() {
		n, err := s.Hand(ctx, "b.grid", "a.grid", stanzas...)
		done <- result{n, err}
	}()
	return done
}

// returned waits for a Hand and checks what it says; why is a part of its error.
func returned(t *testing.T, done <-chan result, n int, why string) error {
	t.Helper()
	select {
	case r := <-done:
		if r.n != n || (r.err == nil) != (why == "") || r.err != nil && !strings.Contains(r.err.Error(), why) {
			t.Fatalf("hand returned %d, %v; want %d, %q", r.n, r.err, n, why)
		}
		return r.err
	case <-time.After(patience):
		t.Fatal("hand does not return")
		return nil
	}
}

func stillWaits(t *testing.T, done <-chan result) {
	t.Helper()
	select {
	case r := <-done:
		t.Fatalf("hand returned %d, %v too soon", r.n, r.err)
	default:
	}
}

const askedFor = "<r xmlns='urn:xmpp:sm:3'/>"

// TestHandUnmanaged has a server that acknowledges nothing: written is had.
func TestHandUnmanaged(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	done := handing(t.Context(), g, "1", "2")
	d := f.accept()
	d.play(accepted)
	returned(t, done, 2, "")
	d.play("< <message id='1'/><message id='2'/>")
	done = handing(t.Context(), g, "3")
	returned(t, done, 1, "")
	send(t, g, "4")
	d.play("< <message id='3'/><message id='4'/>") // and no request to acknowledge
	if len(h.failed) > 0 {
		t.Error(h.failed)
	}
}

// TestHandManaged returns when the server has acknowledged the last stanza, and
// lets others pass in the meantime.
func TestHandManaged(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	send(t, g, "0")
	d := f.accept()
	d.play(managed + "< <message id='0'/>")
	first := handing(t.Context(), g, "1", "2")
	d.play("< <message id='1'/><message id='2'/>" + askedFor)
	send(t, g, "3")
	d.play("< <message id='3'/>")
	second := handing(t.Context(), g, "4")
	d.play("< <message id='4'/>" + askedFor + "\n> <a xmlns='urn:xmpp:sm:3' h='2'/>\n" + request + acked(0))
	stillWaits(t, first)
	d.play("> <message>not for us</message><a xmlns='urn:xmpp:sm:3' h='3'/>")
	returned(t, first, 2, "")
	d.play(request + acked(0))
	stillWaits(t, second)
	d.play("> <a h='5' xmlns='urn:xmpp:sm:3'></a>")
	returned(t, second, 1, "")
	if len(h.failed) > 0 {
		t.Error(h.failed)
	}
}

// TestHandDeclined has a server that offers stream management and then has none.
func TestHandDeclined(t *testing.T) {
	f := newFake(t)
	g, _ := f.streams(Limits{})
	done := handing(t.Context(), g, "1")
	f.accept().play(strings.Replace(managed, "> <enabled", "> <failed", 1) + "< <message id='1'/>\n")
	returned(t, done, 1, "")
}

// TestHandBroken breaks the stream in every way while the server has said that it
// has one of three stanzas. The others are not tried again.
func TestHandBroken(t *testing.T) {
	const ack = "> <a xmlns='urn:xmpp:sm:3' h='%d'/>"
	for name, c := range map[string]struct{ script, why string }{
		"cut":                {"", ""},
		"closed":             {"> </stream:stream>\nend", "closed"},
		"stream error":       {"> <stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>", "system-shutdown"},
		"too many":           {fmt.Sprintf(ack, 4) + "\n< <handled-count-too-high xmlns='urn:xmpp:sm:3' h='4' send-count='3'/></stream:error></stream:stream>\nend", "acknowledged 4 stanzas, 3 were sent"},
		"taken back":         {fmt.Sprintf(ack, 0) + "\n< <handled-count-too-high \n< </stream:stream>\nend", "acknowledged 0"},
		"no count":           {"> <a xmlns='urn:xmpp:sm:3' h='x'/>\n< <invalid-xml \n< </stream:stream>\nend", "invalid-xml"},
		"comment":            {"> <!-- -->\n< <restricted-xml \n< </stream:stream>\nend", "restricted-xml"},
		"long after the end": {"> " + strings.Repeat("<message><body/></message>", 10_000) + "</stream:stream>\nend", "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g, h := f.streams(Limits{})
			done := handing(t.Context(), g, "1", "2", "3")
			d := f.accept()
			d.play(managed + "< <message id='3'/>" + askedFor + "\n" + fmt.Sprintf(ack, 1))
			d.play(c.script)
			d.conn.Close()
			if err := returned(t, done, 1, "the stream to the local server broke"); !strings.Contains(err.Error(), c.why) {
				t.Errorf("got %v, want it to say %q", err, c.why)
			}
			again := handing(t.Context(), g, "2", "3")
			d = f.accept()
			d.play(managed + "< <message id='2'/><message id='3'/>" + askedFor + "\n" + fmt.Sprintf(ack, 2))
			returned(t, again, 2, "")
			if strings.Contains(d.seen, "id='1'") || len(h.failed) > 0 {
				t.Errorf("repeated %q, failed %q", d.seen, h.failed)
			}
		})
	}
}

// TestHandUntouched has a stream end that has not begun with what waits: the next
// one carries it, as it does for Send.
func TestHandUntouched(t *testing.T) {
	f := newFake(t)
	g, _ := f.streams(Limits{})
	send(t, g, "0")
	d := f.accept()
	d.play(managed + "< <message id='0'/>\n> </stream:stream>\nend")
	done := handing(t.Context(), g, "1")
	f.accept().play(managed + "< <message id='1'/>" + askedFor + "\n> <a xmlns='urn:xmpp:sm:3' h='1'/>")
	returned(t, done, 1, "")
}

// TestHandBehindFailure waits behind a stanza whose write fails.
func TestHandBehindFailure(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{Queue: 64 << 20})
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.err = errBroken // the attempt before
	o.mu.Unlock()
	send(t, g, "0")
	d := f.accept()
	d.play(managed + "< <message id='0'/>")
	big := []byte("<message>" + strings.Repeat("x", 32<<20) + "</message>") // more than any socket buffer
	if err := g.Send(t.Context(), "b.grid", "a.grid", big); err != nil {
		t.Fatal(err)
	}
	waits := func(n int) {
		for queued := -1; queued != n; time.Sleep(time.Millisecond) {
			o.mu.Lock()
			queued = len(o.queue)
			o.mu.Unlock()
		}
	}
	waits(0) // it is being written
	done := handing(t.Context(), g, "1")
	waits(1)
	d.conn.Close()
	f.accept().play(managed + "< <message id='1'/>" + askedFor + "\n> <a xmlns='urn:xmpp:sm:3' h='1'/>")
	returned(t, done, 1, "")
	h.wait(t, func(_, failed []string) bool { return len(failed) == 1 })
	h.isBack(t, "a.grid") // once: the second stream follows one that was open
}

// TestHandOverdue has a server that takes a stanza and says nothing.
func TestHandOverdue(t *testing.T) {
	f := newFake(t)
	g, _ := f.streams(Limits{Ack: 50 * time.Millisecond, Idle: 10 * time.Millisecond})
	done := handing(t.Context(), g, "1")
	d := f.accept()
	d.play(managed + "< <message id='1'/>" + askedFor + "\n")
	returned(t, done, 0, "acknowledged nothing for 50ms")
	d.ended()
}

// TestHandDown has no server at all, and then one that comes to us.
func TestHandDown(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{Backoff: time.Hour})
	addr := f.l.Addr().String()
	f.l.Close()
	if n, err := g.Hand(t.Context(), "b.grid", "a.grid", []byte("<message/>")); n != 0 || !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %d, %v; want ErrDown and why", n, err)
	}
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	o.retry = time.Now().Add(time.Hour)
	o.mu.Unlock()
	if n, err := g.Hand(t.Context(), "b.grid", "a.grid", []byte("<message/>")); n != 0 || !errors.Is(err, ErrDown) {
		t.Errorf("before the next attempt: %d, %v; want ErrDown", n, err)
	}
	h.wait(t, func(_, failed []string) bool { return slices.Equal(failed, []string{">a.grid has died"}) })
	h.isBack(t)

	f.listen(addr)
	dial(t, g, f.ca).play(authenticated + "> <message id='here'/>")
	h.received(t, "here")
	h.isBack(t, "a.grid")
	done := handing(t.Context(), g, "1")
	f.accept().play(accepted + "< <message id='1'/>")
	returned(t, done, 1, "")
	h.isBack(t, "a.grid", "a.grid") // once by each direction
	returned(t, handing(t.Context(), g, "2"), 1, "")
	h.isBack(t, "a.grid", "a.grid")
}

// TestServerCutOff has the machine of a server gone from the network, which the
// kernel says after keep-alive, and back without having been restarted: it does not
// come to us, and is found to be there.
func TestServerCutOff(t *testing.T) {
	for name, why := range map[string]error{
		"read":  &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)},
		"route": &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.EHOSTUNREACH)},
		"ack":   fmt.Errorf("acknowledge stanzas: %w", &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g, h := f.streams(Limits{Backoff: time.Millisecond})
			addr := f.l.Addr().String()
			f.l.Close()
			in := &inbound{s: g, pair: pair{"a.grid", "b.grid"}, server: g.serverOf("a.grid")}
			in.mourn(why)
			h.wait(t, func(_, failed []string) bool { return slices.Equal(failed, []string{">a.grid has died"}) })
			h.isBack(t)
			f.listen(addr)
			d := f.accept()
			d.play("< to='a.grid'\n> HEADER(a.grid,b.grid)")
			h.wait(t, func(_, _ []string) bool { return len(h.back) > 0 })
			h.isBack(t, "a.grid")
			g.inMu.Lock()
			defer g.inMu.Unlock()
			if len(g.lost) > 0 {
				t.Errorf("%v are still watched", g.lost)
			}
		})
	}
}

// isBack checks the domains that were announced so far.
func (r *recorder) isBack(t *testing.T, domains ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if fmt.Sprint(r.back) != fmt.Sprint(domains) {
		t.Errorf("back are %q, want %q", r.back, domains)
	}
}

// TestHandFailsLikeSend is what Hand refuses at once.
func TestHandFailsLikeSend(t *testing.T) {
	g := start(t, Config{CA: openCA(t), Handler: newRecorder(), Servers: []Server{{Addr: freeAddr(), Domains: []string{"a.grid"}}}})
	if n, err := g.Hand(t.Context(), "b.grid", "a.grid"); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	if n, err := g.Hand(t.Context(), "b.grid", "c.grid", []byte("<iq/>")); n != 0 || !errors.Is(err, ErrNoServer) {
		t.Errorf("to nobody: %d, %v; want ErrNoServer", n, err)
	}
}

// TestHandWithdrawn has a caller that gives up, first while its stanzas wait and
// then while their acknowledgement does.
func TestHandWithdrawn(t *testing.T) {
	f := newFake(t)
	g, h := f.streams(Limits{})
	ctx, cancel := context.WithCancel(t.Context())
	waits := handing(ctx, g, "1", "2")
	d := f.accept() // so that it is queued
	cancel()
	if err := returned(t, waits, 0, "canceled"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	o.mu.Lock()
	if len(o.queue) > 0 || o.bytes > 0 {
		t.Errorf("%d stanzas of %d bytes wait for a caller that is gone", len(o.queue), o.bytes)
	}
	o.mu.Unlock()
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	out := handing(ctx, g, "3", "4")
	d.play(managed + "< <message id='3'/><message id='4'/>" + askedFor + "\n")
	if strings.Contains(d.seen, "id='1'") {
		t.Error("a stanza was written that its caller had taken back")
	}
	cancel()
	returned(t, out, 0, "canceled")
	next := handing(t.Context(), g, "5")
	d.play("< <message id='5'/>" + askedFor + "\n> <a xmlns='urn:xmpp:sm:3' h='3'/>")
	returned(t, next, 1, "")
	if len(h.failed) > 0 {
		t.Error(h.failed)
	}
}

// TestHandStopped ends the gateway while a Hand waits: for the stream to open, and
// for its acknowledgement.
func TestHandStopped(t *testing.T) {
	for name, script := range map[string]string{
		"in the handshake":       proceed,
		"for an acknowledgement": managed + "< <message id='1'/>" + askedFor + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			stop, ended, g := runStoppable(t, Config{CA: f.ca, Handler: newRecorder(), Servers: []Server{{Addr: f.l.Addr().String()}}})
			done := handing(t.Context(), g, "1")
			f.accept().play(script)
			stop()
			if err := returned(t, done, 0, ErrStopped.Error()); !errors.Is(err, ErrStopped) || errors.Is(err, ErrDown) {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if _, err := g.Hand(t.Context(), "b.grid", "a.grid", []byte("<iq/>")); !errors.Is(err, ErrStopped) {
				t.Errorf("hand after the end: %v", err)
			}
		})
	}
}

// TestHandCutMidway has a write fail between the stanzas of a Hand: the first is
// had, the others are nobody's any more, and what Send took stays.
func TestHandCutMidway(t *testing.T) {
	rec := newRecorder()
	g, err := New(Config{CA: openCA(t), Handler: rec, Servers: []Server{{Addr: freeAddr()}}})
	if err != nil {
		t.Fatal(err)
	}
	o, err := g.outbound(pair{"b.grid", "a.grid"})
	if err != nil {
		t.Fatal(err)
	}
	h, f := &hand{size: 3, done: make(chan struct{})}, &flight{}
	big := []byte(strings.Repeat("x", writeSize))
	batch := []item{{big, h}, {big, h}, {big, h}, {[]byte("sent"), nil}}
	o.grow(3*len(big) + len("sent"))
	if n, err := o.write(&stream{conn: &brokenAfter{writes: 1}, writeWait: time.Second}, f, batch); n != 1 || !errors.Is(err, errBroken) {
		t.Errorf("wrote %d: %v", n, err)
	}
	o.cut(f, errBroken)
	if !h.ended() || h.had != 1 || !errors.Is(h.err, errBroken) {
		t.Errorf("the hand has %d: %v", h.had, h.err)
	}
	if len(o.queue) != 1 || o.bytes != len("sent") || len(rec.failed) > 0 {
		t.Errorf("%d stanzas wait, accounted for as %d bytes; %d came back", len(o.queue), o.bytes, len(rec.failed))
	}
}

// TestHandInOrder hands over and sends much at once, big and small.
func TestHandInOrder(t *testing.T) {
	ca := openCA(t)
	g, _, gh, sh := couple(t, Config{CA: ca, Servers: []Server{{}}}, Config{CA: ca, Servers: []Server{{}}})
	var workers sync.WaitGroup
	const rounds, each = 12, 20
	for w := range 4 {
		workers.Go(func() {
			for i := range rounds {
				var stanzas [][]byte
				for k := range each {
					body := strings.Repeat("x", (i*k*97)%9000)
					stanzas = append(stanzas, fmt.Appendf(nil, "<message id='%d.%d'>%s</message>", w, i*each+k, body))
				}
				if w%2 == 0 {
					if n, err := g.Hand(t.Context(), "b.grid", "a.grid", stanzas...); n != each || err != nil {
						t.Errorf("hand: %d, %v", n, err)
					}
				} else if err := g.Send(t.Context(), "b.grid", "a.grid", stanzas...); err != nil {
					t.Errorf("send: %v", err)
				}
			}
		})
	}
	workers.Wait()
	sh.wait(t, func(got, _ []string) bool { return len(got) == 4*rounds*each })
	next := [4]int{}
	for _, s := range sh.got {
		var w, i int
		if _, err := fmt.Sscanf(s, "b.grid>a.grid <message id='%d.%d'", &w, &i); err != nil || i != next[w] {
			t.Fatalf("%.60q where %d.%d should be: %v", s, w, next[w], err)
		}
		next[w]++
	}
	if len(gh.failed) > 0 {
		t.Error(gh.failed)
	}
}

// TestHandLosesNothing has a server that breaks its streams anyhow. What Hand says
// that it has, it has; what the caller then hands again arrives in order.
func TestHandLosesNothing(t *testing.T) {
	ca := openCA(t)
	g, _, gh, sh := couple(t, Config{CA: ca, Servers: []Server{{}}, Limits: Limits{Backoff: time.Millisecond}}, Config{CA: ca, Servers: []Server{{}}})
	var batches atomic.Int64
	sh.take = func(context.Context) error {
		if batches.Add(1)%3 == 0 {
			return errors.New("on purpose")
		}
		return nil
	}
	const all = 150
	for i := 0; i < all; {
		var stanzas [][]byte
		for k := i; k < min(i+7, all); k++ {
			stanzas = append(stanzas, fmt.Appendf(nil, "<message id='%d'/>", k))
		}
		n, err := g.Hand(t.Context(), "b.grid", "a.grid", stanzas...)
		sh.mu.Lock()
		for k := i; k < i+n; k++ {
			if !contains(sh.got, fmt.Sprintf("'%d'", k)) {
				t.Errorf("stanza %d was had, says Hand, and was not", k)
			}
		}
		sh.mu.Unlock()
		i += n
		switch {
		case errors.Is(err, ErrDown):
			time.Sleep(time.Millisecond) // in backoff
		case err == nil && n < len(stanzas):
			t.Fatalf("had %d of %d without an error", n, len(stanzas))
		}
	}
	if len(gh.failed) > 0 {
		t.Error(gh.failed)
	}
	next := 0 // some came twice, none too soon
	for _, s := range sh.got {
		var i int
		if _, err := fmt.Sscanf(s, "b.grid>a.grid <message id='%d'", &i); err != nil || i > next {
			t.Fatalf("%q where at most %d should be: %v", s, next, err)
		}
		next = max(next, i+1)
	}
}
