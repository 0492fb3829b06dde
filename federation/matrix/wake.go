package matrix

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/yggate/yggate/federation"
)

// Homeservers back off from a server that fails, for hours in the end, and neither
// the standard nor any homeserver has a way to tell them that it is back. But all
// of them take a validly signed request from a server as the proof that it is
// there, forget the backoff and send what waits. So when a link comes up each
// gateway has its own homeserver make one: a client that is not logged in asks it
// for a room alias of the peer's, which homeservers look up at once, backoff or
// not. Dendrite is woken by the lookup of the other side, Synapse by that and by the
// success of its own, for which the answer of the far side, that there is no such
// alias, becomes a success here.

const (
	// wakePrefix begins the localpart of the aliases that are looked up. The rest is
	// random, so that nobody else can have the answers that are for the gateway.
	wakePrefix = "yggate-wake-"
	// wakeTimes is how often a server is woken when the link comes up, wakeAgain
	// after the last time: Dendrite heeds one request a minute of each server.
	wakeTimes = 2
	wakeAgain = 65 * time.Second
	// After a failure the next lookup waits, twice as long each time; not while it is
	// the own homeserver that is away.
	wakeMin = time.Second
	wakeMax = time.Minute
	// troublePause is how long a server that failed is left alone before it is asked
	// whether it is back.
	troublePause = 5 * time.Second
	// lookupPatience is how long one lookup may take.
	lookupPatience = time.Minute
	// lookups is how many are made at once, of all peers.
	lookups = 4
	// upPatience is how long a wake of a peer may wait for this side's link to it.
	upPatience = 10 * time.Second
)

// wakes has the homeserver speak to those of peers whose link has come up.
type wakes struct {
	o      *outbound
	server *url.URL
	client *http.Client
	token  string
	places *semaphore.Weighted
	pace   pace

	mu    sync.Mutex
	peers map[federation.GridID]*wake // whose link is up
	ups   chan struct{}               // closed and replaced when one comes up
	start func(*wake)                 // nil while run is not running
}

// pace is how fast wakes go; tests do not wait for minutes.
type pace struct{ min, max, again, trouble, up time.Duration }

