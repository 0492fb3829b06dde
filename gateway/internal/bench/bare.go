package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	mautrixfed "maunium.net/go/mautrix/federation"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// bareGateways is two gateways with no homeserver: this process asks the one as a
// homeserver does, with a client like Dendrite's, and answers the other. What they
// add is not hidden behind what a homeserver takes.
type bareGateways struct {
	gateways []*peertest.Gateway
	names    [2]string // their server names
	key      *mautrixfed.SigningKey
	client   *http.Client // through the gateways
	direct   *http.Client // to the same answers over TLS
}

// startBare starts them.
func startBare(ctx context.Context, dir string) (b *bareGateways, stop func() error, err error) {
	b = &bareGateways{key: mautrixfed.GenerateSigningKey()}
	var stops []func() error
	stop = func() (err error) {
		for i := len(stops) - 1; i >= 0; i-- {
			err = errors.Join(err, stops[i]())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	server := &http.Server{Handler: b.homeserver(), ReadHeaderTimeout: time.Minute}
	stops = append(stops, server.Close)
	plain, err := net.Listen("tcp", netip.AddrPortFrom(peertest.Loopback(), 8008).String())
	if err != nil {
		return nil, nil, err
	}
	go func() { _ = server.Serve(plain) }() // it ends with Close
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	var proxies [2]string
	var grids [2]*peertest.Grid
	for i, name := range []string{"c", "d"} {
		b.names[i] = "g" + name + ".grid.test"
		proxies[i] = netip.AddrPortFrom(peertest.Loopback(), 8118).String()
		g, err := peertest.NewGateway(ctx, name, filepath.Join(dir, name), nil, "")
		if err != nil {
			return nil, nil, err
		}
		flags := []string{"--name", name, "--matrix", b.names[i], "--matrix-server", "http://" + plain.Addr().String(),
			"--matrix-proxy", proxies[i], "--metrics", metricsAddr(name)}
		if i == 0 {
			flags = append(flags, "--mesh-listen", mesh, "--advertise", mesh)
		}
		if err := g.Init(ctx, flags...); err != nil {
			return nil, nil, err
		}
		grids[i] = &peertest.Grid{Name: name, Domain: b.names[i], Gateway: g}
		b.gateways = append(b.gateways, g)
		stops = append(stops, grids[i].Stop)
		if err := grids[i].Start(ctx); err != nil {
			return nil, nil, err
		}
	}
	if err := peertest.Pair(ctx, grids[0], grids[1]); err != nil {
		return nil, nil, err
	}
	issued, err := grids[0].Gateway.Setup(ctx, "dendrite")
	if err != nil {
		return nil, nil, err
	}
	b.client = &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(&url.URL{Scheme: "http", Host: proxies[0]}),
		TLSClientConfig: clientTLS(issued.Pool), DisableCompression: true, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1,
	}}
	return b, stop, b.serveDirect(dir, server)
}

// serveDirect has the same server answer over TLS, as homeservers do that need no
// gateway.
func (b *bareGateways) serveDirect(dir string, server *http.Server) error {
	ca, err := peertest.NewCA(dir)
	if err != nil {
		return err
	}
	file, err := ca.Issue(b.names[1])
	if err != nil {
		return err
	}
	pool, err := peertest.ReadPool(ca.File)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(peertest.Loopback(), 8448).String())
	if err != nil {
		return err
	}
	go func() { _ = server.ServeTLS(l, file, file) }() // it ends with Close
	var d net.Dialer
	b.direct = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, l.Addr().String())
		},
		TLSClientConfig: clientTLS(pool), DisableCompression: true, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1,
	}}
	return nil
}

// clientTLS is what Dendrite's client has.
func clientTLS(roots *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
}

// homeserver answers what is asked here, for both server names.
func (b *bareGateways) homeserver() http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, what any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(what) // who asked finds out
	}
	mux.HandleFunc("GET /_matrix/key/v2/server", func(w http.ResponseWriter, r *http.Request) {
		answer(w, b.key.GenerateKeyResponse(r.Host, nil))
	})
	mux.HandleFunc("PUT /_matrix/federation/v1/send/{txn}", func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer(w, map[string]any{"pdus": map[string]any{}})
	})
	mux.HandleFunc("GET /_matrix/media/v3/download/{server}/{size}", serveBody)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { // lookups by which gateways wake homeservers
		w.WriteHeader(http.StatusNotFound)
		answer(w, map[string]string{"errcode": "M_NOT_FOUND", "error": "there is nothing"})
	})
	return mux
}

