package matrix

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"
	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
)

// outbound is the side of the own homeserver: it takes its requests for peers'
// servers and sends them over the link.
type outbound struct {
	cfg      *Config
	log      *slog.Logger
	metrics  *outMetrics
	tls      *tls.Config
	arrivals *handoff
	wakes    *wakes
	outbox   Outbox // from Connect
	custody  *custody
	handlers handlers
	patience time.Duration // headerPatience
	linger   time.Duration // lingerFor
	// sometimes is for warnings that one fault would cause by the thousand.
	sometimes rate.Sometimes
}

func newOutbound(cfg *Config) (*outbound, error) {
	if u := cfg.UpstreamProxy; u != nil && (u.Scheme != "http" || u.Port() == "") {
		return nil, fmt.Errorf("matrix adapter: upstream proxy %q: want http://HOST:PORT, with USER:PASSWORD@ if it asks for them", u.Redacted())
	}
	o := &outbound{
		cfg: cfg, log: cfg.Log.With("dir", "out"), metrics: newOutMetrics(cfg.Metrics),
		arrivals: newHandoff(), patience: headerPatience, linger: lingerFor, sometimes: rate.Sometimes{First: 1, Interval: time.Minute},
	}
	o.tls = o.tlsConfig()
	o.wakes = newWakes(o)
	o.custody = newCustody(o)
	return o, nil
}

// exchange is one request of the homeserver.
type exchange struct {
	o      *outbound
	w      *recorder
	r      *http.Request
	target target
	name   string // the server name that it is for
	peer   *federation.Peer
	sent   *requestBody // what the link reads, if anything
	wake   bool         // it is a lookup that the gateway has asked for
}

// ServeHTTP answers a request of the homeserver that came by way of an arrival.
func (o *outbound) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !o.handlers.enter() {
		panic(http.ErrAbortHandler)
	}
	defer o.handlers.leave()
	x := &exchange{o: o, w: &recorder{ResponseWriter: w}, r: r}
	defer x.end()
	// An answer may come before the body is read, and must not wait for it.
	if err := http.NewResponseController(x.w).EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		o.log.Debug("a connection of the homeserver cannot carry an answer beside a body", "err", err)
	}
	begun := time.Now()
	if e := x.serve(); e != nil {
		if x.w.status == 0 {
			x.w.refuse(e)
		}
		o.log.Debug("a request of the homeserver is not answered by the peer",
			"server", x.name, "peer", x.peerName(), "endpoint", x.target.endpoint, "status", e.StatusCode, "reason", e.Err)
	}
	o.metrics.request(x.peerName(), x.target.endpoint, x.w.status, time.Since(begun))
	x.end()
	x.linger()
}

func (x *exchange) end() {
	if x.sent != nil {
		x.sent.end()
	}
}

func (x *exchange) peerName() string {
	if x.peer == nil {
		return ""
	}
	return x.peer.Name
}

// serve answers, or says what is to be answered.
func (x *exchange) serve() *mautrix.RespError {
	a := arrivalOf(x.r.Context())
	if a == nil {
		return respond(mautrix.MUnrecognized, "this connection is for no server")
	}
	now := x.o.cfg.Directory.Now()
	x.name, x.peer = holder(now, a.host, a.port)
	if e := x.checkHost(a.host); e != nil {
		return e
	}
	if path, _, _ := strings.Cut(x.r.RequestURI, "?"); path == "/.well-known/matrix/server" {
		return x.wellKnown(now, a.host)
	}
	var e *mautrix.RespError
	if x.target, e = parseTarget(x.r.RequestURI); e != nil {
		return e
	}
	if !x.target.allows(x.r.Method) {
		return respond(mautrix.MUnrecognized.WithStatus(http.StatusMethodNotAllowed), "no endpoint between servers knows this method")
	}
	if e := x.mayPass(now); e != nil {
		return e
	}
	if x.peer.Policy.Matrix.Custody && x.target.endpoint == endpointSend && x.r.Method == http.MethodPut {
		done, e := x.o.custody.take(x)
		if done || e != nil {
			return e
		}
	}
	if x.wake = x.o.wakes.isWake(x); x.wake {
		x.o.wakes.note(x.peer.ID, x.name, false)
	}
	return x.live()
}

