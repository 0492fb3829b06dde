package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

// Snapshot gives fn each retained message that the broker has for the filters, over
// a connection of its own, at QoS 0. One that matches several filters may come several
// times. It ends with the first error of fn or of the connection. Filters that the
// broker refuses keep it from no other; the error is an *Unread then. Whether all came
// is known by the answer to a ping behind the subscriptions: a broker works in order.
func (s *Session) Snapshot(ctx context.Context, filters []string, fn func(*Message) error) error {
	for _, f := range filters {
		if err := CheckFilter(f); err != nil {
			return fmt.Errorf("snapshot: topic filter %q: %w", f, err)
		}
	}
	if len(filters) == 0 {
		return nil
	}
	if err := s.snapshot(ctx, filters, fn); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

func (s *Session) snapshot(ctx context.Context, filters []string, fn func(*Message) error) error {
	s.mu.Lock()
	version := s.info.Version
	s.unlock()
	if version == 0 {
		return ErrDown
	}
	select { // one at a time: a second connection with the client id would end the first
	case s.snapshots <- struct{}{}:
		defer func() { <-s.snapshots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	cfg := s.cfg
	if version == V5 {
		// fn may take its time, and nothing is said meanwhile. One of 3.1.1 may refuse what
		// is longer than it likes.
		cfg.KeepAlive = math.MaxUint16 * time.Second
	}
	connectCtx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	c, _, err := cfg.shake(connectCtx, version, identity{clientID: cfg.ClientID + "-snapshot", clean: true})
	cancel()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.close(context.Cause(ctx)) })
	defer stop()
	defer c.close(nil)
	err = s.collect(c, filters, fn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if unread := (*Unread)(nil); err == nil || errors.As(err, &unread) {
		c.sayGoodbye(codeSuccess)
	}
	return err
}

// collect subscribes to one filter after the other: a broker queues the answer to
// each, and drops what it has no room for.
func (s *Session) collect(c *conn, filters []string, fn func(*Message) error) error {
	var unread Unread
	for i, filter := range filters {
		var buf bytes.Buffer
		e := encoder{c.enc.version, &buf}
		if err := e.subscribe(uint16(i%allIDs+1), []Subscription{{Filter: filter}}); err != nil {
			return err
		}
		e.ping()
		if err := s.tell(c, buf.Bytes()); err != nil {
			return err
		}
		no, err := s.retained(c, fn)
		if err != nil {
			return err
		}
		if no != nil {
			unread.Filters = append(unread.Filters, filter)
			unread.Err = errors.Join(unread.Err, fmt.Errorf("topic filter %q: %w", filter, no))
		}
	}
	if unread.Err != nil {
		return &unread
	}
	return nil
}

func (s *Session) tell(c *conn, b []byte) error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.nc.Write(b)
	return err
}

// retained reads up to the answer to the ping; no is that to the subscription, if the
// broker does not take it.
func (s *Session) retained(c *conn, fn func(*Message) error) (no *Refused, err error) {
	answered := false
	for {
		if err := c.nc.SetReadDeadline(time.Now().Add(s.cfg.AckTimeout)); err != nil {
			return nil, err
		}
		f, err := readFrame(c.r, s.cfg.MaxPacket)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		p, err := f.decode(c.enc.version)
		if err != nil {
			return nil, err
		}
		switch p.kind {
		case typeSuback:
			if len(p.codes) != 1 {
				return nil, breach(codeMalformed, "SUBACK with %d codes for one filter", len(p.codes))
			}
			if p.codes[0] >= codeUnspecified {
				no = &Refused{What: "subscribe", Code: p.codes[0], Text: p.text}
			}
			answered = true
		case typePublish:
			// Without retain-as-published only what is retained has the flag.
			if p.message.Retain {
				if err := fn(p.message); err != nil {
					return nil, err
				}
			}
		case typePingresp:
			if !answered {
				return nil, breach(codeProtocol, "no SUBACK before the answer to a ping")
			}
			return no, nil
		case typeDisconnect:
			return nil, &Refused{What: "connection", Code: p.code, Text: p.text}
		default:
			return nil, breach(codeProtocol, "packet of type %d", p.kind)
		}
	}
}
