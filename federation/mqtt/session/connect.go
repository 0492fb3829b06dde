package session

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// connect dials and shakes hands, with MQTT 3.1.1 if the broker knows no other.
func (s *Session) connect(ctx context.Context) (*conn, *connack, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	defer cancel()
	s.mu.Lock()
	// Without a journal it is not known which packet ids the broker still holds
	// from before, and it would take a new message with one of them for a repeat.
	fresh := s.in.life == nil
	spoke5, spoke3 := s.info.Version == V5, s.info.Version == V311
	s.unlock()
	for left := closedTries; s.cfg.Version != V311; left-- {
		c, a, err := s.cfg.persistent(ctx, V5, fresh)
		if err == nil || s.cfg.Version == V5 || !otherVersion(err, spoke5) {
			return c, a, err
		}
		if left == 1 || !errors.Is(err, errNoAnswer) || spoke3 {
			break
		}
		select {
		case <-time.After(closedPause):
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	return s.cfg.persistent(ctx, V311, fresh)
}

// A broker that closes the connection may only be starting. It is asked so often for
// MQTT 5, with pauses, before it is taken for one that does not know it.
const (
	closedTries = 3
	closedPause = 200 * time.Millisecond
)

// persistent connects to the session that lasts. A fresh one is made with two
// connections: the first has the broker forget what it has. With one clean start
// alone the session would end with its connection in MQTT 3.1.1, and mosquitto (2.0.11)
// would not write it to disk with MQTT 5 either.
func (cfg *Config) persistent(ctx context.Context, version byte, fresh bool) (*conn, *connack, error) {
	if fresh {
		c, _, err := cfg.shake(ctx, version, identity{clientID: cfg.ClientID, clean: true})
		if err != nil {
			return nil, nil, err
		}
		c.sayGoodbye(codeSuccess)
		c.close(nil)
	}
	return cfg.shake(ctx, version, identity{clientID: cfg.ClientID, keep: true, will: cfg.Will})
}

// errNoAnswer: the broker closed the connection in answer to CONNECT.
var errNoAnswer = errors.New("the broker closed the connection in answer to CONNECT")

// otherVersion says whether a broker may not know MQTT 5. Some only close the
// connection; one that spoke it before has another reason.
func otherVersion(err error, spoke5 bool) bool {
	var r *Refused
	if errors.As(err, &r) {
		return r.Code == codeVersion
	}
	return errors.Is(err, errNoAnswer) && !spoke5
}

// identity is as whom to connect.
type identity struct {
	clientID string
	clean    bool // the broker is to forget the session of before
	keep     bool // and is to keep this one when the connection ends
	will     *Message
}

// shake makes a connection and sends CONNECT.
func (cfg *Config) shake(ctx context.Context, version byte, as identity) (*conn, *connack, error) {
	nc, err := cfg.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	c := newConn(nc, version)
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	a, err := cfg.handshake(c, as)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.close(err)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, nil, err
	}
	c.keepAlive = cfg.KeepAlive
	if a.keepAlive != nil {
		c.keepAlive = time.Duration(*a.keepAlive) * time.Second
	}
	c.maxPacket = a.maxPacket
	return c, a, nil
}

func (cfg *Config) dial(ctx context.Context) (net.Conn, error) {
	nc, err := cfg.Dial(ctx, "tcp", cfg.Addr)
	if err != nil || cfg.TLS == nil {
		return nc, err
	}
	conf := cfg.TLS.Clone()
	if conf.ServerName == "" {
		if conf.ServerName, _, err = net.SplitHostPort(cfg.Addr); err != nil {
			return nil, errors.Join(err, nc.Close())
		}
	}
	tc := tls.Client(nc, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS: %w", err), nc.Close())
	}
	return tc, nil
}

func (cfg *Config) handshake(c *conn, as identity) (*connack, error) {
	var buf bytes.Buffer
	if err := (encoder{c.enc.version, &buf}).connect(cfg, as); err != nil {
		return nil, err
	}
	if _, err := c.nc.Write(buf.Bytes()); err != nil {
		return nil, ended(err)
	}
	f, err := readFrame(c.r, cfg.MaxPacket)
	if err != nil {
		return nil, ended(err)
	}
	if f.kind != typeConnack {
		return nil, breach(codeProtocol, "packet of type %d in answer to CONNECT", f.kind)
	}
	version := c.enc.version
	if f.looksLike3() { // a broker that does not know MQTT 5 says so in its own way
		version = V311
	}
	p, err := f.decode(version)
	if err != nil {
		return nil, err
	}
	if p.code != codeSuccess {
		return nil, &Refused{What: "connect", Code: p.code, Text: p.text}
	}
	if version != c.enc.version {
		return nil, &Refused{What: "connect", Code: codeVersion, Text: "answered as MQTT 3.1.1 does"}
	}
	if as.clean && p.connack.present {
		return nil, breach(codeProtocol, "a session is present though a clean start was asked for")
	}
	return p.connack, nil
}

// ended makes errNoAnswer of the ways in which a connection ends.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("%w (%w)", errNoAnswer, err)
	}
	return err
}

func newConn(nc net.Conn, version byte) *conn {
	c := &conn{nc: nc, r: bufio.NewReaderSize(nc, 64<<10), wake: make(chan struct{}, 1), less: make(chan struct{}), gone: make(chan struct{})}
	c.heard.Store(time.Now().UnixNano())
	c.said.Store(time.Now().UnixNano())
	c.enc = encoder{version: version, buf: &c.buf}
	return c
}
