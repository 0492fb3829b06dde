package session

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const patience = 30 * time.Second

// memory is a Journal that lasts as long as a test.
type memory struct {
	mu sync.Mutex
	st State
}

func newMemory() *memory {
	return &memory{st: State{Life: []byte("earlier!"), In: map[uint16]InState{}, Out: map[uint16]OutState{}}}
}

func (j *memory) Load(context.Context, string) (*State, error) { return &j.st, nil }

func (j *memory) Write(_ context.Context, _ string, changes []Change) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, c := range changes {
		switch c.Op {
		case PutIn:
			j.st.In[c.ID] = c.In
		case PutOut:
			j.st.Out[c.ID] = c.Out
		case CutOut:
			delete(j.st.Out, c.ID)
		case Reset:
			j.st.Life, j.st.In = c.Life, map[uint16]InState{}
		}
	}
	return nil
}

// dialogue plays a broker from a script. Each line says
//
//	accept       take the next connection
//	< PATTERN    read a packet: hexadecimal, ".." for any byte, "*" for the rest
//	> BYTES      send them
//	publish QOS KEY  have the session publish; done KEY waits for its end
//	disk STATE   off: writes of the journal wait until it is on
//	subscribe FILTER ...  set the subscriptions, at QoS 0
//	subscribed FILTER ...  wait until the broker has answered them, and these were refused
//	end          the session closes the connection
//	close        close it
type dialogue struct {
	t     *testing.T
	s     *Session
	disk  *memory
	off   bool // disk.mu is held
	conns chan net.Conn
	conn  net.Conn
	r     *bufio.Reader
	done  map[string]chan error
	got   chan *Message
	// answered has each Subscribed.
	answered chan map[string]error
}

func (d *dialogue) Arrive(_ context.Context, m *Message, ack func(error)) {
	select {
	case d.got <- m:
	case <-d.t.Context().Done(): // the test has failed
	}
	ack(nil)
}
func (d *dialogue) Up(Info)                             {}
func (d *dialogue) Down(error)                          {}
func (d *dialogue) Subscribed(refused map[string]error) { d.answered <- refused }

func newDialogue(t *testing.T, cfg Config) *dialogue {
	d := &dialogue{t: t, conns: make(chan net.Conn), done: map[string]chan error{}, got: make(chan *Message, 4096), answered: make(chan map[string]error, 64)}
	cfg.Addr, cfg.ClientID, cfg.Handler, cfg.BackoffMin, cfg.BackoffMax = "broker:1883", "c", d, time.Millisecond, time.Millisecond
	if cfg.Journal == nil {
		cfg.Journal = newMemory()
	}
	d.disk = cfg.Journal.(*memory)
	cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case d.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	var err error
	if d.s, err = New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = d.s.Run(ctx) }()
	t.Cleanup(func() {
		if cancel(); d.off {
			d.disk.mu.Unlock()
		}
		if d.conn != nil {
			d.conn.Close()
		}
		<-ended
	})
	return d
}

