package mqtt

import (
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
	"sync"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt/session"
)

// User properties by which a message that came from another grid is known, so that it
// does not run in circles. They are the gateways' own: they do not cross as they are.
const (
	// PathProperty has the ids of the grids that had the message, its own first,
	// separated by commas.
	PathProperty = "grid-path"
	// OriginProperty names the message among all grids.
	OriginProperty = "grid-origin"
)

// Topics of the gateways' own. What is imported is below gridLevel where the operator
// does not say otherwise, and what is below it is exported only by a filter that names
// it.
const (
	gridLevel  = "grid/"
	replyLevel = "reply/"
	// replyFilter is what is published for response topics of other grids.
	replyFilter = "grid/+/reply/#"
	// maxNested bounds "grid/a/grid/b/...": where the broker has no user properties,
	// it alone tells how far a message has come.
	maxNested = 3
)

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// trace is where a message has been.
type trace struct {
	path   []string // ids of grids
	origin []byte   // nil: it was published here
}

// has says whether a grid had the message.
func (t *trace) has(id federation.GridID) bool { return slices.Contains(t.path, string(id)) }

// foreign says whether it came from another grid.
func (t *trace) foreign() bool { return len(t.path) > 0 }

// traceOf reads where a message of the broker's has been, and returns its other user
// properties. A path that cannot be read is one that is too long to go on.
func traceOf(m *session.Message) (t trace, user []session.UserProperty) {
	user = m.User
	if !slices.ContainsFunc(user, isTrace) {
		return t, user
	}
	user = nil
	for _, u := range m.User {
		switch u.Key {
		case PathProperty:
			t.path = append(t.path, strings.Split(u.Value, ",")...)
		case OriginProperty:
			if raw, err := base64.RawURLEncoding.DecodeString(u.Value); err == nil && len(raw) <= maxOrigin {
				t.origin = raw
			}
		default:
			user = append(user, u)
		}
	}
	return t, user
}

func isTrace(u session.UserProperty) bool { return u.Key == PathProperty || u.Key == OriginProperty }

// mark adds to a message that is published here where it has been.
func (e *envelope) mark(m *session.Message) {
	m.User = slices.DeleteFunc(m.User, isTrace) // a peer's gateway takes them off
	m.User = append(m.User, session.UserProperty{Key: PathProperty, Value: strings.Join(e.Path, ",")})
	if len(e.Origin) > 0 {
		m.User = append(m.User, session.UserProperty{Key: OriginProperty, Value: b64(e.Origin)})
	}
}

// originOf names a message that was published here.
func originOf(self federation.GridID, m *session.Message) []byte {
	h := sha256.New()
	h.Write([]byte(self))
	h.Write([]byte{0})
	h.Write(m.UID)
	return h.Sum(nil)[:originLen]
}

// originLen is the length of the origins that gateways make.
const originLen = 16

// originKey is what an origin is remembered as.
func originKey(origin []byte) [originLen]byte {
	if len(origin) != originLen {
		sum := sha256.Sum256(origin)
		origin = sum[:originLen]
	}
	return [originLen]byte(origin)
}

// nested counts how many grids a topic below gridLevel says it came through, and
// returns the petname of the last.
func nested(name string) (last string, n int) {
	for strings.HasPrefix(name, gridLevel) {
		peer, rest, ok := strings.Cut(name[len(gridLevel):], "/")
		if n++; n == 1 {
			last = peer
		}
		if !ok {
			return last, n
		}
		name = rest
	}
	return last, n
}

// recent remembers the last keys of many, each for as long as it takes for as many
// others to come, and at most twice as long. It is bounded.
type recent[K comparable, V any] struct {
	mu       sync.Mutex
	size     int
	now, was map[K]V
}

func newRecent[K comparable, V any](size int) *recent[K, V] {
	return &recent[K, V]{size: size, now: map[K]V{}}
}

func (r *recent[K, V]) put(key K, v V) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set(key, v)
}

func (r *recent[K, V]) set(key K, v V) {
	if len(r.now) >= r.size {
		r.was, r.now = r.now, make(map[K]V)
	}
	r.now[key] = v
}

func (r *recent[K, V]) get(key K) (V, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.find(key)
}

func (r *recent[K, V]) find(key K) (V, bool) {
	v, ok := r.now[key]
	if !ok {
		v, ok = r.was[key]
	}
	return v, ok
}

// first returns what key has, which is v if it had nothing.
func (r *recent[K, V]) first(key K, v V) V {
	r.mu.Lock()
	defer r.mu.Unlock()
	if had, ok := r.find(key); ok {
		return had
	}
	r.set(key, v)
	return v
}
