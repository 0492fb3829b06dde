package matrix

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/sync/semaphore"
	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

// Custody is for peers that are away more than they are there. A transaction for
// such a peer is answered when it is on disk here, and waits for the peer; the
// homeserver forgets it then. It is verified by the peer's gateway when it comes
// out, as if it had just been sent: X-Matrix has no time in it.
//
// What that costs: Matrix has no bounce. A transaction that is given up, because it
// was too old, the operator dropped it or the far homeserver refused it, is logged
// and counted, and one that never left stays among the dead letters. Servers get
// the events of a room again when they miss them; keys sent to devices they do not.
//
// All transactions for such a peer go through the lane, whether it is there or not,
// so that they stay in order. Only those that no item can hold go live, and only
// while nothing waits that they would overtake.

// custodyLane is Bulk and not Room: a homeserver that is down would fill what the
// receiver holds of a lane, and messages between XMPP servers would wait behind.
const custodyLane = lane.Bulk

// custodyVersion is that of the items. Others are refused.
const custodyVersion = 1

// custodyMemory is how many bodies of the largest allowed size are held at once
// while they go to disk.
const custodyMemory = 4

// fullPause is when a homeserver may try again when the queue is full.
const fullPause = time.Minute

// transaction is the Body of an item: a PUT /_matrix/federation/v1/send/{txnId}. All
// that was signed is in it byte for byte.
type transaction struct {
	Version uint64 `cbor:"1,keyasint"`
	Target  string `cbor:"2,keyasint"` // the request-target
	Server  string `cbor:"3,keyasint"` // the server name that it is for
	Auth    string `cbor:"4,keyasint"` // the Authorization header
	Type    string `cbor:"5,keyasint,omitempty"`
	Gzip    bool   `cbor:"6,keyasint,omitempty"` // what Body is compressed with
	Body    []byte `cbor:"7,keyasint"`
}

var (
	custodyEnc = must(cbor.CoreDetEncOptions().EncMode())
	custodyDec = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 16, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode())
)

// must is for options that are constant and known to be valid.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// maxShown bounds a transaction that is read for people: what matrix.max_body may be.
const maxShown = 64 << 20

// errNoItem is a transaction that no item can hold.
var errNoItem = errors.New("the transaction is too large for custody")

// encodeTransaction packs a transaction whose body is not compressed yet.
func encodeTransaction(t transaction) ([]byte, error) {
	t.Version = custodyVersion
	if len(t.Body) >= gzipFrom {
		var b bytes.Buffer
		w := gzipWriters.Get().(*gzip.Writer)
		defer gzipWriters.Put(w)
		w.Reset(&b)
		if _, err := w.Write(t.Body); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
		if b.Len() < len(t.Body) {
			t.Gzip, t.Body = true, b.Bytes()
		}
	}
	raw, err := custodyEnc.Marshal(t)
	if err == nil && len(raw) > lane.MaxBody {
		err = errNoItem
	}
	return raw, err
}

// decodeTransaction unpacks an item. Its body has at most limit bytes.
func decodeTransaction(raw []byte, limit int64) (t transaction, err error) {
	if err := custodyDec.Unmarshal(raw, &t); err != nil {
		return t, fmt.Errorf("decode transaction: %w", err)
	}
	if t.Version != custodyVersion {
		return t, fmt.Errorf("decode transaction: version %d, want %d", t.Version, custodyVersion)
	}
	if !t.Gzip {
		if int64(len(t.Body)) > limit {
			return t, fmt.Errorf("decode transaction: body of %d bytes, at most %d", len(t.Body), limit)
		}
		return t, nil
	}
	z, err := newGunzip(bytes.NewReader(t.Body), limit)
	if err == nil {
		t.Body, err = io.ReadAll(z)
	}
	if err != nil {
		return t, fmt.Errorf("decode transaction: %w", err)
	}
	t.Gzip = false
	return t, nil
}

// Transaction is a transaction in custody, for people.
type Transaction struct {
	// Origin is the server that it says to be from, Server the one it is for.
	Origin, Server string
	ID             string // the transaction id that Origin gave it
	Body           []byte // as it was signed
}

// ReadTransaction reads the body of an item. Nothing in it has been verified.
func ReadTransaction(item []byte) (*Transaction, error) {
	t, err := decodeTransaction(item, maxShown)
	if err != nil {
		return nil, err
	}
	out := &Transaction{Server: t.Server, Body: t.Body}
	if where, e := parseTarget(t.Target); e == nil {
		out.ID = where.txn
	}
	if p, err := parseXMatrix([]string{t.Auth}); err == nil {
		out.Origin = p.origin
	}
	return out, nil
}

