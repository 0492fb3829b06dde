package lane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
)

// DefaultWindow is how many bytes of unacknowledged items a Memory holds for one
// peer where its configuration does not say.
const DefaultWindow = 4 << 20

// MemoryConfig is what a Memory works with.
type MemoryConfig struct {
	// Streams opens the stream to a peer.
	Streams Streams
	// Handlers read what peers send and take back what they did not take.
	Handlers map[federation.Protocol]Handler
	// Directory says what each peer may send, now.
	Directory *federation.Directory
	// Window bounds the unacknowledged items of one peer: the bytes of their
	// bodies, ids and conversations and 512 for each item. 0: DefaultWindow.
	Window int64
	Log    *slog.Logger
	// Metrics takes the lane's metrics; nil for none.
	Metrics prometheus.Registerer
}

// Memory carries items on the lane Eph. It keeps nothing: what a peer has not
// acknowledged when its stream ends goes back to the Handler.
type Memory struct {
	cfg     MemoryConfig
	metrics *metrics
	ctx     context.Context // done when Run ends
	stop    context.CancelFunc

	mu       sync.RWMutex
	closed   bool
	sessions map[federation.GridID]*session
	budgets  map[federation.GridID]*budget
}

var _ Sender = (*Memory)(nil)

// NewMemory returns a Memory without peers; PeerUp brings them.
func NewMemory(cfg MemoryConfig) *Memory {
	if cfg.Window <= 0 {
		cfg.Window = DefaultWindow
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Memory{
		cfg:      cfg,
		sessions: map[federation.GridID]*session{},
		budgets:  map[federation.GridID]*budget{},
	}
	m.metrics = newMetrics(cfg.Metrics, m)
	m.ctx, m.stop = context.WithCancel(context.Background())
	return m
}

// Run works until ctx is done, then ends every stream, gives back what is
// unacknowledged and returns nil.
func (m *Memory) Run(ctx context.Context) error {
	<-ctx.Done()
	m.stop()
	m.mu.Lock()
	m.closed = true
	sessions := m.sessions
	m.sessions = map[federation.GridID]*session{}
	m.mu.Unlock()
	for _, s := range sessions {
		<-s.done
	}
	return nil
}

// PeerUp starts the lane to a peer whose link is up. It does not wait for the
// stream: what is sent meanwhile waits for it.
func (m *Memory) PeerUp(peer federation.GridID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.sessions[peer] != nil {
		return
	}
	p := m.cfg.Directory.Now().Peer(peer)
	if p == nil {
		return // removed since
	}
	s := newSession(m, p)
	m.sessions[peer] = s
	go s.run()
}

// PeerDown ends the lane to a peer whose link went down. It returns when
// everything unacknowledged has been given back; from then on Send fails until
// the next PeerUp.
func (m *Memory) PeerDown(peer federation.GridID) {
	m.mu.Lock()
	s := m.sessions[peer]
	delete(m.sessions, peer)
	m.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.done
	}
}

// Send implements Sender for the lane Eph.
func (m *Memory) Send(ctx context.Context, peer federation.GridID, lane Name, items ...Item) error {
	if lane != Eph {
		return fmt.Errorf("send on lane %q: %w", lane, ErrUnknownLane)
	}
	for i := range items {
		if err := m.checkItem(&items[i]); err != nil {
			return fmt.Errorf("send on lane %q: %w", lane, err)
		}
	}
	m.mu.RLock()
	s := m.sessions[peer]
	m.mu.RUnlock()
	if s == nil {
		return federation.ErrPeerDown
	}
	w := s.window.Load()
	if w == nil {
		return federation.ErrPeerDown
	}
	return w.put(ctx, items)
}

// ErrItem is wrapped by the error for an item that no lane would carry.
var ErrItem = errors.New("item cannot be sent")

func (m *Memory) checkItem(it *Item) error {
	if m.cfg.Handlers[it.Kind] == nil {
		return fmt.Errorf("%w: no handler for kind %q", ErrItem, it.Kind)
	}
	return checkItem(it)
}

// checkItem enforces what holds on every lane.
func checkItem(it *Item) error {
	switch {
	case kindNumber[it.Kind] == 0:
		return fmt.Errorf("%w: kind %q has no number on the wire", ErrItem, it.Kind)
	case len(it.Body) > MaxBody:
		return fmt.Errorf("%w: body of %d bytes, at most %d", ErrItem, len(it.Body), MaxBody)
	case len(it.ID) > MaxID:
		return fmt.Errorf("%w: id of %d bytes, at most %d", ErrItem, len(it.ID), MaxID)
	case len(it.Conv) > MaxConv:
		return fmt.Errorf("%w: conversation of %d bytes, at most %d", ErrItem, len(it.Conv), MaxConv)
	case !utf8.ValidString(it.Conv):
		// The peer's decoder would end the stream over it, with all that is on it.
		return fmt.Errorf("%w: conversation is not UTF-8", ErrItem)
	}
	return nil
}