// checkHost refuses a request whose Host is another's: whatever joined it to this
// connection has mixed two servers up. The port may be one of a delegation.
func (x *exchange) checkHost(want string) *mautrix.RespError {
	host := x.r.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	if got, err := federation.NormalizeDomain(host); err != nil || got != want {
		return respond(mautrix.MUnknown.WithStatus(http.StatusMisdirectedRequest), "this connection is for "+want+", the Host header is for another server")
	}
	return nil
}

// wellKnown answers for the peer's server, with a port, so that homeservers ask no
// DNS (server-server API, "Resolving server names", step 3.2).
func (x *exchange) wellKnown(now *federation.Snapshot, host string) *mautrix.RespError {
	switch {
	case x.r.Method != http.MethodGet && x.r.Method != http.MethodHead:
		return respond(mautrix.MUnrecognized.WithStatus(http.StatusMethodNotAllowed), "want GET")
	case now.Owner(federation.Matrix, host) == nil:
		return respond(mautrix.MNotFound, "no peer holds the server name "+host)
	}
	// Not a port that is a server of its own.
	port := 443
	for now.Owner(federation.Matrix, host+":"+strconv.Itoa(port)) != nil {
		port++
	}
	x.target.endpoint = "well_known"
	x.w.Header().Set("Content-Type", "application/json")
	x.w.WriteHeader(http.StatusOK)
	fmt.Fprintf(x.w, `{"m.server":"%s:%d"}`, host, port) // normalised: nothing to escape
	return nil
}

// mayPass asks what the operators have decided about the server and the room.
func (x *exchange) mayPass(now *federation.Snapshot) *mautrix.RespError {
	peer, err := now.Route(federation.Matrix, x.name)
	switch {
	case errors.Is(err, federation.ErrUnknownDomain):
		return respond(mautrix.MForbidden, "no peer holds the server name "+x.name+" any more")
	case errors.Is(err, federation.ErrNotAllowed):
		return respond(mautrix.MForbidden, "the peer "+peer.Name+", who holds "+x.name+", is not allowed Matrix")
	case errors.Is(err, federation.ErrPeerNotActive) && !(peer.State == federation.StatePaused && peer.Policy.Matrix.Custody):
		return respond(errPeerDown, "the peer "+peer.Name+", who holds "+x.name+", is "+string(peer.State))
	}
	policy := &x.peer.Policy.Matrix
	if !policy.AllowsServer(x.name) {
		return respond(mautrix.MForbidden, "the operator of this gateway does not let "+x.name+" take part")
	}
	return denyRoom(policy, &x.target, nil)
}

// live sends the request over the link now, and passes the answer on as it comes.
func (x *exchange) live() *mautrix.RespError {
	req, e := x.request()
	if e != nil {
		return e
	}
	res, err := x.o.cfg.Links.RoundTrip(x.r.Context(), x.peer.ID, req)
	if err != nil {
		return x.noAnswer(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode < 200 || res.StatusCode >= 300 && res.StatusCode < 400 && res.StatusCode != http.StatusNotModified:
		// The gateway of the peer lets no redirect pass; following one would lead
		// out of what is checked.
		return respond(errHomeserver, fmt.Sprintf("the gateway of %s answers %d, which is no answer between servers", x.peer.Name, res.StatusCode))
	case x.wake:
		return x.woken(res)
	}
	if res.StatusCode >= 500 {
		x.o.wakes.trouble(x.peer.ID, x.name)
	}
	return x.pass(res)
}

// request makes what goes over the link out of what the homeserver has asked.
func (x *exchange) request() (*http.Request, *mautrix.RespError) {
	if enc := x.r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return nil, respond(mautrix.MUnknown.WithStatus(http.StatusUnsupportedMediaType), "requests between servers have no Content-Encoding")
	}
	if x.r.ContentLength > x.o.cfg.MaxBody {
		return nil, x.tooLarge()
	}
	h := http.Header{}
	copyHeaders(h, x.r.Header, requestHeaders)
	h.Set(headerTarget, x.target.raw)
	h.Set(headerServer, x.name)
	h.Set("Accept-Encoding", "gzip")
	req := &http.Request{
		Method: x.r.Method, URL: &url.URL{Scheme: "https", Host: "peer", Path: Endpoint}, Header: h,
		ContentLength: x.r.ContentLength,
	}
	if x.r.Body == nil || x.r.Body == http.NoBody || x.r.ContentLength == 0 {
		req.Body, req.ContentLength = http.NoBody, 0
		return req, nil
	}
	req.Body = x.body()
	if x.r.ContentLength >= gzipFrom && isJSON(x.r.Header) {
		req.Body, req.ContentLength = newGzipBody(req.Body), -1
		h.Set("Content-Encoding", "gzip")
	}
	return req, nil
}

