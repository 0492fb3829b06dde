package s2s

import (
	"bytes"
	"io"
	"net"
	"testing"
)

// counted counts the reads of a connection.
type counted struct {
	net.Conn
	from  io.Reader
	reads int
}

func (c *counted) Read(p []byte) (int, error) {
	c.reads++
	return c.from.Read(p)
}

// TestGather: many small reads of what has come cost few of the connection.
func TestGather(t *testing.T) {
	want := bytes.Repeat([]byte("<message/>"), 10_000)
	c := &counted{from: bytes.NewReader(want)}
	g, got, piece := gather(c), []byte(nil), make([]byte, 10)
	for {
		n, err := g.Read(piece)
		got = append(got, piece[:n]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was sent")
	}
	if most := len(want)/gatherBytes + 2; c.reads > most {
		t.Errorf("%d reads of the connection, want at most %d", c.reads, most)
	}
}
