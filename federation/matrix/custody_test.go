package matrix

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// inCustody is a side whose peer bob gets transactions by way of the disk.
func inCustody(t *testing.T) *side {
	s := newSide(t, func(c *Config) { c.MaxBody = 4 << 20 })
	s.bob.Policy.Matrix.Custody = true
	s.publish("b.grid")
	return s
}

func (s *side) sendTxn(body string, more ...string) answer {
	s.t.Helper()
	header := append([]string{"Authorization", `X-Matrix origin="a.grid"`, "Content-Type", "application/json"}, more...)
	return s.do(s.client(false), http.MethodPut, "https://b.grid"+sendTarget, strings.NewReader(body), header...)
}

func TestCustodyTakes(t *testing.T) {
	s := inCustody(t)
	s.links.down(federation.ErrPeerDown)
	large := `{"pdus":["` + strings.Repeat("x", 1<<20) + `"]}`
	for _, body := range []string{`{"pdus":[1]}`, large, `{"pdus":[1]}`, `{"pdus":[2]}`} {
		if res := s.sendTxn(body); res.StatusCode != http.StatusOK || res.body != `{"pdus":{}}` {
			t.Fatalf("%s %s", res.Status, res.body)
		}
	}
	items := s.outbox.taken()
	if len(items) != 4 {
		t.Fatalf("%d items", len(items))
	}
	for i, it := range items {
		if s.outbox.lanes[i] != lane.Bulk || it.Kind != federation.Matrix || it.Conv != "b.grid" || len(it.ID) == 0 || len(it.ID) > lane.MaxID {
			t.Errorf("item %d: lane %s, %+v", i, s.outbox.lanes[i], it)
		}
	}
	if !bytes.Equal(items[0].ID, items[2].ID) || bytes.Equal(items[0].ID, items[3].ID) || bytes.Equal(items[0].ID, items[1].ID) {
		t.Error("what is sent again is the same item, and nothing else is")
	}
	got, err := decodeTransaction(items[1].Body, 4<<20)
	if err != nil || string(got.Body) != large || got.Target != sendTarget || got.Server != "b.grid" || got.Auth != `X-Matrix origin="a.grid"` || got.Type != "application/json" {
		t.Errorf("%.200v, %v", got, err)
	}
	if len(items[1].Body) > len(large)/10 {
		t.Errorf("%d bytes on disk for %d", len(items[1].Body), len(large))
	}
	// Nothing but transactions waits.
	if res := s.do(s.client(false), http.MethodGet, "https://b.grid/_matrix/federation/v1/version", nil); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("version: %s", res.Status)
	}
	// A paused peer is one that is away.
	s.bob.State = federation.StatePaused
	s.publish("b.grid")
	if res := s.sendTxn(`{"pdus":[3]}`); res.StatusCode != http.StatusOK {
		t.Errorf("paused: %s %s", res.Status, res.body)
	}
	s.bob.State = federation.StateBlocked
	s.publish("b.grid")
	if res := s.sendTxn(`{"pdus":[4]}`); res.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("blocked: %s %s", res.Status, res.body)
	}
}

// TestCustodyRefuses: the homeserver keeps what is not on disk.
func TestCustodyRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(*fakeOutbox)
		body    string
		status  int
		code    string
	}{
		"queue full":  {func(f *fakeOutbox) { f.disk = lane.ErrFull }, "{}", 429, "M_LIMIT_EXCEEDED"},
		"no peer now": {func(f *fakeOutbox) { f.put = federation.ErrPeerNotActive }, "{}", 504, "M_UNKNOWN"},
		"disk":        {func(f *fakeOutbox) { f.disk = errors.New("disk full") }, "{}", 503, "M_UNKNOWN"},
		"too large":   {func(*fakeOutbox) {}, strings.Repeat("x", 4<<20+1), 413, "M_TOO_LARGE"},
	} {
		s := inCustody(t)
		s.outbox.set(func() { c.prepare(s.outbox) })
		res := s.sendTxn(c.body)
		if res.StatusCode != c.status || !strings.Contains(res.body, `"`+c.code+`"`) {
			t.Errorf("%s: %s %s", name, res.Status, res.body)
		}
		if len(s.outbox.taken()) > 0 {
			t.Errorf("%s: it is in the outbox", name)
		}
	}
}

