package frame_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

const head = `<?xml version='1.0'?><stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback' from='a.grid.test' to='b.grid.test' id='s1' version='1.0' xml:lang='en'>`

func TestReaderYieldsStanzas(t *testing.T) {
	in := head + " \n" + string(chat) + string(presence) + "\n \t" + string(bigIQ) + "</stream:stream >"
	want := []string{string(chat), string(presence), string(bigIQ)}
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "halves": iotest.HalfReader,
	} {
		t.Run(name, func(t *testing.T) {
			r := frame.NewReader(wrap(strings.NewReader(in)), frame.DefaultLimits())
			h, err := r.Header()
			if err != nil {
				t.Fatal(err)
			}
			if want := (frame.Header{From: "a.grid.test", To: "b.grid.test", ID: "s1", Version: "1.0", Lang: "en", Dialback: true}); h != want {
				t.Errorf("header %+v, want %+v", h, want)
			}
			for _, w := range want {
				got, err := r.Next()
				if err != nil || string(got) != w {
					t.Fatalf("got %q, %v; want %q", got, err, w)
				}
			}
			for range 2 {
				if _, err := r.Next(); !errors.Is(err, frame.ErrStreamClosed) {
					t.Fatalf("after the end: %v", err)
				}
			}
		})
	}
}

// TestBusyStream: what comes fast is read and handed on in large pieces.
func TestBusyStream(t *testing.T) {
	r := frame.NewReader(&endless{piece: chat}, frame.DefaultLimits())
	var batch [][]byte
	for range 10 {
		var err error
		if batch, err = r.Batch(batch[:0]); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(batch) * len(chat); n < 30<<10 {
		t.Errorf("%d bytes in a batch", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		batch, _ = r.Batch(batch[:0])
	}); n != 1 {
		t.Errorf("%v allocations a batch, want 1", n)
	}
}

func TestBatchIsOwned(t *testing.T) {
	in := bytes.Repeat(append([]byte(" "), chat...), 50)
	r := frame.NewReader(bytes.NewReader(in), frame.DefaultLimits())
	var all [][]byte
	for {
		n := len(all)
		batch, err := r.Batch(all)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == n {
			t.Fatal("an empty batch")
		}
		all = batch
	}
	if len(all) != 50 {
		t.Fatalf("%d stanzas, want 50", len(all))
	}
	for i, b := range all {
		_ = append(b, "overrun"...) // must not reach the neighbour
		if !bytes.Equal(b, chat) {
			t.Fatalf("stanza %d is %q", i, b)
		}
	}
}
