package gateway

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/store"
)

// deadLetters answers the commands about items that were given up.
type deadLetters struct {
	g *gateway
	// deciding keeps two commands from deciding about the same letter at once.
	deciding sync.Mutex
}

// routes registers what the commands ask.
func (d *deadLetters) routes(mux *http.ServeMux) {
	type none struct{}
	admin.Handle(mux, "GET /v1/dead", func(r *http.Request, _ none) ([]admin.Item, error) {
		return d.list(r.Context(), r.URL.Query().Get("peer"), r.URL.Query().Get("limit"))
	})
	admin.Handle(mux, "GET /v1/dead/{id}", func(r *http.Request, _ none) (admin.Item, error) {
		return d.show(r.Context(), r.PathValue("id"), r.URL.Query().Has("body"))
	})
	admin.Handle(mux, "POST /v1/dead/{id}/retry", func(r *http.Request, _ none) (admin.Done, error) {
		return d.retry(r.Context(), r.PathValue("id"))
	})
	admin.Handle(mux, "POST /v1/dead/{id}/drop", func(r *http.Request, _ none) (admin.Done, error) {
		return d.drop(r.Context(), r.PathValue("id"))
	})
}

// list returns the newest, of one peer or of all.
func (d *deadLetters) list(ctx context.Context, peer, limit string) ([]admin.Item, error) {
	if d.g.edge.Load() == nil {
		return nil, errStandby
	}
	n, err := listLimit(limit, maxDeadListed)
	if err != nil {
		return nil, err
	}
	var id federation.GridID
	if peer != "" {
		p, err := d.g.named(peer)
		if err != nil {
			return nil, err
		}
		id = p.ID
	}
	dead, err := d.g.store.DeadLetters(ctx, string(id), n)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	out := []admin.Item{}
	for i := range dead {
		out = append(out, d.describe(&dead[i]))
	}
	return out, nil
}

// find returns the letter that a command names.
func (d *deadLetters) find(ctx context.Context, id string) (*edge, store.Dead, error) {
	e := d.g.edge.Load()
	if e == nil {
		return nil, store.Dead{}, errStandby
	}
	row, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil, store.Dead{}, fmt.Errorf("%.40q does not name a dead letter; `yggate outbox list --dead` shows names such as dead/7", "dead/"+id)
	}
	letter, err := d.g.store.DeadLetter(ctx, row)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, store.Dead{}, fmt.Errorf("dead/%d: %w; `yggate outbox list --dead` shows all", row, admin.ErrNotFound)
	case err != nil:
		return nil, store.Dead{}, fmt.Errorf("read dead/%d: %w", row, err)
	}
	return e, letter, nil
}

func (d *deadLetters) show(ctx context.Context, id string, body bool) (admin.Item, error) {
	_, letter, err := d.find(ctx, id)
	if err != nil {
		return admin.Item{}, err
	}
	out := d.describe(&letter)
	if body {
		out.Body = bodyText(out.Protocol, letter.Body)
	}
	return out, nil
}

// retry puts a letter into the queue again and deletes it once that is on disk.
// Should the gateway die in between, it is in both places, which the operator sees.
func (d *deadLetters) retry(ctx context.Context, id string) (admin.Done, error) {
	d.deciding.Lock()
	defer d.deciding.Unlock()
	e, letter, err := d.find(ctx, id)
	if err != nil {
		return admin.Done{}, err
	}
	name, peer := fmt.Sprintf("dead/%d", letter.Row), d.g.peerName(federation.GridID(letter.Peer))
	if proto := lane.ProtocolOf(letter.Kind); e.explain[proto] == nil {
		return admin.Done{}, fmt.Errorf("%s is of a protocol that this gateway does not run (%s)", name, cmp.Or(string(proto), "unknown"))
	}
	if err := requeue(ctx, e.durable, &letter); err != nil {
		return admin.Done{}, fmt.Errorf("put %s into the queue to %s: %w; it is kept as it was%s", name, peer, err, requeueFix(err, peer))
	}
	d.g.log.Info("operator put a dead letter into the queue", "peer", peer, "id", name)
	done := admin.Done{Done: fmt.Sprintf("%s waits for %s again.", name, peer), Next: "yggate outbox list " + peer}
	switch {
	case lane.ProtocolOf(letter.Kind) == federation.Matrix:
		done.More = append(done.More, "The homeserver was never told that it had not arrived.")
	case lane.ProtocolOf(letter.Kind) == federation.MQTT:
		done.More = append(done.More, "Its publisher was never told that it had not arrived. It comes after what was published since.")
	case letter.Told:
		done.More = append(done.More, "Its sender has been told that it did not arrive, and may have sent it again.")
	default:
		done.More = append(done.More, "Its sender had not been told yet, and may still be, if that is under way now.")
	}
	if err := d.delete(ctx, letter.Row); err != nil {
		done.More = append(done.More, fmt.Sprintf("%s itself could not be deleted: %v. Drop it later.", name, err))
	}
	return done, nil
}

