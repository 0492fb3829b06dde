package matrix

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
)

const (
	// serverDial is how long the homeserver's port may take, which is near.
	serverDial = 5 * time.Second
	// serverPatience is how long the homeserver may work on a request: joins of
	// large rooms take minutes.
	serverPatience = 10 * time.Minute
	// serverHeader bounds the header of its answers.
	serverHeader = 64 << 10
	serverIdle   = 64
)

// inbound is the side of the peers: it decides on their requests and hands them to
// the own homeserver.
type inbound struct {
	cfg      *Config
	log      *slog.Logger
	metrics  *inMetrics
	keys     *keyring
	limits   limits
	order    *semaphore.Weighted // see orderMemory
	server   *http.Transport     // to the homeserver and nowhere else
	patience time.Duration       // senderPatience

	// awaitUp waits a moment for the own side of the link to a peer.
	awaitUp func(context.Context, federation.GridID)
	// lost is told that the homeserver could not be reached for a peer.
	lost func(federation.GridID)
}

func newInbound(cfg *Config) (*inbound, error) {
	if s := cfg.Server; s.Scheme != "http" && s.Scheme != "https" || s.Host == "" {
		return nil, fmt.Errorf("matrix adapter: homeserver %q: want http://HOST:PORT", s.Redacted())
	}
	in := &inbound{
		cfg: cfg, log: cfg.Log.With("dir", "in"), metrics: newInMetrics(cfg.Metrics), order: newOrderMemory(),
		limits:   limits{maxBody: cfg.MaxBody, patience: placePatience, peers: map[federation.GridID]*quota{}},
		patience: senderPatience,
		server: &http.Transport{
			Proxy:       nil, // whatever the environment says
			DialContext: (&net.Dialer{Timeout: serverDial}).DialContext, ResponseHeaderTimeout: serverPatience,
			MaxIdleConns: serverIdle, MaxIdleConnsPerHost: serverIdle, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: serverHeader, DisableCompression: true,
		},
	}
	var err error
	in.keys, err = newKeyring(cfg, in.log, in.metrics)
	return in, err
}

// ServePeer answers a request that the gateway of a peer sent to Endpoint.
func (a *Adapter) ServePeer(w http.ResponseWriter, r *http.Request, peer *federation.Peer) {
	a.in.serve(w, r, peer)
}

// incoming is one request of a peer.
type incoming struct {
	in     *inbound
	w      *recorder
	r      *http.Request
	peer   *federation.Peer // as the directory has it now
	quota  *quota
	target target
	name   string // the own server name that it is for
	origin string // the server that asks; "" where no proof is wanted
}

func (in *inbound) serve(w http.ResponseWriter, r *http.Request, peer *federation.Peer) {
	now := in.cfg.Directory.Now()
	if p := now.Peer(peer.ID); p != nil {
		peer = p
	}
	x := &incoming{in: in, w: &recorder{ResponseWriter: w}, r: r, peer: peer, quota: in.limits.of(peer, now)}
	begun := time.Now()
	defer func() { in.metrics.request(peer.Name, x.target.endpoint, x.w.status, time.Since(begun)) }()
	if e := x.serve(now); e != nil && r.Context().Err() == nil {
		x.refused(e)
		e.Write(x.w)
	}
}

// refused counts a refusal and logs it, at a bounded rate: a peer decides how often
// it is refused.
func (x *incoming) refused(e *mautrix.RespError) {
	x.in.metrics.refused.WithLabelValues(x.peer.Name, e.ErrCode).Inc()
	if !x.quota.audit.Allow() {
		x.quota.unlogged.Add(1)
		return
	}
	attrs := []any{"peer", x.peer.Name, "endpoint", x.target.endpoint, "code", e.ErrCode, "status", e.StatusCode, "reason", e.Err}
	if n := x.quota.unlogged.Swap(0); n > 0 {
		attrs = append(attrs, "unlogged", n)
	}
	x.in.log.Warn("request refused", attrs...)
}

