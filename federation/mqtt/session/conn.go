package session

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a connection with the broker, after the handshake.
type conn struct {
	nc        net.Conn
	r         *bufio.Reader
	keepAlive time.Duration
	maxPacket uint32 // of the broker's; 0: any

	heard  atomic.Int64 // when the broker was last heard, Unix nanoseconds
	said   atomic.Int64 // when something was last written
	pinged atomic.Int64 // when a ping was sent that was not answered, or 0
	paused atomic.Bool  // it is not read, so that silence means nothing
	// resumed is when it was last read again: acknowledgements may lie there since.
	resumed atomic.Int64

	// in and subs are held by the session's lock.
	in   connIn
	subs connSubs

	wmu  sync.Mutex
	enc  encoder // writes into buf
	buf  bytes.Buffer
	wake chan struct{}
	less chan struct{} // closed and replaced when buf was emptied, closed for good at the end

	once sync.Once
	gone chan struct{} // closed at the end
	why  error
}

// writeTimeout is how long the broker may take no byte.
const writeTimeout = 30 * time.Second

// send puts a packet into the queue of the writer.
func (c *conn) send(fn func(encoder) error) error {
	c.wmu.Lock()
	err := fn(c.enc)
	c.wmu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return err
}

func (c *conn) answer(kind byte, id uint16, code byte) {
	_ = c.send(func(e encoder) error { e.answer(kind, id, code); return nil }) // there is no error in it
}

// crowded returns, while more bytes than most wait for the writer, what is closed when
// less do, or when the connection ends; else nil.
func (c *conn) crowded(most int) <-chan struct{} {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.buf.Len() <= most {
		return nil
	}
	return c.less
}

func (c *conn) tellDrained() {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if !c.ended() {
		close(c.less)
		c.less = make(chan struct{})
	}
}

// write writes what is queued, all there is at a time.
func (c *conn) write() {
	var spare bytes.Buffer
	for {
		select {
		case <-c.wake:
		case <-c.gone:
			return
		}
		c.wmu.Lock()
		c.buf, spare = spare, c.buf
		c.wmu.Unlock()
		if spare.Len() == 0 {
			continue
		}
		err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err == nil {
			_, err = c.nc.Write(spare.Bytes())
		}
		if err != nil {
			c.close(fmt.Errorf("write: %w", err))
			return
		}
		c.said.Store(time.Now().UnixNano())
		c.tellDrained()
		if spare.Reset(); spare.Cap() > 1<<20 {
			spare = bytes.Buffer{}
		}
	}
}

// sayGoodbye writes DISCONNECT, if that goes at once.
func (c *conn) sayGoodbye(code byte) {
	var buf bytes.Buffer
	encoder{c.enc.version, &buf}.disconnect(code)
	if c.nc.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		_, _ = c.nc.Write(buf.Bytes()) // the connection ends either way
	}
}

// leave takes leave of the broker and closes the connection.
func (c *conn) leave(code byte, err error) {
	c.end(err, func() { c.sayGoodbye(code) })
}

// close closes the connection. The first reason stands.
func (c *conn) close(err error) { c.end(err, func() {}) }

func (c *conn) end(err error, before func()) {
	c.once.Do(func() {
		c.why = err
		before()
		_ = c.nc.Close() // nothing more is read or written
		c.wmu.Lock()
		defer c.wmu.Unlock()
		close(c.gone)
		close(c.less)
	})
}

func (c *conn) ended() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

func (c *conn) reason() error {
	<-c.gone
	return c.why
}

// watch keeps the connection alive and finds that it is dead, or that the broker
// does not acknowledge.
func (s *Session) watch(c *conn) {
	step := max(min(c.keepAlive/8, s.cfg.AckTimeout/8), 5*time.Millisecond)
	if c.keepAlive == 0 {
		step = s.cfg.AckTimeout / 8
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		select {
		case <-c.gone:
			return
		case now := <-tick.C:
			if err := s.inspect(c, now); err != nil {
				c.leave(codeUnspecified, err)
				return
			}
		}
	}
}

func (s *Session) inspect(c *conn, now time.Time) error {
	if s.overdue(c, now) {
		return fmt.Errorf("the broker has not acknowledged a message within %v", s.cfg.AckTimeout)
	}
	s.askAgain(c, now)
	s.disown(c, now)
	if c.keepAlive == 0 {
		return nil
	}
	paused, at := c.paused.Load(), c.pinged.Load() // in this order: gate sets them the other way round
	if at != 0 && !paused {
		if now.Sub(time.Unix(0, at)) > c.keepAlive/2 {
			return errors.New("the broker does not answer pings")
		}
		return nil
	}
	// Half the time, so that a ping and its answer fit into it.
	quiet := func(at int64) bool { return now.Sub(time.Unix(0, at)) >= c.keepAlive/2 }
	// While nothing is read the answer is not seen; the broker is to hear of us all the same.
	if quiet(c.said.Load()) || !paused && quiet(c.heard.Load()) {
		c.pinged.Store(now.UnixNano())
		return c.send(func(e encoder) error { e.ping(); return nil })
	}
	return nil
}
