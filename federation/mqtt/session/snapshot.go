package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Snapshot gives fn each retained message that the broker has for the filters, over
// a connection of its own, at QoS 0. One that matches several filters may come several times. It ends with the
// first error: of fn, of the connection, or a *Refused of a filter. Whether all came
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
	if err == nil {
		c.sayGoodbye(codeSuccess)
	}
	return err
}

// collect subscribes to one filter after the other: a broker queues the answer to
// each, and drops what it has no room for.
func (s *Session) collect(c *conn, filters []string, fn func(*Message) error) error {
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
		if err := s.retained(c, filter, fn); err != nil {
			return err
		}
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

// retained reads up to the answer to the ping.
func (s *Session) retained(c *conn, filter string, fn func(*Message) error) error {
	granted := false
	for {
		if err := c.nc.SetReadDeadline(time.Now().Add(s.cfg.AckTimeout)); err != nil {
			return err
		}
		f, err := readFrame(c.r, s.cfg.MaxPacket)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		p, err := f.decode(c.enc.version)
		if err != nil {
			return err
		}
		switch p.kind {
		case typeSuback:
			if len(p.codes) != 1 {
				return breach(codeMalformed, "SUBACK with %d codes for one filter", len(p.codes))
			}
			if p.codes[0] >= codeUnspecified {
				return fmt.Errorf("topic filter %q: %w", filter, &Refused{What: "subscribe", Code: p.codes[0], Text: p.text})
			}
			granted = true
		case typePublish:
			// Without retain-as-published only what is retained has the flag.
			if p.message.Retain {
				if err := fn(p.message); err != nil {
					return err
				}
			}
		case typePingresp:
			if !granted {
				return breach(codeProtocol, "no SUBACK before the answer to a ping")
			}
			return nil
		case typeDisconnect:
			return &Refused{What: "connection", Code: p.code, Text: p.text}
		default:
			return breach(codeProtocol, "packet of type %d", p.kind)
		}
	}
}