func (d *dialogue) play(script string) {
	d.t.Helper()
	for line := range strings.Lines(script) {
		verb, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "":
		case "accept":
			select {
			case d.conn = <-d.conns:
			case <-time.After(patience):
				d.t.Fatal("no connection")
			}
			d.r = bufio.NewReader(d.conn)
			_ = d.conn.SetDeadline(time.Now().Add(patience))
		case "<":
			d.expect(text)
		case ">":
			b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
			if err != nil {
				d.t.Fatal(err)
			}
			if _, err := d.conn.Write(b); err != nil {
				d.t.Fatalf("send %q: %v", text, err)
			}
		case "publish":
			var qos byte
			var key string
			fmt.Sscan(text, &qos, &key)
			end := make(chan error, 1)
			d.done[key] = end
			if err := d.s.Send(d.t.Context(), key, &Message{Topic: "t", QoS: qos}, func(err error) { end <- err }); err != nil {
				d.t.Fatal(err)
			}
		case "done":
			select {
			case err := <-d.done[text]:
				if err != nil {
					d.t.Fatal(err)
				}
			case <-time.After(patience):
				d.t.Fatalf("%s does not end", text)
			}
		case "subscribe":
			var subs []Subscription
			for f := range strings.FieldsSeq(text) {
				subs = append(subs, Subscription{Filter: f})
			}
			if err := d.s.SetSubscriptions(subs); err != nil {
				d.t.Fatal(err)
			}
		case "subscribed":
			select {
			case refused := <-d.answered:
				if got := strings.Join(slices.Sorted(maps.Keys(refused)), " "); got != text {
					d.t.Fatalf("refused are %q, want %q", got, text)
				}
			case <-time.After(patience):
				d.t.Fatal("subscriptions are not answered")
			}
		case "disk":
			if text == "off" {
				d.disk.mu.Lock()
			} else {
				d.disk.mu.Unlock()
			}
			d.off = text == "off"
		case "end":
			if b, err := io.ReadAll(d.r); err != nil || len(b) > 0 {
				d.t.Fatalf("got % x, %v; want the end", b, err)
			}
		case "close":
			d.conn.Close()
		default:
			d.t.Fatalf("script: %q", line)
		}
	}
}

func (d *dialogue) expect(pattern string) {
	d.t.Helper()
	f, err := readRaw(d.r)
	if err != nil {
		d.t.Fatalf("want %s: %v", pattern, err)
	}
	got := hex.EncodeToString(f)
	want := strings.ReplaceAll(pattern, " ", "")
	rest, open := strings.CutSuffix(want, "*")
	ok := len(got) == len(want) || open && len(got) >= len(rest)
	for i := 0; ok && i < len(rest); i++ {
		ok = rest[i] == '.' || rest[i] == got[i]
	}
	if !ok {
		d.t.Fatalf("got %s, want %s", got, want)
	}
}

// readRaw reads a packet of less than 128 bytes.
func readRaw(r io.Reader) ([]byte, error) {
	b := make([]byte, 2)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	b = append(b, make([]byte, b[1])...)
	_, err := io.ReadFull(r, b[2:])
	return b, err
}

