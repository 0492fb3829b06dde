package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
)

// maxAnswer bounds what a client reads of one answer.
const maxAnswer = 64 << 20

// ErrNotRunning is what every call wraps when no gateway answers on the socket.
var ErrNotRunning = errors.New("the gateway is not running")

// Client calls a running gateway.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the gateway whose socket that is.
func NewClient(socket string) *Client {
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Status asks how the gateway is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, "GET", "/v1/status", nil)
}

// Reload reads the configuration anew.
func (c *Client) Reload(ctx context.Context) (Done, error) {
	return call[Done](ctx, c, "POST", "/v1/reload", nil)
}

// Invite makes an invite.
func (c *Client) Invite(ctx context.Context, in InviteRequest) (Invite, error) {
	return call[Invite](ctx, c, "POST", "/v1/invite", in)
}

// Invites lists the invites of the last month or so, newest first.
func (c *Client) Invites(ctx context.Context) ([]ListedInvite, error) {
	return call[[]ListedInvite](ctx, c, "GET", "/v1/invites", nil)
}

// Revoke makes an open invite worthless.
func (c *Client) Revoke(ctx context.Context, id string) (Done, error) {
	return call[Done](ctx, c, "POST", "/v1/invites/"+url.PathEscape(id)+"/revoke", nil)
}

// Preview reads an invite without accepting it.
func (c *Client) Preview(ctx context.Context, in AcceptRequest) (Preview, error) {
	return call[Preview](ctx, c, "POST", "/v1/preview", in)
}

// Accept accepts an invite and returns the peer that it made.
func (c *Client) Accept(ctx context.Context, in AcceptRequest) (Peer, error) {
	return call[Peer](ctx, c, "POST", "/v1/accept", in)
}

// Peers lists every known grid, tombstones included.
func (c *Client) Peers(ctx context.Context) ([]Peer, error) {
	return call[[]Peer](ctx, c, "GET", "/v1/peers", nil)
}

// Peer shows one.
func (c *Client) Peer(ctx context.Context, name string) (Peer, error) {
	return call[Peer](ctx, c, "GET", "/v1/peers/"+url.PathEscape(name), nil)
}

// Decide changes a peer's state: approve, pause, resume, block or remove.
func (c *Client) Decide(ctx context.Context, name, verb string) (Done, error) {
	return call[Done](ctx, c, "POST", "/v1/peers/"+url.PathEscape(name)+"/"+url.PathEscape(verb), nil)
}

// Domains lists every claim, own domains first.
func (c *Client) Domains(ctx context.Context) ([]Domain, error) {
	return call[[]Domain](ctx, c, "GET", "/v1/domains", nil)
}

// Assign gives a domain to a peer.
func (c *Client) Assign(ctx context.Context, in DomainRequest) (Done, error) {
	return call[Done](ctx, c, "POST", "/v1/domains", in)
}

// Route explains what would become of traffic to an address.
func (c *Client) Route(ctx context.Context, in RouteRequest) (Route, error) {
	q := url.Values{"address": {in.Address}, "protocol": {in.Protocol}}
	return call[Route](ctx, c, "GET", "/v1/route?"+q.Encode(), nil)
}

// Outbox lists what waits, and up to limit items of each lane to a peer unless that
// is "".
func (c *Client) Outbox(ctx context.Context, peer string, limit int) (Outbox, error) {
	return call[Outbox](ctx, c, "GET", "/v1/outbox?"+listQuery(peer, limit), nil)
}

// Queued shows an item that waits for a peer, its body only on request.
func (c *Client) Queued(ctx context.Context, peer, lane string, seq uint64, body bool) (Item, error) {
	return call[Item](ctx, c, "GET", queuedPath(peer, lane, seq)+bodyQuery(body), nil)
}

// RetryPeer dials a peer now, or all of them where peer is "".
func (c *Client) RetryPeer(ctx context.Context, peer string) (Done, error) {
	if peer == "" {
		return call[Done](ctx, c, "POST", "/v1/outbox/retry", nil)
	}
	return call[Done](ctx, c, "POST", "/v1/outbox/"+url.PathEscape(peer)+"/retry", nil)
}

// DropQueued gives an item up that waits for a peer.
func (c *Client) DropQueued(ctx context.Context, peer, lane string, seq uint64) (Done, error) {
	return call[Done](ctx, c, "POST", queuedPath(peer, lane, seq)+"/drop", nil)
}

// DropAll gives everything up that waits for a peer.
func (c *Client) DropAll(ctx context.Context, peer string) (Done, error) {
	return call[Done](ctx, c, "POST", "/v1/outbox/"+url.PathEscape(peer)+"/drop", nil)
}

// DeadLetters lists the newest dead letters of a peer, or of all where peer is "".
func (c *Client) DeadLetters(ctx context.Context, peer string, limit int) ([]Item, error) {
	return call[[]Item](ctx, c, "GET", "/v1/dead?"+listQuery(peer, limit), nil)
}

// DeadLetter shows one, its body only on request.
func (c *Client) DeadLetter(ctx context.Context, id int64, body bool) (Item, error) {
	return call[Item](ctx, c, "GET", deadPath(id)+bodyQuery(body), nil)
}

// RetryDead puts a dead letter into the queue again.
func (c *Client) RetryDead(ctx context.Context, id int64) (Done, error) {
	return call[Done](ctx, c, "POST", deadPath(id)+"/retry", nil)
}

// DropDead deletes a dead letter whose sender knows.
func (c *Client) DropDead(ctx context.Context, id int64) (Done, error) {
	return call[Done](ctx, c, "POST", deadPath(id)+"/drop", nil)
}

func queuedPath(peer, lane string, seq uint64) string {
	return "/v1/outbox/" + url.PathEscape(peer) + "/" + url.PathEscape(lane) + "/" + strconv.FormatUint(seq, 10)
}

func deadPath(id int64) string { return "/v1/dead/" + strconv.FormatInt(id, 10) }

func listQuery(peer string, limit int) string {
	return url.Values{"peer": {peer}, "limit": {strconv.Itoa(limit)}}.Encode()
}

func bodyQuery(body bool) string {
	if body {
		return "?body=true"
	}
	return ""
}

func call[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	var body io.Reader = http.NoBody
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://yggate"+path, body)
	if err != nil {
		return out, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.explain(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return out, fmt.Errorf("read the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		var f failure
		if json.Unmarshal(answer, &f) == nil && f.Error != "" {
			return out, errors.New(f.Error)
		}
		return out, fmt.Errorf("the gateway answered %s", resp.Status)
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, fmt.Errorf("read the gateway's answer: %w", err)
	}
	return out, nil
}

// explain says what to do about a socket that does not answer.
func (c *Client) explain(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // the made-up URL would only confuse
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w (nothing answers on %s); start it with `yggate serve`, or name its configuration with --config", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("reach the gateway on %s: %w; run this as the user that the gateway runs as", c.socket, fs.ErrPermission)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the gateway on %s has not answered in time: %w", c.socket, context.DeadlineExceeded)
	}
	return fmt.Errorf("reach the gateway on %s: %w", c.socket, err)
}
