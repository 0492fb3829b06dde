package link

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/yggate/yggate/federation"
)

// OpenLane opens a stream for a lane of a peer. It returns
// federation.ErrPeerDown when the link is down, and is ready for use when the
// peer has accepted the lane. The stream ends with the link.
func (l *Links) OpenLane(ctx context.Context, peer federation.GridID, name string) (io.ReadWriteCloser, error) {
	s, err := l.session(ctx, peer)
	if err != nil {
		return nil, err
	}
	return s.open(ctx, "/v1/lane/"+url.PathEscape(name))
}

// session returns the live session with a peer, federation.ErrPeerDown when there
// is none.
func (l *Links) session(ctx context.Context, peer federation.GridID) (*session, error) {
	l.mu.Lock()
	o := l.outbound[peer]
	l.mu.Unlock()
	if o == nil {
		return nil, federation.ErrPeerDown
	}
	s, announced := o.live()
	if s == nil {
		return nil, federation.ErrPeerDown
	}
	// Event{Up: true} is being told: its hearers come first.
	select {
	case <-announced:
		return s, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// clientStream is the opening end of a stream: one request, whose body carries
// one direction and whose answer the other.
type clientStream struct {
	session *session
	cancel  context.CancelFunc
	up      *io.PipeWriter
	down    io.ReadCloser
	once    sync.Once
}

// open sends the request and waits for the head of its answer.
func (s *session) open(ctx context.Context, path string) (*clientStream, error) {
	body, up := io.Pipe()
	reqCtx, cancel := context.WithCancel(s.ctx)
	st := &clientStream{session: s, cancel: cancel, up: up}
	if !s.track(st) {
		cancel()
		return nil, federation.ErrPeerDown
	}
	stop := context.AfterFunc(ctx, cancel) // until there is an answer
	req, err := http.NewRequestWithContext(reqCtx, http.MethodPost, requestURL(path), body)
	if err != nil {
		st.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	res, err := s.cc.RoundTrip(req)
	if !stop() && err == nil {
		res.Body.Close()
		err = ctx.Err()
	}
	if err != nil {
		st.Close()
		if s.ctx.Err() != nil {
			return nil, fmt.Errorf("open %s: %w", path, federation.ErrPeerDown)
		}
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		text := refusalText(res)
		res.Body.Close()
		st.Close()
		return nil, fmt.Errorf("open %s: %w: %s", path, errRefused, text)
	}
	s.mu.Lock()
	st.down = res.Body
	ended := s.ended
	s.mu.Unlock()
	if ended {
		st.Close()
		return nil, federation.ErrPeerDown
	}
	return st, nil
}

func (s *session) track(st *clientStream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.streams[st] = struct{}{}
	return true
}

func (st *clientStream) Read(p []byte) (int, error) { return st.down.Read(p) }

func (st *clientStream) Write(p []byte) (int, error) { return st.up.Write(p) }

// Close ends both directions; what was written has been handed to HTTP/2, and
// may not arrive.
func (st *clientStream) Close() error {
	st.fail(io.ErrClosedPipe)
	st.session.mu.Lock()
	delete(st.session.streams, st)
	st.session.mu.Unlock()
	return nil
}

// fail makes reads and writes return an error from now on.
func (st *clientStream) fail(cause error) {
	st.once.Do(func() {
		st.up.CloseWithError(cause)
		st.cancel()
		st.session.mu.Lock()
		down := st.down
		st.session.mu.Unlock()
		if down != nil {
			down.Close()
		}
	})
}
