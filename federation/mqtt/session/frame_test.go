package session

import (
	"bufio"
	"bytes"
	"errors"
	"runtime"
	"testing"
)

// read decodes the first packet of b.
func read(b []byte, version byte, limit uint32) (*packet, error) {
	f, err := readFrame(bufio.NewReader(bytes.NewReader(b)), limit)
	if err != nil {
		return nil, err
	}
	return f.decode(version)
}

// TestMalformed has what the codecs alone would accept, wait for or panic on.
func TestMalformed(t *testing.T) {
	for name, c := range map[string]struct {
		bytes   string
		version byte
		code    byte
	}{
		"length of five bytes":              {"\x30\xff\xff\xff\xff\x01", V5, codeMalformed},
		"over the limit":                    {"\x30\xff\xff\xff\x7f", V5, codeTooLarge},
		"type 0":                            {"\x00\x00", V5, codeProtocol},
		"CONNECT":                           {"\x10\x00", V5, codeProtocol},
		"AUTH":                              {"\xf0\x00", V5, codeProtocol},
		"QoS 3":                             {"\x36\x06\x00\x01a\x00\x01\x00", V5, codeMalformed},
		"DUP at QoS 0":                      {"\x38\x04\x00\x01a\x00", V5, codeMalformed},
		"flags of PUBREL":                   {"\x60\x02\x00\x01", V5, codeMalformed},
		"flags of PUBACK":                   {"\x41\x02\x00\x01", V5, codeMalformed},
		"packet id 0":                       {"\x32\x06\x00\x01a\x00\x00\x00", V5, codeMalformed},
		"PUBACK of packet id 0":             {"\x40\x02\x00\x00", V5, codeMalformed},
		"topic over the end":                {"\x30\x04\x00\x09a\x00", V5, codeMalformed},
		"empty topic":                       {"\x30\x03\x00\x00\x00", V5, codeTopicInvalid},
		"topic with a wildcard":             {"\x30\x04\x00\x01#\x00", V5, codeTopicInvalid},
		"topic with a NUL":                  {"\x30\x04\x00\x01\x00\x00", V5, codeMalformed},
		"topic that is not UTF-8":           {"\x30\x04\x00\x01\xff\x00", V5, codeMalformed},
		"properties over the end":           {"\x30\x05\x00\x01a\x09\x01", V5, codeMalformed},
		"properties of ten bytes of length": {"\x30\x0d\x00\x01a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x08", V5, codeMalformed},
		"property that ends early":          {"\x30\x07\x00\x01a\x03\x02\x00\x00", V5, codeMalformed},
		"property twice":                    {"\x30\x08\x00\x01a\x04\x01\x01\x01\x00", V5, codeProtocol},
		"property of another packet":        {"\x30\x07\x00\x01a\x03\x13\x00\x01", V5, codeMalformed},
		"topic alias":                       {"\x30\x07\x00\x01a\x03\x23\x00\x01", V5, codeAlias},
		"PUBACK that goes on":               {"\x40\x05\x00\x01\x00\x00\x00", V5, codeMalformed},
		"PUBACK of one byte":                {"\x40\x01\x00", V5, codeMalformed},
		"PINGRESP with a body":              {"\xd0\x01\x00", V5, codeMalformed},
		"receive maximum 0":                 {"\x20\x06\x00\x00\x03\x21\x00\x00", V5, codeProtocol},
		"3.1.1: PUBACK of one byte":         {"\x40\x01\x07", V311, codeMalformed},
		"3.1.1: topic over the end":         {"\x30\x03\x00\x09a", V311, codeMalformed},
		"3.1.1: no packet id":               {"\x32\x03\x00\x01a", V311, codeMalformed},
		"3.1.1: empty SUBACK":               {"\x90\x02\x00\x01", V311, codeMalformed},
		"3.1.1: DISCONNECT":                 {"\xe0\x00", V311, codeProtocol},
		"3.1.1: NUL":                        {"\x30\x03\x00\x01\x00", V311, codeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := read([]byte(c.bytes), c.version, 1000)
			var breach *protocolError
			if !errors.As(err, &breach) || breach.code != c.code {
				t.Errorf("got %+v, %v; want code %#x", p, err, c.code)
			}
		})
	}
	if p, err := read([]byte("\xe0\x00"), V5, 10); err != nil || p.kind != typeDisconnect {
		t.Errorf("DISCONNECT without a code: %+v, %v", p, err)
	}
}

// TestLengthIsNotAllocated: what a header claims takes no memory beyond the limit.
func TestLengthIsNotAllocated(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if _, err := read([]byte("\x30\xff\xff\xff\x7f"), V5, 1<<20); err == nil {
			t.Fatal("taken")
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 { // the readers' own buffers
		t.Errorf("%d bytes", n)
	}
}

// FuzzRead: whatever a broker sends is taken or refused, and a message that is taken
// comes out the same when it is written and read again.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"\x20\x06\x00\x00\x03\x21\x00\x14", "\x34\x0e\x00\x01a\x00\x07\x07\x26\x00\x01k\x00\x01vhi", "\x3d\x05\x00\x01a\x00\x07",
		"\x40\x02\x00\x01", "\x50\x04\x00\x01\x10\x00", "\x62\x02\x00\x01", "\x90\x04\x00\x01\x00\x02", "\xb0\x04\x00\x01\x00\x11", "\xd0\x00", "\xe0\x01\x8e",
		"\x30\x0d\x00\x01a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x08"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, five bool) {
		version := V311
		if five {
			version = V5
		}
		p, err := read(b, version, 4096)
		if err != nil || p.message == nil {
			return
		}
		var buf bytes.Buffer
		e := encoder{version, &buf}
		if err := e.publish(p.message, p.id, p.dup, 0); err != nil {
			t.Fatal(err)
		}
		if buf.Len() > e.publishSize(p.message) {
			t.Errorf("%d bytes, and publishSize says %d", buf.Len(), e.publishSize(p.message))
		}
		q, err := read(buf.Bytes(), version, 1<<20)
		if err != nil {
			t.Fatalf("% x written as % x: %v", b, buf.Bytes(), err)
		}
		if q.message.Topic != p.message.Topic || !bytes.Equal(q.message.Payload, p.message.Payload) || q.id != p.id || q.dup != p.dup || len(q.message.User) != len(p.message.User) {
			t.Errorf("got %+v, want %+v", q.message, p.message)
		}
	})
}