// requeue puts a letter on its lane and waits until it is on disk. It may wait for
// as long as it was to wait at first.
func requeue(ctx context.Context, to lane.Outbox, letter *store.Dead) error {
	it := lane.Item{ID: letter.ID, Kind: lane.ProtocolOf(letter.Kind), Conv: letter.Conv, Body: letter.Body}
	if life := letter.Expires.Sub(letter.At); !letter.Expires.IsZero() && life > 0 {
		it.Expires = time.Now().Add(life)
	}
	stored := make(chan error, 1)
	err := to.Put(ctx, federation.GridID(letter.Peer), lane.Name(letter.Lane), func(err error) { stored <- err }, it)
	if err != nil {
		return err
	}
	return <-stored // also if the command is gone: it decides what becomes of the letter
}

func requeueFix(err error, peer string) string {
	switch {
	case errors.Is(err, federation.ErrPeerNotActive):
		return "; `yggate peer show " + peer + "` tells what became of the peer"
	case errors.Is(err, lane.ErrFull):
		return "; `yggate outbox list " + peer + "` shows what fills the queue"
	}
	return "; `yggate status` tells how the store is"
}

// drop deletes a letter whose sender knows.
func (d *deadLetters) drop(ctx context.Context, id string) (admin.Done, error) {
	d.deciding.Lock()
	defer d.deciding.Unlock()
	_, letter, err := d.find(ctx, id)
	if err != nil {
		return admin.Done{}, err
	}
	if !letter.Told {
		return admin.Done{}, fmt.Errorf("the sender of dead/%d has not been told yet, and is as soon as the local server takes the error: drop it after that (`yggate status` shows the streams)", letter.Row)
	}
	if err := d.delete(ctx, letter.Row); err != nil {
		return admin.Done{}, fmt.Errorf("delete dead/%d: %w", letter.Row, err)
	}
	d.g.log.Info("operator deleted a dead letter", "peer", d.g.peerName(federation.GridID(letter.Peer)), "id", fmt.Sprintf("dead/%d", letter.Row))
	done := admin.Done{Done: fmt.Sprintf("dead/%d is deleted.", letter.Row)}
	if lane.ProtocolOf(letter.Kind).Bounces() {
		done.Done = fmt.Sprintf("dead/%d is deleted; its sender has been told before.", letter.Row)
	}
	return done, nil
}

func (d *deadLetters) delete(ctx context.Context, row int64) error {
	return d.g.store.Write(context.WithoutCancel(ctx), func(tx *sql.Tx) error { return d.g.store.DropDead(tx, []int64{row}) })
}

func (d *deadLetters) describe(l *store.Dead) admin.Item {
	out := admin.Item{
		Name: fmt.Sprintf("dead/%d", l.Row), Peer: d.g.peerName(federation.GridID(l.Peer)), Lane: l.Lane, Seq: l.Pos.Seq,
		Taken: l.At, Expires: l.Expires,
		Dead: &admin.Dead{ID: l.Row, Reason: l.Reason, Detail: l.Detail, Died: l.Died, Told: l.Told},
	}
	out.Protocol = string(lane.ProtocolOf(l.Kind))
	describeBody(&out, l.Body)
	return out
}

// untold returns the peers that have dead letters whose senders do not know.
func (g *gateway) untold(ctx context.Context) ([]admin.Untold, error) {
	peers, err := g.store.UntoldPeers(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for senders that have not been told: %w", err)
	}
	var out []admin.Untold
	for _, peer := range peers {
		oldest, err := g.store.Untold(ctx, peer, 0, 1)
		if err != nil {
			return nil, fmt.Errorf("look for senders that have not been told: %w", err)
		}
		if len(oldest) > 0 { // none, if they were told meanwhile
			out = append(out, admin.Untold{Peer: g.peerName(federation.GridID(peer)), Since: oldest[0].Died})
		}
	}
	return out, nil
}