// transaction sends a signed transaction of one message and returns how many
// milliseconds the answer took; to sign is not of them.
func (b *bareGateways) transaction(ctx context.Context, client *http.Client, n int64) (float64, error) {
	target := fmt.Sprintf("/_matrix/federation/v1/send/%d", n)
	body := []byte(`{"origin":"` + b.names[0] + `","origin_server_ts":1700000000000,"pdus":[{"auth_events":["$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","$bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"],"content":{"body":"hello there","msgtype":"m.text"},"depth":17,"hashes":{"sha256":"` +
		strings.Repeat("c", 43) + `"},"origin_server_ts":1700000000000,"prev_events":["$ddddddddddddddddddddddddddddddddddddddddddd"],"room_id":"!room:` + b.names[0] + `","sender":"@alice:` + b.names[0] + `","signatures":{"` + b.names[0] + `":{"ed25519:auto":"` + strings.Repeat("e", 86) + `"}},"type":"m.room.message"}]}`)
	sig, err := b.key.SignJSON(map[string]any{
		"method": http.MethodPut, "uri": target, "origin": b.names[0], "destination": b.names[1], "content": json.RawMessage(body),
	})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "https://"+b.names[1]+target, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", mautrixfed.XMatrixAuth{Origin: b.names[0], Destination: b.names[1], KeyID: b.key.ID, Signature: sig}.String())
	begun := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	said, err := io.ReadAll(res.Body)
	took := milliseconds(time.Since(begun))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("transaction: %s: %.200s", res.Status, said)
	}
	return took, err
}

// download gets a body as homeservers got media before it took a signature.
func (b *bareGateways) download(ctx context.Context, size int64) (whole, first time.Duration, err error) {
	return getBody(ctx, b.client.Do, fmt.Sprintf("https://%s/_matrix/media/v3/download/%s/%d", b.names[1], b.names[1], size), size)
}

// benchBare measures two gateways without homeservers.
func benchBare(ctx context.Context, o *options, dir string) (err error) {
	fmt.Fprintf(o.out, "\n# Matrix: two gateways without homeservers\n")
	b, stop, err := startBare(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	link, stopLink, err := startLink(ctx, filepath.Join(dir, "link"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopLink()) }()
	for _, pause := range []time.Duration{0, barePause} {
		if err := b.latency(ctx, o, pause); err != nil {
			return err
		}
	}
	if err := b.load(ctx, o); err != nil {
		return err
	}
	files := &transfer{name: "file server, gateways", run: func(ctx context.Context) (time.Duration, time.Duration, error) { return b.download(ctx, o.media<<20) }}
	alone := &transfer{name: "link alone", run: func(ctx context.Context) (time.Duration, time.Duration, error) {
		return link.download(ctx, o.media<<20)
	}}
	if err := inTurns(ctx, o, []*transfer{files, alone}); err != nil {
		return err
	}
	o.goals = append(o.goals, goal{what: "bare gateways, media to the link alone", have: files.ratio(alone), want: 0.8, unit: "x"})
	return nil
}

const (
	// bareRequests is how many transactions are sent to measure them.
	bareRequests = 2000
	// barePause is about how long homeservers work on a message: in it threads and
	// processors go to sleep, on every hop. A tenth of the transactions has it.
	barePause = 40 * time.Millisecond
)

// latency sends one transaction at a time, directly and through the gateways in
// turn, with a pause before each.
func (b *bareGateways) latency(ctx context.Context, o *options, pause time.Duration) error {
	clients := [2]*http.Client{b.direct, b.client}
	var took [2][]float64
	pairs := bareRequests
	if pause > 0 {
		pairs /= 10
	}
	for i := range pairs {
		for _, which := range order(i) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return ctx.Err()
			}
			ms, err := b.transaction(ctx, clients[which], int64(i))
			if err != nil {
				return err
			}
			if i > 0 { // connections and keys
				took[which] = append(took[which], ms)
			}
		}
	}
	low, high := bootstrap(took[0], took[1])
	fmt.Fprintf(o.out, "one transaction at a time, %v before each, %d pairs  direct p50 %.2f p99 %.2f ms  gateways p50 %.2f p99 %.2f ms  difference of p50 %+.2f ms (95%% of the resamples between %+.2f and %+.2f)\n",
		pause, len(took[0]), median(took[0]), quantile(took[0], 0.99), median(took[1]), quantile(took[1], 0.99), median(took[1])-median(took[0]), low, high)
	o.goals = append(o.goals, goal{what: fmt.Sprintf("bare gateways, p50 of a transaction more than direct, %v before each", pause), have: median(took[1]) - median(took[0]), want: 1.5, atMost: true, unit: "ms"})
	return nil
}

// load sends many at once through the gateways.
func (b *bareGateways) load(ctx context.Context, o *options) error {
	const atOnce = 16
	cost := &matrixCost{gatewayCost: gatewayCost{gateways: b.gateways}}
	if err := cost.begin(ctx); err != nil {
		return err
	}
	parts, within := errgroup.WithContext(ctx)
	var next atomic.Int64
	begun := time.Now()
	for range atOnce {
		parts.Go(func() error {
			for n := next.Add(1); n <= 2*bareRequests; n = next.Add(1) {
				if _, err := b.transaction(within, b.client, n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := parts.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(o.out, "%d transactions at once: %.0f/s\n", atOnce, 2*bareRequests/time.Since(begun).Seconds())
	if err := cost.end(ctx); err != nil {
		return err
	}
	cost.report(o, "under load")
	return nil
}