func TestDialogues(t *testing.T) {
	const resumed, lost = "accept\n< 10*\n> 20 03 01 00 00\n", "accept\n< 10*\n> 20 03 00 00 00\n"
	for name, c := range map[string]struct {
		cfg    Config
		script string
	}{
		"PUBREL for an unknown id":  {Config{}, resumed + "> 62 02 00 09\n< 70 03 00 09 92"},
		"QoS 2 from the broker":     {Config{}, resumed + "> 34 06 00 01 74 00 07 00\n< 50 02 00 07\n> 62 02 00 07\n< 70 02 00 07\n> 62 02 00 07\n< 70 02 00 07"},
		"repeat after reconnection": {Config{}, resumed + "> 34 06 00 01 74 00 07 00\n< 50 02 00 07\nclose\n" + resumed + "> 3c 06 00 01 74 00 07 00\n< 50 02 00 07"},
		"PUBCOMP lost, release not on disk": {Config{}, resumed + "> 34 06 00 01 74 00 07 00\n< 50 02 00 07\ndisk off\n> 62 02 00 07\nclose\n" +
			resumed + "> 62 02 00 07\n> 32 06 00 01 74 00 08 00\n< 40 02 00 08\ndisk on\n< 70 02 00 07"},
		"same id for another":        {Config{}, resumed + "> 34 06 00 01 74 00 07 00\n< 50 02 00 07\n> 34 06 00 01 75 00 07 00\n< e0 01 82\nend"},
		"PUBREL before PUBREC":       {Config{}, resumed + "> 62 02 00 07\n< 70 03 00 07 92\n> 40 02 00 07\n< e0 01 82\nend"},
		"PUBACK for nothing":         {Config{}, resumed + "> 40 02 00 01\n< e0 01 82\nend"},
		"PUBREC for nothing":         {Config{}, resumed + "> 50 02 20 01\n< 62 03 20 01 92"},
		"SUBACK for nothing":         {Config{}, resumed + "> 90 04 00 01 00 00\n< e0 01 82\nend"},
		"malformed":                  {Config{}, resumed + "> 36 00\n< e0 01 81\nend"},
		"too large":                  {Config{MaxPacket: 100}, resumed + "> 30 ff ff ff 7f\n< e0 01 95\nend"},
		"second CONNACK":             {Config{}, resumed + "> 20 03 01 00 00\n< e0 01 82\nend"},
		"PUBLISH instead of CONNACK": {Config{}, "accept\n< 10*\n> 30 04 00 01 74 00\nend"},
		"QoS 2 to the broker": {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\n> 50 02 20 00\n< 62 02 20 00\n> 70 02 20 00\ndone k\n" +
			"publish 2 k\ndone k\npublish 2 l\n< 34 06 00 01 74 20 01 00"},
		"PUBCOMP before PUBREL": {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\n> 70 02 20 00\n< e0 01 82\nend"},
		"cut before PUBREC":     {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\nclose\n" + resumed + "< 3c 06 00 01 74 20 00 00"},
		"cut before PUBCOMP":    {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\n> 50 02 20 00\n< 62 02 20 00\nclose\n" + resumed + "< 62 02 20 00\n> 70 03 20 00 92\ndone k"},
		"session lost before PUBREC": {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\nclose\n" + lost +
			"< 34 06 00 01 74 20 00 00\n> 50 02 20 00\n< 62 02 20 00\n> 70 02 20 00\ndone k"},
		"session lost before PUBCOMP": {Config{}, resumed + "publish 2 k\n< 34 06 00 01 74 20 00 00\n> 50 02 20 00\n< 62 02 20 00\nclose\n" + lost + "done k"},
		"no acknowledgement": {Config{AckTimeout: 50 * time.Millisecond}, resumed + "publish 1 k\n< 32 06 00 01 74 00 01 00\n< e0 01 80\nend\n" + resumed +
			"< 3a 06 00 01 74 00 01 00\n> 40 02 00 01\ndone k"},
		"order after reconnection": {Config{}, resumed + "publish 1 a\npublish 1 b\n< 32 06 00 01 74 00 01 00\n< 32 06 00 01 74 00 02 00\nclose\n" + resumed +
			"< 3a 06 00 01 74 00 01 00\n< 3a 06 00 01 74 00 02 00"},
		"receive maximum 1":  {Config{}, "accept\n< 10*\n> 20 06 01 00 03 21 00 01\npublish 1 a\npublish 1 b\n< 32 06 00 01 74 00 01 00\n> 62 02 00 09\n< 70 03 00 09 92\n> 40 02 00 01\n< 32 06 00 01 74 00 02 00"},
		"3.1.1 by code":      {Config{}, "accept\n< 10 .. 00 04 4d 51 54 54 05*\n> 20 03 00 84 00\nend\naccept\n< 10 .. 00 04 4d 51 54 54 04*\n> 20 02 01 00\npublish 1 k\n< 32 05 00 01 74 00 01\n> 40 02 00 01\ndone k"},
		"3.1.1 by its own":   {Config{}, "accept\n< 10 .. 00 04 4d 51 54 54 05*\n> 20 02 00 01\nend\naccept\n< 10 .. 00 04 4d 51 54 54 04*\n> 20 02 01 00"},
		"3.1.1 by closing":   {Config{}, strings.Repeat("accept\n< 10 .. 00 04 4d 51 54 54 05*\nclose\n", closedTries) + "accept\n< 10 .. 00 04 4d 51 54 54 04*\n> 20 02 01 00"},
		"5, closed at first": {Config{}, "accept\n< 10 .. 00 04 4d 51 54 54 05*\nclose\naccept\n< 10 .. 00 04 4d 51 54 54 05*\n> 20 03 01 00 00"},
		"refused, and asked for again": {Config{AskAgain: 50 * time.Millisecond, KeepAlive: time.Second}, resumed + "subscribe a b\n" +
			"< 82 .. 00 01 00 00 01 61 00 00 01 62 00\n> 90 05 00 01 00 87 00\nsubscribed a\n" +
			"< 82 .. 00 02 00 00 01 61 00\n> 90 04 00 02 00 87\nsubscribed a\n< 82 .. 00 03 00 00 01 61 00\n> 90 04 00 03 00 00\nsubscribed"},
		"refused with 3.1.1, and asked for on the next connection": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe a\n" +
			"< 82 .. 00 01 00 01 61 00\n> 90 03 00 01 80\nsubscribed a\nclose\naccept\n< 10*\n> 20 02 01 00\n< 82 .. 00 02 00 01 61 00\n> 90 03 00 02 00\nsubscribed\n" +
			"close\naccept\n< 10*\n> 20 02 01 00\nsubscribed"},
		"shared, and the broker has none":       {Config{}, "accept\n< 10*\n> 20 05 01 00 02 2a 00\nsubscribe $share/g/a b\n< 82 .. 00 01 00 00 01 62 00\n> 90 04 00 01 00 00\nsubscribed $share/g/a"},
		"shared, with 3.1.1":                    {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe $share/g/a\nsubscribed $share/g/a"},
		"answered once, though there were more": {Config{}, resumed + "subscribe a\n< 82 .. 00 01 00 00 01 61 00\nsubscribe a b\n< 82 .. 00 02 00 00 01 62 00\n> 90 04 00 02 00 00\n> 90 04 00 01 00 00\nsubscribed"},
		"a wider filter takes the place of another": {Config{}, resumed + "subscribe a/b\n< 82 .. 00 01 00 00 03 61 2f 62 00\n> 90 04 00 01 00 00\nsubscribed\n" +
			"disk off\nsubscribe a/#\n> 62 02 00 09\ndisk on\n< 82 .. 00 02 00 00 03 61 2f 23 00\n< a2 .. 00 03 00 00 03 61 2f 62\n< 70 03 00 09 92\n> 90 04 00 02 00 00\n> b0 04 00 03 00 00\nsubscribed"},
		"not wanted, and wanted again at once, with 3.1.1": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe a\n< 82 .. 00 01 00 01 61 00\n> 90 03 00 01 00\nsubscribed\n" +
			"subscribe\n< a2 .. 00 02 00 01 61\nsubscribe a\n> b0 02 00 02\n< 82 .. 00 03 00 01 61 00\n> 90 03 00 03 00\nsubscribed"},
		"cut off before SUBSCRIBE is answered, with 3.1.1": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe a\n< 82 .. 00 01 00 01 61 00\nclose\n" +
			"accept\n< 10*\n> 20 02 01 00\n< 82 .. 00 02 00 01 61 00\n> 90 03 00 02 00\nsubscribed\nclose\naccept\n< 10*\n> 20 02 01 00\nsubscribed"},
		"cut off before SUBSCRIBE is sent, with 3.1.1": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\npublish 1 k\n< 32*\ndisk off\nsubscribe a\nclose\n" +
			"accept\n< 10*\n> 20 02 01 00\n< 3a*\ndisk on\n< 82 .. 00 02 00 01 61 00\n> 90 03 00 02 00\nsubscribed"},
		"changed in all ways before an answer, with 3.1.1": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe a\n< 82 .. 00 01 00 01 61 00\nsubscribe\n< a2 .. 00 02 00 01 61\n> 90 03 00 01 00\nsubscribed\n" +
			"subscribe a\n< 82 .. 00 03 00 01 61 00\n> b0 02 00 02\n> 90 03 00 03 00\nsubscribed"},
		"cut off before UNSUBSCRIBE is answered, with 3.1.1": {Config{Version: V311}, "accept\n< 10*\n> 20 02 01 00\nsubscribe a\n< 82 .. 00 01 00 01 61 00\n> 90 03 00 01 00\nsubscribed\n" +
			"subscribe\n< a2 .. 00 02 00 01 61\ndisk off\nsubscribe a\nclose\naccept\n< 10*\n> 20 02 01 00\ndisk on\n< 82 .. 00 03 00 01 61 00\n> 90 03 00 03 00\nsubscribed"},
		"fresh session": {Config{Journal: &memory{st: State{In: map[uint16]InState{}, Out: map[uint16]OutState{}}}}, "accept\n< 10 .. 00 04 4d 51 54 54 05 02*\n> 20 03 00 00 00\n< e0 00\nend\naccept\n< 10 .. 00 04 4d 51 54 54 05 00*\n> 20 03 00 00 00"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newDialogue(t, c.cfg).play(c.script)
		})
	}
}