func newWakes(o *outbound) *wakes {
	t := &http.Transport{ // no proxy: the homeserver is the operator's own
		MaxConnsPerHost: lookups, IdleConnTimeout: time.Minute, ResponseHeaderTimeout: lookupPatience,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &wakes{
		o: o, server: o.cfg.Server, token: strings.ToLower(rand.Text()),
		client: &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		places: semaphore.NewWeighted(lookups), pace: pace{wakeMin, wakeMax, wakeAgain, troublePause, upPatience},
		peers: map[federation.GridID]*wake{}, ups: make(chan struct{}),
	}
}

// PeerUp says that the link to a peer is up: requests can be carried to it. It does
// not block.
func (a *Adapter) PeerUp(peer federation.GridID) { a.out.wakes.up(peer) }

// PeerDown says that it is down.
func (a *Adapter) PeerDown(peer federation.GridID) { a.out.wakes.down(peer) }

func (w *wakes) up(peer federation.GridID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.peers[peer] != nil {
		return
	}
	k := &wake{w: w, peer: peer, names: map[string]*waking{}, poke: make(chan struct{}, 1)}
	k.life, k.end = context.WithCancel(context.Background())
	w.peers[peer] = k
	close(w.ups)
	w.ups = make(chan struct{})
	if w.start != nil {
		w.start(k)
	}
}

func (w *wakes) down(peer federation.GridID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k := w.peers[peer]; k != nil {
		k.end()
		delete(w.peers, peer)
	}
}

// awaitUp waits until the link to a peer is up, so that what a woken homeserver
// sends at once finds it so; not for long, since it may come up later as well.
func (w *wakes) awaitUp(ctx context.Context, peer federation.GridID) {
	ctx, cancel := context.WithTimeout(ctx, w.pace.up)
	defer cancel()
	for {
		w.mu.Lock()
		up, changed := w.peers[peer] != nil, w.ups
		w.mu.Unlock()
		if up {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// run makes lookups until ctx is done.
func (w *wakes) run(ctx context.Context) error {
	defer w.client.CloseIdleConnections()
	g, ctx := errgroup.WithContext(ctx)
	w.mu.Lock()
	// First, and under the lock, so that something runs in g as long as there is start:
	// only then may it be added to beside its Wait.
	g.Go(func() error {
		<-ctx.Done()
		w.mu.Lock()
		w.start = nil
		w.mu.Unlock()
		return nil
	})
	w.start = func(k *wake) { g.Go(func() error { k.run(ctx); return nil }) }
	for _, k := range w.peers {
		w.start(k)
	}
	w.mu.Unlock()
	return g.Wait()
}

// trouble says that a server of a peer did not answer as it should; an empty name
// is for all of them, when it is the own homeserver that did not. Once they are
// back they must be told, though the link has been up all the time.
func (w *wakes) trouble(peer federation.GridID, name string) {
	w.mu.Lock()
	k := w.peers[peer]
	w.mu.Unlock()
	if k == nil {
		return // woken when the link is up
	}
	k.mu.Lock()
	for n, s := range k.names {
		switch {
		case name != "" && n != name:
		case s.left == 0:
			s.left, s.due = 1, time.Now().Add(w.pace.trouble)
		default:
			s.again = true
		}
	}
	k.mu.Unlock()
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// reached says that the far server has answered a lookup.
func (w *wakes) reached(peer federation.GridID, name string) { w.note(peer, name, true) }

// note keeps what is seen of a lookup on its way.
func (w *wakes) note(peer federation.GridID, name string, reached bool) {
	w.mu.Lock()
	k := w.peers[peer]
	w.mu.Unlock()
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.names[name]; s != nil {
		s.seen, s.reached = true, s.reached || reached
	}
}

func (w *wakes) alias(name string) string { return "#" + wakePrefix + w.token + ":" + name }

// isWake says whether a request is a lookup that the gateway has asked for.
func (w *wakes) isWake(x *exchange) bool {
	return x.r.Method == http.MethodGet && aliasLookup(x.target) == w.alias(x.name)
}

// aliasLookup returns the alias that a request looks up (server-server API,
// "Querying for information", GET /query/directory), or nothing.
func aliasLookup(t target) string {
	path, query, _ := strings.Cut(t.raw, "?")
	if t.endpoint != "query" || path != "/_matrix/federation/v1/query/directory" {
		return ""
	}
	values, err := url.ParseQuery(query)
	if err != nil || len(values["room_alias"]) != 1 {
		return ""
	}
	return values.Get("room_alias")
}

// isPeersWake says whether a request of a peer's homeserver is one that its gateway
// has asked for.
func isPeersWake(t target) bool { return strings.HasPrefix(aliasLookup(t), "#"+wakePrefix) }

// wake is one life of the link to a peer.
type wake struct {
	w    *wakes
	peer federation.GridID
	life context.Context
	end  context.CancelFunc
	poke chan struct{} // holds a token when what is due has changed

	mu    sync.Mutex
	names map[string]*waking
}

// waking is one server name of the peer.
type waking struct {
	left int           // lookups that are to succeed yet
	due  time.Time     // of the next one
	wait time.Duration // after the next failure
	last time.Time     // of the last success
	why  string        // the last one failed, if it did
	// Of the lookup under way: it has come back to this gateway as a request, and
	// the far server has answered that.
	seen, reached bool
	// again: the server has failed since that began, and maybe after it was reached.
	again bool
}

// run looks up what is due until the link or the process ends.
func (k *wake) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(k.life, cancel)()
	changed, unsubscribe := k.w.o.cfg.Directory.Subscribe()
	defer unsubscribe()
	for ctx.Err() == nil {
		due, next := k.due(time.Now())
		for _, name := range due {
			k.try(ctx, name)
		}
		if len(due) > 0 {
			continue
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-timer:
		case <-changed:
		case <-k.poke:
		case <-ctx.Done():
		}
	}
}

// due returns the names to look up now, and when the next one is due; zero: none.
func (k *wake) due(now time.Time) (names []string, next time.Time) {
	held := namesOf(k.w.o.cfg.Directory.Now(), k.peer)
	k.mu.Lock()
	defer k.mu.Unlock()
	for name := range k.names {
		if !slices.Contains(held, name) {
			delete(k.names, name)
		}
	}
	for _, name := range held {
		s := k.names[name]
		if s == nil {
			s = &waking{left: wakeTimes, wait: k.w.pace.min}
			k.names[name] = s
		}
		switch {
		case s.left == 0:
		case !s.due.After(now):
			names = append(names, name)
		case next.IsZero() || s.due.Before(next):
			next = s.due
		}
	}
	return names, next
}

// namesOf returns the server names that a peer holds and that take part.
func namesOf(now *federation.Snapshot, peer federation.GridID) []string {
	var names []string
	for _, c := range now.Claims() {
		if c.Protocol != federation.Matrix || c.Grid != peer {
			continue
		}
		if p, err := now.Route(federation.Matrix, c.Domain); err == nil && p.ID == peer && p.Policy.Matrix.AllowsServer(c.Domain) {
			names = append(names, c.Domain)
		}
	}
	return names
}

// try makes one lookup.
func (k *wake) try(ctx context.Context, name string) {
	if err := k.w.places.Acquire(ctx, 1); err != nil {
		return
	}
	defer k.w.places.Release(1)
	k.mu.Lock()
	s := k.names[name]
	s.seen, s.reached, s.again = false, false, false
	k.mu.Unlock()
	status, err := k.w.lookUp(ctx, name)
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	log := k.w.o.log.With("peer", k.peerName(), "server", name)
	if s.reached {
		s.left, s.due, s.wait, s.last, s.why = s.left-1, now.Add(k.w.pace.again), k.w.pace.min, now, ""
		if s.left == 0 && s.again {
			s.left, s.due = 1, now.Add(k.w.pace.trouble)
		}
		k.w.o.metrics.wakes.WithLabelValues(k.peerName(), "reached").Inc()
		log.Debug("the homeserver has spoken to the peer's")
		return
	}
	result, first := "far", s.why == ""
	switch {
	case err != nil:
		// To see whether it is back costs nothing, and nobody else can see it.
		result, s.wait, s.why = "own", k.w.pace.min, "the own homeserver does not answer: "+err.Error()
	case !s.seen:
		result, s.why = "unproxied", fmt.Sprintf("the own homeserver answers %d without having asked the gateway: is its proxy set to this gateway, and does it trust the local CA? (yggate setup prints how)", status)
	default:
		s.why = "the peer's homeserver did not answer"
	}
	k.w.o.metrics.wakes.WithLabelValues(k.peerName(), result).Inc()
	if first { // of a row
		log.Info("the homeserver could not be made to speak to the peer's; it is tried again", "reason", s.why)
	}
	s.due = now.Add(s.wait)
	if err == nil {
		s.wait = min(2*s.wait, k.w.pace.max)
	}
}

func (k *wake) peerName() string {
	if p := k.w.o.cfg.Directory.Now().Peer(k.peer); p != nil {
		return p.Name
	}
	return k.peer.Short()
}

// lookUp asks the own homeserver for the alias, as any client may (client-server
// API, "Room aliases": no access token is required), and returns its status.
func (w *wakes) lookUp(ctx context.Context, name string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	u := w.server.JoinPath("_matrix/client/v3/directory/room").String() + "/" + url.PathEscape(w.alias(name))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return 0, err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)); err != nil {
		return 0, fmt.Errorf("read the answer: %w", err)
	}
	return res.StatusCode, nil
}