// incompressible is a body that no item can hold.
func incompressible(t *testing.T) string {
	t.Helper()
	noise := make([]byte, 2<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(noise); err != nil {
		t.Fatal(err)
	}
	return `{"x":"` + base64.StdEncoding.EncodeToString(noise) + `"}`
}

// TestCustodyOfWhatNoItemHolds goes live, and not past others.
func TestCustodyOfWhatNoItemHolds(t *testing.T) {
	s := inCustody(t)
	body := incompressible(t)
	arrived := make(chan string, 1)
	s.links.serve(func(w http.ResponseWriter, r *http.Request) {
		z, err := newGunzip(r.Body, 8<<20)
		if err != nil {
			t.Error(err)
			return
		}
		raw, err := io.ReadAll(z)
		if err != nil {
			t.Error(err)
		}
		arrived <- string(raw)
		io.WriteString(w, `{"pdus":{"live":{}}}`)
	})
	if res := s.sendTxn(body); res.StatusCode != http.StatusOK || res.body != `{"pdus":{"live":{}}}` || <-arrived != body {
		t.Errorf("%s %.100s", res.Status, res.body)
	}
	s.outbox.set(func() { s.outbox.wait = 1 })
	if res := s.sendTxn(body); res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(res.body, "others wait before it") {
		t.Errorf("%s %.100s", res.Status, res.body)
	}
	if len(s.outbox.taken()) > 0 || len(arrived) > 0 {
		t.Error("it went somewhere")
	}
}

// item is a transaction of alice's a.grid to b.grid, as it comes out of custody.
func (k ask) item(t *testing.T, change ...func(*transaction)) lane.Item {
	t.Helper()
	k.method, k.target = or(k.method, http.MethodPut), or(k.target, sendTarget)
	r := k.request(t, "https://x")
	txn := transaction{Target: k.target, Server: or(k.server, "b.grid"), Auth: r.Header.Get("Authorization"), Type: "application/json", Body: []byte(k.body)}
	for _, f := range change {
		f(&txn)
	}
	raw, err := encodeTransaction(txn)
	if err != nil {
		t.Fatal(err)
	}
	return lane.Item{ID: txn.id(), Kind: federation.Matrix, Conv: txn.Server, At: time.Now(), Body: raw}
}

func TestHand(t *testing.T) {
	w := newInWorld(t)
	large := `{"pdus":[` + strings.Repeat(`"0123456789",`, 1000) + `1]}`
	items := []lane.Item{
		ask{body: `{"pdus":[1]}`}.item(t),
		ask{body: `{"pdus":[2]}`, key: carolKey}.item(t),                                        // not a.grid's signature
		ask{body: `{"pdus":[3]}`, origin: "c.grid", key: carolKey}.item(t),                      // not alice's server
		ask{body: `{"pdus":[4]}`}.item(t, func(x *transaction) { x.Body = []byte(`{}`) }),       // not what was signed
		ask{body: `{"pdus":[5]}`}.item(t, func(x *transaction) { x.Server = "c.grid" }),         // not for here
		ask{body: `{"pdus":[6]}`, target: "/_matrix/federation/v2/invite/!r:b.grid/$x"}.item(t), // not a transaction
		ask{body: `{"pdus":[7]}`, target: "/_matrix/client/v3/send/1"}.item(t),
		ask{body: `{"pdus":[8]}`}.item(t, func(x *transaction) { x.Auth = "" }),
		{Kind: federation.Matrix, Body: []byte("garbage"), At: time.Now()},
		ask{body: large}.item(t),
	}
	if n, err := w.a.hand(t.Context(), w.alice, items); n != len(items) || err != nil {
		t.Fatalf("%d settled, %v", n, err)
	}
	seen := w.home.requests()
	if len(seen) != 2 || seen[0].body != `{"pdus":[1]}` || seen[1].body != large {
		t.Fatalf("the homeserver got %d requests: %.300v", len(seen), seen)
	}
	for _, r := range seen {
		if r.method != http.MethodPut || r.uri != sendTarget || r.host != "b.grid" || r.header.Get("Content-Type") != "application/json" || !strings.HasPrefix(r.header.Get("Authorization"), "X-Matrix ") {
			t.Errorf("%+v", r)
		}
	}
	if n := strings.Count(w.log.String(), "its sender believes that it has arrived"); n != 8 {
		t.Errorf("%d of 8 that were not delivered are in the log", n)
	}
}

// TestHandWaits keeps the order and tries again what may still succeed.
func TestHandWaits(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		settle bool
	}{
		"busy":        {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }, false},
		"fault":       {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, false},
		"broken":      {func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, false},
		"redirect":    {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, false},
		"forbidden":   {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusForbidden) }, true},
		"bad":         {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadRequest) }, true},
		"unlearnable": {nil, false}, // the peer's keys cannot be had
	} {
		t.Run(name, func(t *testing.T) {
			w := newInWorld(t)
			if c.answer == nil {
				w.keys.set("a.grid", nil)
			} else {
				w.home.answers(c.answer)
			}
			items := []lane.Item{ask{body: `{"pdus":[1]}`}.item(t), ask{body: `{"pdus":[2]}`}.item(t)}
			n, err := w.a.hand(t.Context(), w.alice, items)
			if c.settle != (n == 2 && err == nil) || !c.settle && (n != 0 || err == nil) {
				t.Fatalf("%d settled, %v", n, err)
			}
			if c.settle {
				return
			}
			// What has waited for too long is given up, and the next one not.
			items[0].Expires = time.Now().Add(-time.Second)
			if n, err := w.a.hand(t.Context(), w.alice, items); n != 1 || err == nil || !strings.Contains(w.log.String(), "result=expired") {
				t.Errorf("%d settled, %v\n%s", n, err, w.log)
			}
		})
	}
}