// A connection that is not read, because too much is unacknowledged, is kept alive all
// the same: the broker would take the session for dead, and publish its will.
func TestKeptAliveUnread(t *testing.T) {
	d := newDialogue(t, Config{KeepAlive: 2 * time.Second, ReceiveMaximum: 1})
	d.got = make(chan *Message) // the handler waits
	d.play("accept\n< 10*\n> 20 03 01 00 00\n> 32 06 00 01 74 00 07 00\n> 32 06 00 01 74 00 08 00\n" + strings.Repeat("< c0 00\n", 3))
	answered := make(chan error, 1)
	go func() { // is read as soon as anything is
		_, err := d.conn.Write([]byte{0xd0, 0})
		answered <- err
	}()
	<-d.got
	<-d.got
	d.play("< 40 02 00 07\n< 40 02 00 08")
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	d.play("< c0 00")
}

// A retained message for which there was no room is missed: the handler is told that it
// has to look again, after all that came before.
func TestRetainedDropped(t *testing.T) {
	d := newDialogue(t, Config{})
	d.got = make(chan *Message) // the handler waits
	d.play("accept\n< 10*\n> 20 03 01 00 00\nsubscribe a\n< 82*\n> 90 04 00 01 00 00\nsubscribed")
	const n = 12
	for range n {
		var buf bytes.Buffer
		if err := (encoder{V5, &buf}).publish(&Message{Topic: "a", Payload: make([]byte, most0In/10), Retain: true}, 0, false, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.conn.Write(buf.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	d.play("> 62 02 00 09\n< 70 03 00 09 92") // all is taken or dropped
	for given := 0; ; given++ {
		select {
		case <-d.got:
			continue
		case <-d.answered:
			if given >= n || given < 9 {
				t.Errorf("told after %d of %d", given, n)
			}
		case <-time.After(patience):
			t.Error("not told")
		}
		break
	}
}

// downs counts what it is told.
type downs struct{ up, down int }

func (*downs) Arrive(context.Context, *Message, func(error)) {}
func (d *downs) Up(Info)                                     { d.up++ }
func (d *downs) Down(error)                                  { d.down++ }
func (*downs) Subscribed(map[string]error)                   {}

// The handler is told of the end of the connection also where that is the first that waits
// for it when the session ends.
func TestDownAtTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h := &downs{}
	s := &Session{cfg: Config{Handler: h}, over: make(chan struct{})}
	close(s.over)
	b := newInbox(s)
	b.put(event{up: &Info{}})
	b.put(event{down: ctx.Err()})
	if b.run(ctx); h.up != 1 || h.down != 1 {
		t.Errorf("told of %d connections and %d ends", h.up, h.down)
	}
}

// What comes of a snapshot may be looked at for longer than a client may be silent:
// mosquitto closes the connection then.
func TestSnapshotKeepAlive(t *testing.T) {
	for version, script := range map[byte]string{
		V5:   "accept\n< 10*\n> 20 03 01 00 00\n",
		V311: "accept\n< 10*\n> 20 02 01 00\n",
	} {
		d := newDialogue(t, Config{Version: version})
		d.play(script + "publish 1 k\n< 32*") // it is up
		up := d.conn
		ended := make(chan error, 1)
		go func() {
			ended <- d.s.Snapshot(t.Context(), []string{"a"}, func(*Message) error { return nil })
		}()
		d.play("accept\n< 10 .. 00 04 4d 51 54 54 " + map[byte]string{V5: "05 02 ff ff*", V311: "04 02 00 1e*"}[version] + "\nclose")
		if err := <-ended; err == nil {
			t.Error("a snapshot of a connection that was closed")
		}
		up.Close()
	}
}
