package matrix

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
)

var _ lane.Recipient = (*Adapter)(nil)

// maxSendAnswer bounds what is read of the homeserver's answer to a transaction.
const maxSendAnswer = 1 << 20

// Hand implements lane.Recipient: it verifies transactions of a peer that come out of
// custody as if they came live, and gives them to the homeserver in order. What the
// homeserver or this gateway refuses for good is settled, logged and counted: nobody
// waits for an answer to it any more. All else waits, for as long as it may.
func (a *Adapter) Hand(ctx context.Context, peer *federation.Peer, items []lane.Item, done func(settled int, err error)) {
	done(a.hand(ctx, peer, items))
}

func (a *Adapter) hand(ctx context.Context, peer *federation.Peer, items []lane.Item) (settled int, err error) {
	for i := range items {
		if err := a.handOne(ctx, peer, &items[i]); err != nil {
			return i, err
		}
	}
	return len(items), nil
}

// handOne returns nil when an item needs nothing more.
func (a *Adapter) handOne(ctx context.Context, peer *federation.Peer, it *lane.Item) error {
	e := a.deliver(ctx, peer, it)
	result := "delivered"
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case e == nil:
	case temporary(e) && time.Now().Before(lifeOf(it, peer)):
		return fmt.Errorf("hand a transaction to %s: %w", it.Conv, e)
	default:
		if result = "refused"; temporary(e) {
			result = "expired"
		}
		a.in.log.Warn("a transaction that came out of custody is not delivered; its sender believes that it has arrived",
			"peer", peer.Name, "server", it.Conv, "result", result, "taken", it.At, "reason", e.Err, "status", e.StatusCode)
	}
	a.out.metrics.custody.WithLabelValues(peer.Name, "in", result).Inc()
	return nil
}

// temporary says whether another try may succeed.
func temporary(e *mautrix.RespError) bool {
	return e.StatusCode >= 500 || e.StatusCode == http.StatusTooManyRequests || e.StatusCode == http.StatusRequestTimeout
}

// lifeOf is until when the homeserver is tried with an item.
func lifeOf(it *lane.Item, peer *federation.Peer) time.Time {
	if !it.Expires.IsZero() {
		return it.Expires
	}
	ttl := peer.Policy.Limits.TTL
	if ttl <= 0 {
		ttl = defaultLimits.TTL
	}
	return it.At.Add(ttl)
}

// deliver gives one transaction to the homeserver, or says why not.
func (a *Adapter) deliver(ctx context.Context, peer *federation.Peer, it *lane.Item) *mautrix.RespError {
	t, err := decodeTransaction(it.Body, a.cfg.MaxBody)
	if err != nil {
		return respond(mautrix.MBadJSON, err.Error())
	}
	where, e := parseTarget(t.Target)
	switch {
	case e != nil:
		return e
	case where.endpoint != endpointSend || where.txn == "":
		return respond(mautrix.MUnrecognized, "only transactions can be in custody")
	}
	if _, e = a.in.verify(ctx, peer, signedRequest{
		method: http.MethodPut, target: t.Target, authorization: []string{t.Auth}, body: t.Body, destination: t.Server,
	}); e != nil {
		return e
	}
	header := http.Header{"Authorization": {t.Auth}}
	if t.Type != "" {
		header.Set("Content-Type", t.Type)
	}
	res, err := a.in.ask(ctx, http.MethodPut, t.Target, t.Server, header, t.Body)
	if err != nil {
		return respond(errHomeserver, "the homeserver of "+t.Server+" cannot be reached: "+err.Error())
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, io.LimitReader(res.Body, maxSendAnswer)); err != nil {
		return respond(errHomeserver, "the homeserver of "+t.Server+" broke off: "+err.Error())
	}
	switch {
	case res.StatusCode >= 200 && res.StatusCode < 300:
		return nil
	case res.StatusCode < 400: // a misconfiguration that may be mended
		return respond(errHomeserver, "the homeserver of "+t.Server+" answers "+res.Status)
	}
	return respond(mautrix.MUnknown.WithStatus(res.StatusCode), "the homeserver of "+t.Server+" answers "+res.Status)
}

// GiveBack implements lane.Recipient for a transaction of the own homeserver that a
// peer does not get. Matrix knows no bounce: the operator is told, and the
// transaction stays a dead letter, from which it can be sent again.
func (a *Adapter) GiveBack(_ context.Context, peer *federation.Peer, it lane.Item, why error) error {
	name := ""
	if peer != nil {
		name = peer.Name
	}
	reason := "given_up"
	switch {
	case errors.Is(why, lane.ErrExpired):
		reason = "expired"
	case errors.Is(why, lane.ErrDropped):
		reason = "dropped"
	}
	a.out.metrics.custody.WithLabelValues(name, "out", reason).Inc()
	a.out.log.Warn("a transaction in custody is given up; the homeserver believes that it has arrived",
		"peer", name, "server", it.Conv, "taken", it.At, "reason", why)
	return nil
}
