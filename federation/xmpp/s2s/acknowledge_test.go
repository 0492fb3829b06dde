package s2s

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAcknowledgeHurriesKernel: having answered, the kernel does not keep its own
// acknowledgement of what comes next for the answer after that.
func TestAcknowledgeHurriesKernel(t *testing.T) {
	conn, server := linked(t)
	// To the kernel it is a dialogue once each side has answered the other, soon.
	turn := func(say func([]byte) error) {
		t.Helper()
		for range 10 {
			if _, err := server.Write([]byte("<r/>")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			if err := say([]byte("<a/>")); err != nil {
				t.Fatal(err)
			}
		}
	}
	hurries := func() (yes int) {
		t.Helper()
		var err error
		if e := conn.raw.Control(func(fd uintptr) { yes, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return yes
	}
	in := &inbound{stream: newStream(conn, patience), arrivals: conn}
	// An answer that a busy machine holds up for longer than the kernel waits is none.
	for late := time.Now().Add(patience); ; {
		if turn(in.write); hurries() == 0 {
			break
		}
		if time.Now().After(late) {
			t.Fatal("the kernel does not wait for answers of itself: nothing is tested")
		}
	}
	turn(in.acknowledge)
	if hurries() != 1 {
		t.Error("the kernel keeps its acknowledgements for our next answer")
	}
}
