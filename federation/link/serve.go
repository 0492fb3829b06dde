package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/transports"
)

// UnknownPaths are what a grid key without an active peer reaches. The
// RemoteAddr of all requests is the authenticated transports.Addr.
var UnknownPaths = []string{"POST /v1/pair", "POST /v1/descriptor"}

type (
	inboundKey struct{}
	peerKey    struct{}
)

// PeerFrom returns the active peer that a request comes from, nil on
// UnknownPaths when it comes from an unknown grid key.
func PeerFrom(ctx context.Context) *federation.Peer {
	p, _ := ctx.Value(peerKey{}).(*federation.Peer)
	return p
}

// ProofFrom returns what the far end of a request has proven, and its
// authenticated node address.
func ProofFrom(ctx context.Context) (proof federation.Proof, remote transports.Addr, ok bool) {
	in, ok := ctx.Value(inboundKey{}).(*inbound)
	if !ok {
		return proof, remote, false
	}
	return in.proof, in.remote, true
}

// servePeer serves a connection that an active peer has opened.
func (l *Links) servePeer(w http.ResponseWriter, r *http.Request) {
	in := r.Context().Value(inboundKey{}).(*inbound)
	r.RemoteAddr = in.remote.String()
	// The connection is closed soon after a peer stops being active; no request
	// gets through in between.
	p := l.cfg.Directory.Now().Peer(in.peer)
	if p == nil || p.State != federation.StateActive || !sameKey(in.proof, p.Key) {
		http.Error(w, "this gateway has not approved your grid key", http.StatusForbidden)
		return
	}
	l.heard(p.ID)
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, p))
	switch live := strings.HasPrefix(r.URL.Path, livePrefix); {
	case live != in.live:
		// Lanes and hellos must not wait behind bodies.
		http.Error(w, "live requests have a connection of their own, and it carries nothing else", http.StatusMisdirectedRequest)
	case live:
		l.serveLive(w, r)
	default:
		l.mux.ServeHTTP(w, r)
	}
}

// serveUnknown serves a connection of any other grid key.
func (l *Links) serveUnknown(w http.ResponseWriter, r *http.Request) {
	r.RemoteAddr = r.Context().Value(inboundKey{}).(*inbound).remote.String()
	if l.cfg.Unknown != nil && slices.Contains(UnknownPaths, r.Method+" "+r.URL.Path) {
		r.Body = http.MaxBytesReader(w, r.Body, unknownBody)
		l.cfg.Unknown.ServeHTTP(w, r)
		return
	}
	l.metrics.refused.WithLabelValues("unknown_grid").Inc()
	key := federation.NewGridID(r.Context().Value(inboundKey{}).(*inbound).proof.Key)
	if p := l.cfg.Directory.Now().Peer(key); p != nil && p.State == federation.StatePaused {
		http.Error(w, "the operator of this gateway has paused your grid", http.StatusForbidden)
		return
	}
	http.Error(w, "this gateway has not approved your grid key: its operator can pair with `yggate invite`, "+
		"or approve with `yggate peer approve`", http.StatusForbidden)
}

// Hello is what each gateway tells the other of itself, as request and answer of
// POST /v1/hello. Unknown members are ignored.
type Hello struct {
	Versions []int  `json:"versions"`
	Epoch    uint64 `json:"epoch"`
	Software string `json:"software,omitempty"`
	// Clock is the sender's, in Unix milliseconds.
	Clock  int64       `json:"clock"`
	Limits HelloLimits `json:"limits"`
	Lanes  []string    `json:"lanes"`
}

// HelloLimits are what the sender lets the other do.
type HelloLimits struct {
	Streams           int     `json:"streams"`
	MessagesPerSecond float64 `json:"messages_per_second"`
	BytesPerSecond    int64   `json:"bytes_per_second"`
}

// version is the only one of the link's protocol so far.
const version = 1

const maxHello = 16 << 10

func (l *Links) hello(p *federation.Peer) *Hello {
	lim := p.Policy.Limits
	return &Hello{
		Versions: []int{version}, Epoch: l.cfg.Epoch, Software: l.cfg.Software,
		Clock: time.Now().UnixMilli(), Lanes: l.cfg.Lanes,
		Limits: HelloLimits{streamsOf(lim), lim.MessagesPerSecond, lim.BytesPerSecond},
	}
}