func (x *exchange) tooLarge() *mautrix.RespError {
	return respond(mautrix.MTooLarge, fmt.Sprintf("the body has more than %d bytes, which is matrix.max_body of this gateway", x.o.cfg.MaxBody))
}

// noAnswer is what the homeserver is told of a request that the link did not carry.
func (x *exchange) noAnswer(err error) *mautrix.RespError {
	switch {
	case x.r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // nobody listens any more
	case errors.Is(err, errTooLarge):
		return x.tooLarge()
	case errors.Is(err, federation.ErrPeerDown):
		// Of the link itself, or of its connection for live requests alone.
		x.o.wakes.trouble(x.peer.ID, x.name)
		return respond(errPeerDown, "the gateway of "+x.peer.Name+", who holds "+x.name+", cannot be reached now")
	case errors.Is(err, link.ErrBusy):
		e := tooMany(time.Second, "too many requests to "+x.peer.Name+" are under way")
		return &e
	case errors.Is(err, link.ErrHeaderTooLarge):
		return respond(mautrix.MTooLarge.WithStatus(http.StatusRequestHeaderFieldsTooLarge), "the header of the request is too large")
	}
	x.o.wakes.trouble(x.peer.ID, x.name)
	x.o.log.Warn("a request to a peer failed on its way", "peer", x.peer.Name, "server", x.name, "endpoint", x.target.endpoint, "err", err)
	return respond(errHomeserver, "the request to "+x.peer.Name+" failed on its way")
}

// pass gives the homeserver the answer of the peer, as it comes.
func (x *exchange) pass(res *http.Response) *mautrix.RespError {
	body := io.Reader(res.Body)
	copyHeaders(x.w.Header(), res.Header, responseHeaders)
	switch enc := res.Header.Get("Content-Encoding"); enc {
	case "":
		if res.ContentLength >= 0 {
			x.w.Header().Set("Content-Length", strconv.FormatInt(res.ContentLength, 10))
		}
	case "gzip":
		x.w.Header().Del("Content-Length")
		unzipped, err := newGunzip(res.Body, maxUnzipped)
		if err != nil {
			clear(x.w.Header())
			return respond(errHomeserver, "the gateway of "+x.peer.Name+" sent an answer that is not what it says (gzip)")
		}
		body = unzipped
	default:
		clear(x.w.Header())
		return respond(errHomeserver, fmt.Sprintf("the gateway of %s sent an answer with the Content-Encoding %.20q, which was not asked for", x.peer.Name, enc))
	}
	x.w.WriteHeader(res.StatusCode)
	if err := x.copy(body, res.ContentLength < 0); err != nil {
		// The status is out: only a broken connection says that the rest is missing.
		x.o.log.Debug("an answer of a peer broke off", "peer", x.peer.Name, "endpoint", x.target.endpoint, "err", err)
		x.o.metrics.broken.WithLabelValues(x.peer.Name).Inc()
		x.o.wakes.trouble(x.peer.ID, x.name)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// woken answers the lookup by which the gateway makes its homeserver speak to a
// peer's. The far server has no such alias, which it says after it has checked the
// signature; the near one is told of a success, because only a success makes
// Synapse forget its backoff.
func (x *exchange) woken(res *http.Response) *mautrix.RespError {
	raw, err := readAnswer(res, 64<<10)
	if err != nil {
		return respond(errHomeserver, "the gateway of "+x.peer.Name+" sent an answer that cannot be read: "+err.Error())
	}
	var body struct {
		Code string `json:"errcode"`
	}
	known := json.Unmarshal(raw, &body) == nil
	switch {
	case res.StatusCode == http.StatusOK, known && res.StatusCode == http.StatusNotFound && body.Code == mautrix.MNotFound.ErrCode:
		x.o.wakes.reached(x.peer.ID, x.name)
		x.w.Header().Set("Content-Type", "application/json")
		x.w.WriteHeader(http.StatusOK)
		_, err = io.WriteString(x.w, `{"room_id":"","servers":[]}`)
	default:
		copyHeaders(x.w.Header(), res.Header, []string{"Content-Type", "Retry-After"})
		x.w.WriteHeader(res.StatusCode)
		_, err = io.Copy(x.w, bytes.NewReader(raw))
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}