// serve answers, or says what is to be answered.
func (x *incoming) serve(now *federation.Snapshot) *mautrix.RespError {
	if p := now.Peer(x.peer.ID); p == nil || p.State != federation.StateActive || !p.Policy.Allow[federation.Matrix] {
		return respond(mautrix.MForbidden, "this grid does not take Matrix from yours now")
	}
	leave, e := x.quota.enter(x.r.Context())
	if e != nil {
		return e
	}
	defer leave()
	if e := x.read(now); e != nil {
		return e
	}
	var p proof
	if x.target.signed {
		// Before the body, which may be large, is waited for.
		if p, e = x.in.identify(x.peer, x.r.Header["Authorization"], x.name); e != nil {
			return e
		}
		x.origin = p.origin
	}
	body, e := x.in.readBody(x.w, x.r, x.quota)
	defer body.release()
	if e != nil {
		return e
	}
	if e := x.check(now, p, body.bytes); e != nil {
		return e
	}
	return x.forward(body.bytes)
}

// read takes what the peer's gateway says that the request is.
func (x *incoming) read(now *federation.Snapshot) (e *mautrix.RespError) {
	raw, server := x.r.Header[headerTarget], x.r.Header[headerServer]
	if len(raw) != 1 || len(server) != 1 {
		return respond(mautrix.MUnrecognized, "a request between gateways has one "+headerTarget+" and one "+headerServer+" header")
	}
	if x.target, e = parseTarget(raw[0]); e != nil {
		return e
	}
	if !x.target.allows(x.r.Method) {
		return respond(mautrix.MUnrecognized.WithStatus(http.StatusMethodNotAllowed), "no endpoint between servers has this method")
	}
	x.name = server[0]
	if !now.Own(federation.Matrix, x.name) {
		return respond(mautrix.MForbidden, fmt.Sprintf("%.260q is no server of this grid, which does not relay", x.name))
	}
	if about := x.target.about; about != "" && !now.Own(federation.Matrix, about) {
		return respond(mautrix.MForbidden, fmt.Sprintf("%.260q is no server of this grid, which does not relay", about))
	}
	return nil
}

// check decides on the whole request.
func (x *incoming) check(now *federation.Snapshot, p proof, body []byte) *mautrix.RespError {
	if x.target.signed {
		begun := time.Now()
		e := x.in.prove(x.r.Context(), x.peer, p, signedRequest{
			method: x.r.Method, target: x.target.raw, body: body, destination: x.name,
		})
		x.in.metrics.verified.Observe(time.Since(begun).Seconds())
		if e != nil {
			return e
		}
	} else if len(body) > 0 {
		if _, e := checkJSON(body); e != nil {
			return e
		}
	}
	if x.target.endpoint == endpointKeyQuery && len(body) > 0 {
		return onlyOwnKeys(now, body)
	}
	return denyRoom(&x.peer.Policy.Matrix, &x.target, body)
}

// onlyOwnKeys refuses a query for keys of other servers ("Querying Keys Through
// Another Server"): the homeserver would ask them for this peer.
func onlyOwnKeys(now *federation.Snapshot, body []byte) *mautrix.RespError {
	var query struct {
		Servers map[string]json.RawMessage `json:"server_keys"`
	}
	if err := json.Unmarshal(body, &query); err != nil {
		return respond(mautrix.MBadJSON, "the query for keys: "+err.Error())
	}
	for name := range query.Servers {
		if !now.Own(federation.Matrix, name) {
			return respond(mautrix.MForbidden, fmt.Sprintf("%.260q is no server of this grid, which is no notary for others", name))
		}
	}
	return nil
}