// readHello reads and checks what the far end says.
func readHello(body io.Reader) (*Hello, error) {
	raw, err := io.ReadAll(io.LimitReader(body, maxHello+1))
	if err != nil {
		return nil, fmt.Errorf("read hello: %w", err)
	}
	h := new(Hello)
	switch {
	case len(raw) > maxHello:
		return nil, fmt.Errorf("read hello: more than %d bytes", maxHello)
	default:
		if err := json.Unmarshal(raw, h); err != nil {
			return nil, fmt.Errorf("read hello: %w", err)
		}
	}
	if !slices.Contains(h.Versions, version) {
		return nil, fmt.Errorf("read hello: the peer speaks link versions %v, this yggate %d; upgrade the older side", h.Versions, version)
	}
	if h.Epoch == 0 {
		return nil, errors.New("read hello: no epoch")
	}
	return h, nil
}

// serveHello answers a peer's hello.
func (l *Links) serveHello(w http.ResponseWriter, r *http.Request) {
	p := PeerFrom(r.Context())
	in := r.Context().Value(inboundKey{}).(*inbound)
	h, err := readHello(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if highest := l.noteEpoch(p.ID, in.proof.Node, h.Epoch); h.Epoch < highest {
		http.Error(w, fmt.Sprintf("epoch %d is past: this node has already said %d; two gateways run with one node key, "+
			"or a clock went back", h.Epoch, highest), http.StatusConflict)
		return
	}
	l.mu.Lock()
	in.greeted = true
	l.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(l.hello(p)); err != nil {
		l.log.Debug("answer hello", "peer", p.Name, "err", err)
	}
}

// noteEpoch remembers the highest epoch of a peer's node and returns it. A
// higher one than before means that the node has restarted: an outbound
// connection to what it was is cut now, rather than when it is found dead. A grid may
// make as many nodes as it likes; of too many the one that started first is forgotten.
func (l *Links) noteEpoch(peer federation.GridID, node federation.Hash, epoch uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	heard := l.epochs[peer]
	if heard == nil {
		heard = map[federation.Hash]uint64{}
		l.epochs[peer] = heard
	}
	highest, known := heard[node]
	if known && epoch <= highest {
		return highest
	}
	if !known && len(heard) >= maxEpochs {
		first := node
		for n, e := range heard {
			if first == node || e < heard[first] {
				first = n
			}
		}
		delete(heard, first)
	}
	heard[node] = epoch
	if o := l.outbound[peer]; o != nil {
		o.restarted(node, epoch)
	}
	return epoch
}

// serveLane hands the stream of a lane to whoever works lanes.
func (l *Links) serveLane(w http.ResponseWriter, r *http.Request) {
	p, name := PeerFrom(r.Context()), r.PathValue("lane")
	if !slices.Contains(l.cfg.Lanes, name) {
		http.Error(w, "this gateway has no such lane", http.StatusNotFound)
		return
	}
	s := &serverStream{body: r.Body, w: w, rc: http.NewResponseController(w)}
	defer s.end()
	if err := s.rc.EnableFullDuplex(); err != nil {
		http.Error(w, "full duplex streams need HTTP/2", http.StatusHTTPVersionNotSupported)
		return
	}
	w.WriteHeader(http.StatusOK)
	if err := s.rc.Flush(); err != nil {
		return // the connection is gone
	}
	if err := l.cfg.ServeLane(r.Context(), p, name, s); err != nil && r.Context().Err() == nil {
		l.log.Info("lane stream ended", "peer", p.Name, "lane", name, "dir", "in", "err", err)
	}
}

// serverStream is the accepting end of a lane stream. One goroutine may read and
// one write at a time; Close wakes both.
type serverStream struct {
	body    io.ReadCloser
	w       io.Writer
	rc      *http.ResponseController
	writing atomic.Bool

	mu     sync.Mutex
	closed bool
}

func (s *serverStream) Read(p []byte) (int, error) { return s.body.Read(p) }

func (s *serverStream) Write(p []byte) (int, error) {
	s.writing.Store(true)
	defer s.writing.Store(false)
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return 0, io.ErrClosedPipe
	}
	n, err := s.w.Write(p)
	if err == nil {
		err = s.rc.Flush()
	}
	return n, err
}

func (s *serverStream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.writing.Load() {
		// It may wait for a window that the far end does not open; this resets
		// the stream.
		if err := s.rc.SetWriteDeadline(time.Now()); err != nil {
			return fmt.Errorf("close stream: %w", err)
		}
	}
	return s.body.Close()
}

// end makes a late Close harmless: the ResponseController must not be used after
// the handler has returned.
func (s *serverStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}
