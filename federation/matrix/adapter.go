// Package matrix carries Matrix federation between the operator's own homeserver
// and those of peer grids.
//
// Requests pass live, one for one: the homeserver's own HTTPS connections end at
// the Proxy or the TLS listener of the gateway (proxy.go), each request goes over
// the link to the peer's gateway (outbound.go), which decides on it and hands it
// to its homeserver (inbound.go). Bodies stream; neither the request-target nor a
// body is ever rewritten, because both are signed.
//
// What a peer may do here is decided on its gateway's word alone:
//
//   - the origin of a request must be a server name whose active claim is held by
//     exactly the peer it came from, and its X-Matrix signature must be that
//     server's (xmatrix.go, keys.go); the destination must be this grid's. There
//     is no relay;
//   - only the federation, key and media APIs pass (target.go), within the limits
//     of the peer and of one request.
//
// A peer that is down answers at once, with an error; when its link comes up each
// side has its own homeserver speak to the other, so that no homeserver waits out
// a backoff of hours (wake.go). Custody of transactions is opt-in (custody.go).
package matrix

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/lane"
	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/store"
)

// Endpoint is where the gateway of a peer takes requests for its homeserver.
const Endpoint = "/v1/http/matrix"

// Links is the way to the gateways of peers; link has it.
type Links interface {
	// RoundTrip sends a request to a path of a peer's gateway. It returns
	// federation.ErrPeerDown when there is no live link, and its own error when
	// too much is under way already.
	RoundTrip(ctx context.Context, peer federation.GridID, req *http.Request) (*http.Response, error)
}

// Outbox takes the transactions of peers with custody; lane.Durable is one.
type Outbox interface {
	lane.Outbox
	// Waiting says how many items of a lane wait for a peer.
	Waiting(peer federation.GridID, name lane.Name) int64
}

// Config is what an Adapter works with. Fields without a remark are required.
type Config struct {
	Directory *federation.Directory
	Links     Links
	// Store remembers the signing keys of peers' servers.
	Store *store.Store
	// CA is what the homeserver trusts for peers' names.
	CA *localca.CA
	// Server is the homeserver: scheme, host and port.
	Server *url.URL
	// Proxy takes CONNECT requests of the homeserver; may be none if Listen is not.
	Proxy netip.AddrPort
	// Listen take TLS connections of homeservers that find peers by /etc/hosts.
	Listen []netip.AddrPort
	// AllowFrom are the only sources that Proxy and Listen answer; none means loopback.
	AllowFrom []netip.Prefix
	// UpstreamProxy gets CONNECT requests for names of nobody; nil: refused.
	UpstreamProxy *url.URL
	// MaxBody bounds one request body, in bytes. 0: DefaultMaxBody.
	MaxBody int64
	// Link says for Explain whether the link to a peer is up, and in words what is
	// known of it. Nil: nothing is said of the link.
	Link    func(federation.GridID) (up bool, detail string)
	Log     *slog.Logger          // may be nil
	Metrics prometheus.Registerer // may be nil
}

// DefaultMaxBody is what 50 events and 100 EDUs of a transaction cannot exceed
// (server-server API, "Transactions": events have 64 KiB at most).
const DefaultMaxBody = 16 << 20

func (c *Config) complete() error {
	switch {
	case c.Directory == nil || c.Links == nil || c.Store == nil || c.CA == nil || c.Server == nil:
		return errors.New("matrix adapter: a directory, links, a store, a CA and a homeserver are required")
	case !c.Proxy.IsValid() && len(c.Listen) == 0:
		return errors.New("matrix adapter: neither a proxy nor a listener: the homeserver cannot reach anyone")
	}
	if len(c.AllowFrom) == 0 {
		c.AllowFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	if c.MaxBody <= 0 {
		c.MaxBody = DefaultMaxBody
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Log = c.Log.With("proto", string(federation.Matrix))
	return nil
}

// Adapter is both sides: for the own homeserver (outbound) and for peers (inbound).
// Its methods may be called concurrently.
type Adapter struct {
	cfg Config
	in  *inbound
	out *outbound
}

// New checks the configuration.
func New(cfg Config) (*Adapter, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	a := &Adapter{cfg: cfg}
	var err error
	if a.in, err = newInbound(&a.cfg); err != nil {
		return nil, err
	}
	if a.out, err = newOutbound(&a.cfg); err != nil {
		return nil, err
	}
	a.in.awaitUp = a.out.wakes.awaitUp
	a.in.lost = func(peer federation.GridID) { a.out.wakes.trouble(peer, "") }
	return a, nil
}

// Connect gives the Adapter the lanes, which need it to be made. Call it once, before
// Run and before either side is started.
func (a *Adapter) Connect(outbox Outbox) { a.out.outbox = outbox }
