package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/link"
	"github.com/yggate/yggate/gateway/internal/peertest"
	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// bareLink is what lies between two gateways, without the gateways: their link over
// two nodes that they embed, in this process.
type bareLink struct {
	from *link.Links
	to   federation.GridID
}

const (
	linkPort = 9001
	// livePath is where the far end of a bareLink has bodies.
	livePath = "/v1/http/bench/"
)

// end is one side of a link.
type end struct {
	id    *federation.Identity
	node  *ygg.Node
	links *link.Links
	dir   *federation.Directory
	up    chan struct{}
}

// startLink starts both ends and waits until the link is up.
func startLink(ctx context.Context, dir string) (_ *bareLink, stop func() error, err error) {
	mesh := "tcp://" + netip.AddrPortFrom(peertest.Loopback(), 9001).String()
	var ends [2]*end
	for i, cfg := range []ygg.Config{{Listen: []string{mesh}}, {Peers: []string{mesh}}} {
		if ends[i], err = newEnd(filepath.Join(dir, strconv.Itoa(i)), cfg); err != nil {
			return nil, nil, fmt.Errorf("start a link: %w", err)
		}
	}
	running, cancel := context.WithCancel(context.Background())
	parts, running := errgroup.WithContext(running)
	stop = func() error {
		cancel()
		return parts.Wait()
	}
	for i, e := range ends {
		e.know(ends[1-i])
		parts.Go(func() error { return e.node.Run(running) })
		parts.Go(func() error { return e.links.Run(running) })
	}
	for _, e := range ends {
		select {
		case <-e.up:
		case <-time.After(time.Minute):
			return nil, nil, errors.Join(errors.New("start a link: it is not up after a minute"), stop())
		case <-running.Done():
			return nil, nil, fmt.Errorf("start a link: %w", stop())
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), stop())
		}
	}
	return &bareLink{from: ends[0].links, to: ends[1].id.ID()}, stop, nil
}

func newEnd(dir string, cfg ygg.Config) (*end, error) {
	e := &end{dir: federation.NewDirectory(), up: make(chan struct{}, 64)}
	var err error
	if e.id, _, err = federation.CreateIdentity(dir); err != nil {
		return nil, err
	}
	if _, cfg.Key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	cfg.Accept = func(transports.Addr) bool { return true }
	if e.node, err = ygg.New(cfg); err != nil {
		return nil, err
	}
	e.links, err = link.New(link.Config{
		Directory: e.dir, Leaf: e.id.Leaf, Transports: map[string]transports.Transport{ygg.Network: e.node},
		Port: linkPort, Epoch: 1, Software: "bench",
		ServeLane: func(context.Context, *federation.Peer, string, io.ReadWriteCloser) error {
			return errors.New("there are no lanes")
		},
		OnState: func(s link.Event) {
			if s.Up {
				select {
				case e.up <- struct{}{}:
				default: // nobody waits any more
				}
			}
		},
	})
	if err == nil {
		e.links.Handle(livePath, http.HandlerFunc(serveBody))
	}
	return e, err
}

// know makes the other end a peer.
func (e *end) know(other *end) {
	at := other.node.Status().Self
	e.dir.Publish(federation.NewSnapshot([]*federation.Peer{{
		ID: other.id.ID(), Key: other.id.Key(), Name: "other", State: federation.StateActive,
		Descriptor: &federation.Descriptor{Nodes: []federation.Node{{Addrs: []string{at.Net + ":" + at.Node}}}},
		Policy:     federation.Policy{Allow: map[federation.Protocol]bool{federation.Matrix: true}, Limits: federation.DefaultLimits()},
	}}, nil, nil))
}

// download has the far end send a body in a live request.
func (l *bareLink) download(ctx context.Context, size int64) (whole, first time.Duration, err error) {
	ask := func(r *http.Request) (*http.Response, error) { return l.from.RoundTrip(r.Context(), l.to, r) }
	return getBody(ctx, ask, fmt.Sprintf("https://peer%s%d", livePath, size), size)
}

// serveBody answers with as many bytes as the last element of the path says.
func serveBody(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(path.Base(r.URL.Path), 10, 64)
	if err != nil {
		http.Error(w, "want the size at the end of the path", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for buf := make([]byte, 256<<10); left > 0; {
		n, err := w.Write(buf[:min(left, int64(len(buf)))])
		if err != nil {
			return // the reader finds out that the rest is missing
		}
		left -= int64(n)
	}
}
