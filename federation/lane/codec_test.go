package lane

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// Whatever a length claims, a reader holds one message of the largest size.
func TestReaderMemoryIsBounded(t *testing.T) {
	head := []byte{0xa1, 9, 0x5b, 0, 0, 0, 0x10, 0, 0, 0, 0} // a body of 64 GiB
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	err := newReader(io.MultiReader(bytes.NewReader(head), zeros{}), maxFrame).next(new(frame))
	runtime.ReadMemStats(&m1)
	if !errors.Is(err, errTooLarge) {
		t.Fatal(err)
	}
	if n := m1.TotalAlloc - m0.TotalAlloc; n > 4*maxFrame {
		t.Errorf("%d KiB allocated", n>>10)
	}
}

// Bytes that trickle in cost a look each; a message must not take many.
func TestTricklingMessageEnds(t *testing.T) {
	raw := encode(t, &frame{Seq: 1, Body: make([]byte, 64<<10)})
	if err := newReader(&pieces{raw, len(raw)/maxPieces + 1}, maxFrame).next(new(frame)); err != nil {
		t.Errorf("in %d pieces: %v", maxPieces, err)
	}
	if err := newReader(&pieces{raw, 1}, maxFrame).next(new(frame)); err == nil || !strings.Contains(err.Error(), "pieces") {
		t.Errorf("byte by byte: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// The wire is plain CBOR: any decoder reads it.
func TestFramesAreCBORMaps(t *testing.T) {
	var m map[uint64]any
	raw := encode(t, &frame{Epoch: 7, Seq: 1, ID: []byte("i"), Kind: 1, Conv: "c", Expires: -1, Body: []byte("b")})
	if err := cbor.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(m); got != "map[1:7 2:1 5:[105] 6:1 7:c 8:-1 9:[98]]" {
		t.Fatal(got)
	}
}

// FuzzReader holds the reader to its bounds, to the same result however the
// bytes are cut, and to frames that survive being written again.
func FuzzReader(f *testing.F) {
	f.Add(encode(f, xmppFrame(1, "<message/>"), xmppFrame(2, "")))
	f.Add(encode(f, &frame{Seq: 1, ID: []byte("id"), Conv: "a@b", Expires: 1, Body: make([]byte, 40<<10)}))
	f.Add(encode(f, &ack{Seq: 3, Refused: []refused{{1, "forbidden", "no"}}}))
	f.Add([]byte{0xa1, 9, 0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{0xbf, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := readAll(bytes.NewReader(data))
		cut := readAll(&pieces{data, len(data)/maxPieces + 1})
		if len(whole) != len(cut) {
			t.Fatalf("%d frames at once, %d byte by byte", len(whole), len(cut))
		}
		for i := range whole {
			if fmt.Sprint(whole[i]) != fmt.Sprint(cut[i]) {
				t.Fatalf("frame %d differs: %v, %v", i, whole[i], cut[i])
			}
			again := readAll(bytes.NewReader(encode(t, &whole[i])))
			if len(again) != 1 || fmt.Sprint(again[0]) != fmt.Sprint(whole[i]) {
				t.Fatalf("frame %v written and read again is %v", whole[i], again)
			}
		}
		r := newReader(bytes.NewReader(data), maxAck)
		for {
			var a ack
			if r.next(&a) != nil {
				return
			}
			_ = a.check()
		}
	})
}

// pieces gives its bytes a few at a time.
type pieces struct {
	left []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.left[:min(p.size, len(p.left))])
	p.left = p.left[n:]
	return n, nil
}

func readAll(src io.Reader) []frame {
	var all []frame
	r := newReader(src, maxFrame)
	for {
		var f frame
		if r.next(&f) != nil || f.check() != nil {
			return all
		}
		all = append(all, f)
	}
}
