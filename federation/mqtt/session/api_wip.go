package session

import "context"

// Session is a session with a broker. It is safe for concurrent use.
type Session struct{}

// New prepares a session; Run connects it. It reads the Journal.
func New(ctx context.Context, cfg Config) (*Session, error) { panic("wip") }

// Run keeps the session connected until ctx ends, which is no error. On the way
// out it takes leave of the broker, which then publishes no will.
func (s *Session) Run(ctx context.Context) error { panic("wip") }

// Send queues a message for the broker. It blocks while the queue is full, and
// returns ctx's error when that ends before there is room; then done is not called.
// Otherwise done is called once, and must not block: with nil when the broker has
// the message (QoS 0: it is written; 1: PUBACK; 2: PUBCOMP), a *Refused when the
// broker does not take it, ErrDown for QoS 0 without a connection, ErrClosed at the
// end of Run. Messages of one QoS are sent in the order of the calls, also after
// the connection was lost.
//
// At QoS 2 key identifies the message, in this and later lives of the process: once
// Send was called with a key, it must be called again with it until done was called
// with nil or a *Refused, or the packet id is never free again (see Begun). A message
// with a key of one that was completed lately is not sent again; done is called with
// nil. A key may be empty at QoS 0 and 1.
func (s *Session) Send(ctx context.Context, key string, m *Message, done func(error)) error {
	panic("wip")
}

// Publish is Send and the wait for its end. When ctx ends first the message may
// have been sent, and may still be: with the same key that goes on where it stands.
func (s *Session) Publish(ctx context.Context, key string, m *Message) error { panic("wip") }

// Begun says whether the message of a key may have been sent at QoS 2 and is not
// completed: it then must be sent again, not dropped.
func (s *Session) Begun(key string) bool { panic("wip") }

// SetSubscriptions sets what the session is to be subscribed to, in place of what
// was set before. It takes effect at once or with the next connection, and lasts.
// It fails for a filter that no broker would take.
func (s *Session) SetSubscriptions(subs []Subscription) error { panic("wip") }

// Snapshot gives fn each retained message that matches a filter, over a connection
// of its own. One that matches several filters may come several times. It ends with
// fn's error, and with one if the broker refuses a filter.
func (s *Session) Snapshot(ctx context.Context, filters []string, fn func(*Message) error) error {
	panic("wip")
}

// Status returns how the session stands.
func (s *Session) Status() Status { panic("wip") }