// forward hands the request to the homeserver and its answer to the peer.
func (x *incoming) forward(body []byte) *mautrix.RespError {
	if isPeersWake(x.target) {
		// The homeserver sends at once what waits.
		x.in.awaitUp(x.r.Context(), x.peer.ID)
	}
	res, err := x.in.ask(x.r.Context(), x.r.Method, x.target.raw, x.name, x.r.Header, body)
	if err != nil {
		return x.noAnswer(err)
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode >= 300 && res.StatusCode < 400 && res.StatusCode != http.StatusNotModified {
		return respond(errHomeserver, fmt.Sprintf("the homeserver of %s answers %d, which does not pass between servers", x.name, res.StatusCode))
	}
	return x.pass(res)
}

// ask sends a request to the own homeserver, byte for byte. header may have more
// than passes.
func (in *inbound) ask(ctx context.Context, method, target, server string, header http.Header, body []byte) (*http.Response, error) {
	req := (&http.Request{
		Method: method, Host: server, Header: http.Header{},
		// Opaque is written as it stands.
		URL: &url.URL{Scheme: in.cfg.Server.Scheme, Host: in.cfg.Server.Host, Opaque: target},
	}).WithContext(ctx)
	copyHeaders(req.Header, header, requestHeaders)
	if req.Header["User-Agent"] == nil {
		req.Header["User-Agent"] = []string{""} // otherwise net/http adds its own
	}
	if len(body) > 0 {
		req.ContentLength = int64(len(body))
		req.Body = io.NopCloser(bytes.NewReader(body))
		// Lets net/http try again when a kept connection turns out to be closed.
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	return in.server.RoundTrip(req)
}

func (x *incoming) noAnswer(err error) *mautrix.RespError {
	if x.r.Context().Err() != nil {
		return respond(mautrix.MUnknown, "given up")
	}
	x.in.log.Warn("the homeserver does not answer", "peer", x.peer.Name, "domain", x.name, "endpoint", x.target.endpoint, "err", err)
	var e net.Error
	if errors.As(err, &e) && e.Timeout() {
		return respond(errPeerDown, "the homeserver of "+x.name+" does not answer in time")
	}
	x.in.lost(x.peer.ID)
	return respond(errHomeserver, "the homeserver of "+x.name+" cannot be reached by its gateway")
}

// pass streams the homeserver's answer to the peer.
func (x *incoming) pass(res *http.Response) *mautrix.RespError {
	h := x.w.Header()
	copyHeaders(h, res.Header, responseHeaders)
	src := res.Body
	zip, head := x.worthZipping(res)
	if head != nil {
		src = readCloser{io.MultiReader(bytes.NewReader(head), res.Body), res.Body}
	}
	if zip {
		h.Set("Content-Encoding", "gzip")
		h.Del("Content-Length")
		src = newGzipBody(src)
	}
	x.w.WriteHeader(res.StatusCode)
	if err := x.stream(src); err != nil {
		// The status is out: only a broken stream says that the rest is missing.
		if x.r.Context().Err() == nil {
			x.in.metrics.broken.WithLabelValues(x.peer.Name).Inc()
			x.in.log.Debug("an answer broke off", "peer", x.peer.Name, "endpoint", x.target.endpoint, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	return nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// worthZipping says whether the answer goes over the link compressed. head is what
// was read of the answer to find out, if anything.
func (x *incoming) worthZipping(res *http.Response) (zip bool, head []byte) {
	encoded := res.Header.Get("Content-Encoding") != "" // though none was asked for
	if !acceptsGzip(x.r.Header) || encoded || !isJSON(res.Header) || res.StatusCode == http.StatusNotModified || res.StatusCode == http.StatusNoContent {
		return false, nil
	}
	if res.ContentLength >= 0 {
		return res.ContentLength >= gzipFrom, nil
	}
	head = make([]byte, gzipFrom)
	n, err := io.ReadFull(res.Body, head)
	return err == nil, head[:n]
}

func acceptsGzip(h http.Header) bool {
	for _, v := range h["Accept-Encoding"] {
		for name := range strings.SplitSeq(v, ",") {
			if strings.TrimSpace(name) == "gzip" {
				return true
			}
		}
	}
	return false
}

// stream copies an answer's body, and sends on at once what does not fill a buffer.
func (x *incoming) stream(src io.Reader) error {
	rc := http.NewResponseController(x.w)
	buf := copyBuffers.Get().(*[copyBuffer]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, err := x.w.Write(buf[:n]); err != nil {
				return err
			}
			if n < len(buf) && err == nil {
				if err := rc.Flush(); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
