package session

import (
	"errors"
	"fmt"
)

var (
	// ErrDown: there is no connection to the broker, which a message at QoS 0 does
	// not wait for.
	ErrDown = errors.New("the broker is not connected")
	// ErrClosed: Run has ended.
	ErrClosed = errors.New("the session with the broker has ended")
)

// Refused is a broker's no.
type Refused struct {
	// What was refused: "connect", "publish", "subscribe".
	What string
	// Code is a reason code of MQTT 5 §2.4. What 3.1.1 says is translated.
	Code byte
	// Text is what the broker said about it, for people; often empty.
	Text string
}

func (r *Refused) Error() string {
	s := fmt.Sprintf("%s: the broker refused: %s (0x%02x)", r.What, reason(r.Code), r.Code)
	if r.Text != "" {
		s += fmt.Sprintf(": %q", r.Text)
	}
	return s
}

// Unread says that the broker did not show what it retains below some filters.
type Unread struct {
	Filters []string
	// Err is why: a *Refused for each.
	Err error
}

func (u *Unread) Error() string { return u.Err.Error() }
func (u *Unread) Unwrap() error { return u.Err }

// Permanent says that the same message would be refused again, however often.
func (r *Refused) Permanent() bool {
	switch r.Code {
	case codeNotAuthorized, codeTopicInvalid, codeTooLarge, codePayloadInvalid, codeRetain, codeFilterInvalid:
		return true
	}
	return false
}

// Reason codes that are used or explained here (MQTT 5 §2.4).
const (
	codeSuccess        byte = 0x00
	codeUnspecified    byte = 0x80
	codeMalformed      byte = 0x81
	codeProtocol       byte = 0x82
	codeVersion        byte = 0x84
	codeClientID       byte = 0x85
	codePassword       byte = 0x86
	codeNotAuthorized  byte = 0x87
	codeUnavailable    byte = 0x88
	codeFilterInvalid  byte = 0x8f
	codeTopicInvalid   byte = 0x90
	codeTakenOver      byte = 0x8e
	codeIDUnknown      byte = 0x92
	codeAlias          byte = 0x94
	codeTooLarge       byte = 0x95
	codeQuota          byte = 0x97
	codePayloadInvalid byte = 0x99
	codeRetain         byte = 0x9a
	codeQoS            byte = 0x9b
	codeShared         byte = 0x9e
)

var reasons = map[byte]string{
	0x00: "success", 0x04: "disconnect with will", 0x80: "unspecified error", 0x81: "malformed packet", 0x82: "protocol error",
	0x83: "implementation specific error", 0x84: "unsupported protocol version", 0x85: "client identifier not valid",
	0x86: "bad user name or password", 0x87: "not authorized", 0x88: "server unavailable", 0x89: "server busy", 0x8a: "banned",
	0x8b: "server shutting down", 0x8c: "bad authentication method", 0x8d: "keep alive timeout", 0x8e: "session taken over",
	0x8f: "topic filter invalid", 0x90: "topic name invalid", 0x91: "packet identifier in use", 0x92: "packet identifier not found",
	0x93: "receive maximum exceeded", 0x94: "topic alias invalid", 0x95: "packet too large", 0x96: "message rate too high",
	0x97: "quota exceeded", 0x98: "administrative action", 0x99: "payload format invalid", 0x9a: "retain not supported",
	0x9b: "QoS not supported", 0x9c: "use another server", 0x9d: "server moved", 0x9e: "shared subscriptions not supported",
	0x9f: "connection rate exceeded", 0xa0: "maximum connect time", 0xa1: "subscription identifiers not supported",
	0xa2: "wildcard subscriptions not supported",
}

func reason(code byte) string {
	if s := reasons[code]; s != "" {
		return s
	}
	return "unknown reason"
}

// protocolError is what the broker did wrong. The connection ends with its code.
type protocolError struct {
	code byte
	text string
}

func (e *protocolError) Error() string { return fmt.Sprintf("%s: %s", reason(e.code), e.text) }

func breach(code byte, format string, args ...any) error {
	return &protocolError{code, fmt.Sprintf(format, args...)}
}