// id names a transaction for good: one that the homeserver sends again is the same,
// and a transaction id that it uses for something else is not.
func (t *transaction) id() []byte {
	h := sha256.New()
	io.WriteString(h, t.Server+"\x00"+t.Target+"\x00")
	h.Write(t.Body)
	return h.Sum(nil)
}

// custody takes transactions from the homeserver.
type custody struct {
	o      *outbound
	memory *semaphore.Weighted
}

func newCustody(o *outbound) *custody {
	return &custody{o, semaphore.NewWeighted(custodyMemory * o.cfg.MaxBody)}
}

// take answers a transaction when it is on disk, or says what is to be answered.
// done is false, without an error, for one that has to go live.
func (c *custody) take(x *exchange) (done bool, _ *mautrix.RespError) {
	auth := x.r.Header["Authorization"]
	if len(auth) != 1 || x.r.Header.Get("Content-Encoding") != "" {
		return false, nil // it is refused, and that by the peer's gateway
	}
	size := x.r.ContentLength
	if size > c.o.cfg.MaxBody {
		return false, x.tooLarge()
	}
	if size < 0 {
		size = c.o.cfg.MaxBody
	}
	ctx := x.r.Context()
	if err := c.memory.Acquire(ctx, size); err != nil {
		return false, x.noAnswer(err)
	}
	defer c.memory.Release(size)
	body, err := io.ReadAll(x.body())
	if err != nil {
		return false, x.noAnswer(fmt.Errorf("read the body: %w", err))
	}
	t := transaction{Target: x.target.raw, Server: x.name, Auth: auth[0], Type: x.r.Header.Get("Content-Type"), Body: body}
	item := lane.Item{ID: t.id(), Kind: federation.Matrix, Conv: x.name}
	item.Body, err = encodeTransaction(t)
	switch {
	case errors.Is(err, errNoItem):
		return false, c.live(x, body)
	case err != nil:
		return false, x.noAnswer(err)
	}
	if err := c.put(ctx, x.peer, item); err != nil {
		return false, c.notTaken(x, err)
	}
	c.o.metrics.custody.WithLabelValues(x.peer.Name, "out", "taken").Inc()
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(http.StatusOK)
	if _, err := io.WriteString(x.w, `{"pdus":{}}`); err != nil {
		panic(http.ErrAbortHandler)
	}
	return true, nil
}

// live has a transaction that was read already sent at once, if nothing waits.
func (c *custody) live(x *exchange, body []byte) *mautrix.RespError {
	if c.o.outbox.Waiting(x.peer.ID, custodyLane) > 0 {
		c.o.wakes.trouble(x.peer.ID, x.name)
		return respond(mautrix.MUnknown.WithStatus(http.StatusServiceUnavailable), "the transaction is too large to wait on disk, and others wait before it for "+x.peer.Name)
	}
	x.end() // of the body on the connection
	x.r.Body, x.r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return nil
}

// put returns when the item is on disk.
func (c *custody) put(ctx context.Context, peer *federation.Peer, it lane.Item) error {
	stored := make(chan error, 1)
	if err := c.o.outbox.Put(ctx, peer.ID, custodyLane, func(err error) { stored <- err }, it); err != nil {
		return err
	}
	select {
	case err := <-stored:
		return err
	case <-ctx.Done():
		return ctx.Err() // it may be stored nevertheless; the peer drops repeats
	}
}

// notTaken is what the homeserver is told of a transaction that is not on disk. It
// keeps it and tries again.
func (c *custody) notTaken(x *exchange, err error) *mautrix.RespError {
	switch {
	case x.r.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	case errors.Is(err, lane.ErrFull):
		c.o.metrics.custody.WithLabelValues(x.peer.Name, "out", "full").Inc()
		e := tooMany(fullPause, "as much waits for "+x.peer.Name+" as its limits here allow (queue_items, queue_bytes)")
		return &e
	case errors.Is(err, federation.ErrPeerNotActive):
		return respond(errPeerDown, "the peer "+x.peer.Name+", who holds "+x.name+", is not active")
	}
	c.o.metrics.custody.WithLabelValues(x.peer.Name, "out", "failed").Inc()
	c.o.wakes.trouble(x.peer.ID, x.name)
	c.o.log.Warn("a transaction is not taken into custody", "peer", x.peer.Name, "server", x.name, "err", err)
	return respond(mautrix.MUnknown.WithStatus(http.StatusServiceUnavailable), "the gateway cannot store the transaction now")
}
