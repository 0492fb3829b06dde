package matrix

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	mautrixfed "maunium.net/go/mautrix/federation"
	"maunium.net/go/mautrix/id"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/store"
)

func TestServerKeys(t *testing.T) {
	now := time.Now()
	second := mautrixfed.GenerateSigningKey()
	good := keyAnswer(t, "a.grid", now.Add(time.Hour), aliceKey)
	short := &mautrixfed.SigningKey{ID: "ed25519:short", Pub: "AAAA", Priv: aliceKey.Priv}
	other := &mautrixfed.SigningKey{ID: "curve:x", Pub: "AAAA", Priv: aliceKey.Priv}
	unsigned := strings.Replace(keyAnswer(t, "a.grid", now.Add(time.Hour), aliceKey, second), string(second.ID)+`":"`, string(second.ID)+`":"AA`, 1)
	for name, c := range map[string]struct {
		raw  string
		want string
	}{
		"one key":            {good, ""},
		"two keys":           {keyAnswer(t, "a.grid", now.Add(time.Hour), aliceKey, second), ""},
		"another's":          {keyAnswer(t, "c.grid", now.Add(time.Hour), carolKey), `of the server "c.grid"`},
		"expired":            {keyAnswer(t, "a.grid", now.Add(-time.Second), aliceKey), "have expired"},
		"no keys":            {keyAnswer(t, "a.grid", now.Add(time.Hour)), "no ed25519 key"},
		"another algorithm":  {keyAnswer(t, "a.grid", now.Add(time.Hour), other), "no ed25519 key"},
		"a short key":        {keyAnswer(t, "a.grid", now.Add(time.Hour), short), "not 32 bytes"},
		"one not signed by":  {unsigned, "signature"},
		"changed":            {strings.Replace(good, "{", `{"more":1,`, 1), "invalid signature"},
		"changed, unsigned":  {strings.Replace(good, "{", `{"unsigned":{},`, 1), ""},
		"no JSON":            {"<html>", "no JSON"},
		"nested":             {nested("[", "", "]", 65), "nested"},
		"of another form":    {`{"verify_keys":[]}`, "cannot unmarshal"},
		"a list":             {`[]`, "cannot unmarshal"},
		"null":               {`null`, `of the server ""`},
		"empty":              {``, "no JSON"},
		"a negative life":    {`{"server_name":"a.grid","valid_until_ts":-1}`, "have expired"},
		"keys without value": {`{"server_name":"a.grid","valid_until_ts":9999999999999,"verify_keys":{"ed25519:1":null}}`, "not 32 bytes"},
	} {
		_, until, err := parseServerKeys([]byte(c.raw), "a.grid", now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && until.UnixMilli() != now.Add(time.Hour).UnixMilli() {
			t.Errorf("%s: until %v", name, until)
		}
	}
	var many []*mautrixfed.SigningKey
	for range maxKeys + 1 {
		many = append(many, mautrixfed.GenerateSigningKey())
	}
	if _, _, err := parseServerKeys([]byte(keyAnswer(t, "a.grid", now.Add(time.Hour), many...)), "a.grid", now); err == nil || !strings.Contains(err.Error(), "33 keys") {
		t.Errorf("many keys: %v", err)
	}
	for _, until := range []time.Time{now.Add(30 * 24 * time.Hour), time.UnixMilli(1<<62 - 1)} {
		if _, got, err := parseServerKeys([]byte(keyAnswer(t, "a.grid", until, aliceKey)), "a.grid", now); err != nil || !got.Equal(now.Add(7*24*time.Hour)) {
			t.Errorf("valid until %v: used until %v, %v", until, got, err)
		}
	}
}

func FuzzServerKeys(f *testing.F) {
	now := time.Now()
	f.Add([]byte(keyAnswer(f, "a.grid", now.Add(time.Hour), aliceKey)))
	f.Add([]byte(`{"server_name":"a.grid","valid_until_ts":9999999999999,"verify_keys":{"ed25519:1":{"key":"AAAA"}},"signatures":{"a.grid":{"ed25519:1":"AAAA"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, until, err := parseServerKeys(raw, "a.grid", now)
		if err == nil && (len(keys) == 0 || !until.After(now)) {
			t.Fatalf("%q: %v until %v", raw, keys, until)
		}
	})
}

// clock is time that only the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (w *inWorld) stopClock() *clock {
	c := &clock{t: time.Now()}
	w.a.in.keys.now = c.now
	return c
}

func (w *inWorld) key(peer *federation.Peer, server string, key id.KeyID) *mautrix.RespError {
	_, _, e := w.a.in.keys.get(w.t.Context(), peer, server, key)
	return e
}

func (w *inWorld) wantFetches(server string, n int) {
	w.t.Helper()
	if got := w.keys.count(server); got != n {
		w.t.Errorf("%d fetches of the keys of %s, want %d", got, server, n)
	}
}

// TestKeysAreUsedWhileValid and not a moment longer.
func TestKeysAreUsedWhileValid(t *testing.T) {
	w := newInWorld(t)
	c := w.stopClock()
	w.keys.serves("a.grid", keyAnswer(t, "a.grid", c.now().Add(time.Hour), aliceKey))
	for range 3 {
		if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
			t.Fatal(e)
		}
	}
	c.add(time.Hour - time.Second)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Fatal(e)
	}
	w.wantFetches("a.grid", 1)
	c.add(time.Second)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e == nil || e.StatusCode != http.StatusBadGateway || !strings.Contains(e.Err, "expired") {
		t.Errorf("an expired key: %v", e)
	}
	w.wantFetches("a.grid", 2)
}

// TestFloodOfKeyIDs causes one fetch in some seconds.
func TestFloodOfKeyIDs(t *testing.T) {
	w := newInWorld(t)
	c := w.stopClock()
	flood := func() {
		t.Helper()
		for range 100 {
			if e := w.key(w.alice, "a.grid", "ed25519:none"); e == nil || e.StatusCode != http.StatusUnauthorized || e.ErrCode != "M_UNAUTHORIZED" {
				t.Fatalf("a key that there is not: %v", e)
			}
		}
	}
	flood()
	w.wantFetches("a.grid", keyBurst)
	c.add(keyPause)
	flood()
	w.wantFetches("a.grid", keyBurst+1)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Errorf("the key that there is: %v", e)
	}
	w.wantFetches("a.grid", keyBurst+1)
}

// TestFailedFetch is remembered for some seconds, and said to the operator.
func TestFailedFetch(t *testing.T) {
	for name, c := range map[string]struct {
		answer func() (*http.Response, error)
		status int
		text   string
	}{
		"down":      {func() (*http.Response, error) { return nil, federation.ErrPeerDown }, 504, "not reachable"},
		"no server": {answerWith(502, "{}"), 502, "status 502"},
		"a page":    {answerWith(200, "<html>"), 502, "no JSON"},
		"too much":  {answerWith(200, strings.Repeat(" ", maxKeyAnswer+1)), 502, "larger than allowed"},
		"cut": {func() (*http.Response, error) {
			return answerOf(200, io.MultiReader(strings.NewReader("{"), brokenReader{})), nil
		}, 502, "it broke"},
		"poison": {answerWith(200, keyAnswer(t, "c.grid", time.Now().Add(time.Hour), carolKey)), 502, "of the server"},
	} {
		w := newInWorld(t)
		w.stopClock()
		w.keys.set("a.grid", c.answer)
		for range 5 {
			if e := w.key(w.alice, "a.grid", aliceKey.ID); e == nil || e.StatusCode != c.status || e.ErrCode != "M_UNKNOWN" || !strings.Contains(e.Err, c.text) {
				t.Errorf("%s: %v, want %q", name, e, c.text)
			}
		}
		w.wantFetches("a.grid", keyBurst)
		if k := w.a.Keys(); len(k) != 1 || k[0].Server != "a.grid" || !strings.Contains(k[0].Problem, c.text) || len(k[0].Keys) > 0 {
			t.Errorf("%s: status %+v", name, k)
		}
		// The keys of the other name that was in the answer are asked for all the same.
		if e := w.key(w.carol, "c.grid", carolKey.ID); e != nil {
			t.Errorf("%s: %v", name, e)
		}
		w.wantFetches("c.grid", 1)
	}
}

func answerOf(status int, body io.Reader) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(body)}
}

func answerWith(status int, body string) func() (*http.Response, error) {
	return func() (*http.Response, error) { return answerOf(status, strings.NewReader(body)), nil }
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("it broke") }

// TestFetchIsShared: many requests at once cause one fetch.
func TestFetchIsShared(t *testing.T) {
	w := newInWorld(t)
	asked, answer := make(chan struct{}, 100), make(chan struct{})
	good := answerWith(200, keyAnswer(t, "a.grid", time.Now().Add(time.Hour), aliceKey))
	w.keys.set("a.grid", func() (*http.Response, error) {
		asked <- struct{}{}
		<-answer
		return good()
	})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
				t.Error(e)
			}
		})
	}
	<-asked
	close(answer)
	wg.Wait()
	w.wantFetches("a.grid", 1)
}

// TestFetchAnswersWhoLookedBefore: one that ends between a look at what is known and the
// wish for more is for that wish, too.
func TestFetchAnswersWhoLookedBefore(t *testing.T) {
	w := newInWorld(t)
	k := w.a.in.keys
	_, before := k.known(w.alice.ID, "a.grid", aliceKey.ID)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Fatal(e)
	}
	v, after, e := k.renew(t.Context(), w.alice, "a.grid", aliceKey.ID, before)
	if e != nil || v != aliceKey.Pub {
		t.Errorf("%q, %v", v, e)
	}
	w.wantFetches("a.grid", 1)
	// Who has seen what was fetched, and wants more, gets it.
	if _, _, e := k.renew(t.Context(), w.alice, "a.grid", "ed25519:new", after); e == nil || e.StatusCode != http.StatusUnauthorized {
		t.Errorf("a key that there is not: %v", e)
	}
	w.wantFetches("a.grid", 2)
}

// TestFetchAfterKeysWereForgotten: a peer may lose a server name and get it back between
// a look at its keys and the wish for more.
func TestFetchAfterKeysWereForgotten(t *testing.T) {
	w := newInWorld(t)
	if v, _, e := w.a.in.keys.renew(t.Context(), w.alice, "a.grid", aliceKey.ID, 3); e != nil || v != aliceKey.Pub {
		t.Errorf("%q, %v", v, e)
	}
	w.wantFetches("a.grid", 1)
}

// TestFetchWaitsForTheLink that comes up after that of the peer.
func TestFetchWaitsForTheLink(t *testing.T) {
	w := newInWorld(t)
	w.a.in.keys.waits = time.Hour
	good := answerWith(200, keyAnswer(t, "a.grid", time.Now().Add(time.Hour), aliceKey))
	w.keys.set("a.grid", func() (*http.Response, error) {
		w.keys.set("a.grid", good)
		return nil, federation.ErrPeerDown
	})
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Error(e)
	}
	w.wantFetches("a.grid", 2)
}

// TestChangedKeys are taken, and noticed, also over a restart.
func TestChangedKeys(t *testing.T) {
	w := newInWorld(t)
	path := filepath.Join(t.TempDir(), "db")
	w.reopen(path)
	c := w.stopClock()
	first := keyAnswer(t, "a.grid", c.now().Add(time.Hour), aliceKey)
	w.keys.serves("a.grid", first)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Fatal(e)
	}
	k := w.a.Keys()
	if len(k) != 1 || k[0].Peer != w.alice.ID || k[0].Keys[string(aliceKey.ID)] != string(aliceKey.Pub) || !k[0].Changed.IsZero() {
		t.Fatalf("keys %+v", k)
	}
	// The same keys, later: no change.
	c.add(2 * time.Hour)
	w.keys.serves("a.grid", keyAnswer(t, "a.grid", c.now().Add(time.Hour), aliceKey))
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Fatal(e)
	}
	if k := w.a.Keys(); !k[0].Changed.IsZero() || strings.Contains(w.log.String(), "other signing keys") {
		t.Fatalf("a change is seen: %+v", k)
	}
	rotated := mautrixfed.GenerateSigningKey()
	w.keys.serves("a.grid", keyAnswer(t, "a.grid", c.now().Add(24*time.Hour), rotated))
	// Another adapter on the same database is what a restart leaves.
	w.reopen(path)
	w.a.in.keys.now = c.now
	c.add(time.Second)
	if e := w.key(w.alice, "a.grid", rotated.ID); e != nil {
		t.Fatal(e)
	}
	check := func(k []ServerKeys) {
		t.Helper()
		if len(k) != 1 || k[0].Changed.UnixMilli() != c.now().UnixMilli() || k[0].Before[string(aliceKey.ID)] != string(aliceKey.Pub) || k[0].Keys[string(rotated.ID)] == "" {
			t.Fatalf("keys %+v", k)
		}
	}
	check(w.a.Keys())
	if !strings.Contains(w.log.String(), "other signing keys") || w.counter("yggate_matrix_keys_changed_total") != 1 {
		t.Errorf("log %s, metric %v", w.log, w.counter("yggate_matrix_keys_changed_total"))
	}
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e == nil {
		t.Error("the old key is still used")
	}
	w.reopen(path)
	w.a.in.keys.now = c.now
	check(w.a.Keys())
	n := w.keys.count("a.grid")
	if e := w.key(w.alice, "a.grid", rotated.ID); e != nil {
		t.Error(e)
	}
	w.wantFetches("a.grid", n)
}

// TestKeyIDUsedAgain: a server that was set up anew has another key by the same id.
func TestKeyIDUsedAgain(t *testing.T) {
	w := newInWorld(t)
	if r := w.do(ask{}); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	renewed := mautrixfed.GenerateSigningKey()
	renewed.ID = aliceKey.ID
	w.do(ask{key: renewed}).wants(t, "before the server says so", 401, "M_UNAUTHORIZED", "signature of a.grid is wrong")
	w.a.in.keys.servers["a.grid"].fetches.SetBurstAt(time.Now(), 100)
	w.a.in.keys.servers["a.grid"].fetches.SetLimit(1e9)
	w.keys.serves("a.grid", keyAnswer(t, "a.grid", time.Now().Add(time.Hour), renewed))
	if r := w.do(ask{key: renewed}); r.status != 200 {
		t.Errorf("%+v", r)
	}
	if k := w.a.Keys(); k[0].Changed.IsZero() {
		t.Errorf("no change is seen: %+v", k)
	}
}

// TestLostClaim: keys are those of the peer that holds the name.
func TestLostClaim(t *testing.T) {
	w := newInWorld(t)
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e != nil {
		t.Fatal(e)
	}
	w.wantRows("a.grid")
	w.claims[0].Grid = w.carol.ID
	w.publish()
	w.do(ask{}).wants(t, "its holder from before", 403, "M_FORBIDDEN", "not one that your grid holds")
	w.keys.serves("a.grid", keyAnswer(t, "a.grid", time.Now().Add(time.Hour), carolKey))
	if e := w.key(w.carol, "a.grid", aliceKey.ID); e == nil {
		t.Error("the key of the holder from before is used")
	}
	if e := w.key(w.carol, "a.grid", carolKey.ID); e != nil {
		t.Error(e)
	}
	if last := w.keys.asked[len(w.keys.asked)-1]; last != w.carol.ID {
		t.Errorf("asked %s", last)
	}
	w.claims = w.claims[1:]
	w.publish()
	if k := w.a.Keys(); len(k) != 0 {
		t.Errorf("keys of a name that nobody holds: %+v", k)
	}
	w.wantRows()
}

// TestLostWhileFetching: what a peer answers after it has lost the name is nothing.
func TestLostWhileFetching(t *testing.T) {
	w := newInWorld(t)
	good := answerWith(200, keyAnswer(t, "a.grid", time.Now().Add(time.Hour), aliceKey))
	w.keys.set("a.grid", func() (*http.Response, error) {
		w.claims = w.claims[1:]
		w.publish()
		return good()
	})
	if e := w.key(w.alice, "a.grid", aliceKey.ID); e == nil || !strings.Contains(e.Err, "lost") {
		t.Errorf("%v", e)
	}
	w.wantRows()
}

// wantRows waits for the database to have the keys of just these servers.
func (w *inWorld) wantRows(servers ...string) {
	w.t.Helper()
	var names []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		rows, err := store.AllMatrixKeys(w.t.Context(), w.store.Read())
		if err != nil {
			w.t.Fatal(err)
		}
		names = nil
		for _, r := range rows {
			names = append(names, r.Server)
		}
		if strings.Join(names, " ") == strings.Join(servers, " ") {
			return
		}
	}
	w.t.Errorf("the database has keys of %q, want %q", names, servers)
}

func (w *inWorld) counter(name string) (sum float64) {
	w.t.Helper()
	families, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

func TestStatusOfKeysIsJSON(t *testing.T) {
	raw, err := json.Marshal(ServerKeys{Server: "a.grid", Peer: "p", Keys: map[string]string{"ed25519:1": "k"}})
	if err != nil || string(raw) != `{"server":"a.grid","peer":"p","keys":{"ed25519:1":"k"}}` {
		t.Errorf("%s, %v", raw, err)
	}
}