func TestGiveBack(t *testing.T) {
	s := inCustody(t)
	it := lane.Item{Kind: federation.Matrix, Conv: "b.grid"}
	for _, peer := range []*federation.Peer{&s.bob, nil} {
		if err := s.a.GiveBack(t.Context(), peer, it, lane.ErrExpired); err != nil {
			t.Error(err)
		}
	}
	if n := strings.Count(s.log.String(), "a transaction in custody is given up"); n != 2 {
		t.Errorf("said %d times", n)
	}
}

func TestTransactionCoding(t *testing.T) {
	same := func(txn transaction) {
		t.Helper()
		one, err := encodeTransaction(txn)
		if err != nil {
			t.Fatal(err)
		}
		if two, err := encodeTransaction(txn); err != nil || !bytes.Equal(one, two) {
			t.Errorf("not the same twice: %v", err)
		}
		got, err := decodeTransaction(one, int64(len(txn.Body)))
		if err != nil || got.Target != txn.Target || !bytes.Equal(got.Body, txn.Body) || got.Gzip {
			t.Errorf("%.100v, %v", got, err)
		}
		if len(txn.Body) > 0 {
			if _, err := decodeTransaction(one, int64(len(txn.Body))-1); err == nil {
				t.Error("a body over the limit is taken")
			}
		}
		if _, err := decodeTransaction(append(one, 0), 1<<20); err == nil {
			t.Error("what follows the item is overlooked")
		}
	}
	same(transaction{Target: "/x", Server: "b.grid", Auth: "y", Body: []byte("{}")})
	same(transaction{Target: "/x", Server: "b.grid", Auth: "y", Body: bytes.Repeat([]byte("x"), gzipFrom)})
	for version := range uint64(4) {
		raw, err := custodyEnc.Marshal(transaction{Version: version})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeTransaction(raw, 1); (err == nil) != (version == custodyVersion) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

func FuzzTransaction(f *testing.F) {
	for _, body := range []string{"{}", strings.Repeat("x", gzipFrom)} {
		raw, err := encodeTransaction(transaction{Target: "/x", Server: "b.grid", Auth: "y", Body: []byte(body)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{0xa0})
	f.Add([]byte{0xbf, 0x01, 0x01, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		const limit = 64 << 10
		txn, err := decodeTransaction(raw, limit)
		if err != nil {
			return
		}
		if len(txn.Body) > limit {
			t.Fatalf("body of %d bytes", len(txn.Body))
		}
		again, err := encodeTransaction(txn)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeTransaction(again, limit); err != nil || back.Target != txn.Target || back.Auth != txn.Auth || !bytes.Equal(back.Body, txn.Body) {
			t.Fatalf("%v: %v, %v", err, txn, back)
		}
	})
}
