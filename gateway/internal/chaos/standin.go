package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/yggate/yggate/federation/localca"
	"github.com/yggate/yggate/federation/xmpp/frame"
	"github.com/yggate/yggate/federation/xmpp/s2s"
)

// standIn is a local XMPP server as the gateway sees one. Package s2s is
// symmetrical, so it plays that part too: what is the gateway's local server there
// is the gateway here, and its certificates come from the gateway's own CA, as
// `yggate setup` has it.
type standIn struct {
	site   *site
	ledger *ledger
	config s2s.Config

	mu      sync.Mutex
	up      chan struct{} // closed while it runs
	streams *s2s.Streams  // nil while it does not
	stop    context.CancelFunc
	ended   chan error
}

// Limits of a server on the same machine that wants to be back soon.
var standInLimits = s2s.Limits{Backoff: 50 * time.Millisecond, Handshake: 5 * time.Second}

func newStandIn(s *site, l *ledger, caDir string, log *slog.Logger) (*standIn, error) {
	ca, err := localca.Open(caDir)
	if err != nil {
		return nil, err
	}
	in := &standIn{site: s, ledger: l, up: make(chan struct{})}
	in.config = s2s.Config{
		Listen: s.serverAddr, CA: ca, Servers: []s2s.Server{{Addr: s.toGateway.Addr()}}, Handler: in,
		Limits: standInLimits, Log: log.With("server", s.name),
	}
	return in, nil
}

// start brings the server up and returns when it listens.
func (in *standIn) start() error {
	streams, err := s2s.New(in.config)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- streams.Run(ctx) }()
	for streams.Addr() == nil {
		select {
		case err := <-ended:
			stop()
			return fmt.Errorf("start the server of %s: %w", in.site.name, err)
		case <-time.After(time.Millisecond):
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.streams, in.stop, in.ended = streams, stop, ended
	close(in.up)
	return nil
}

// halt ends the server with all its streams. When it returns, everything that was
// read from them is in the ledger.
func (in *standIn) halt() error {
	in.mu.Lock()
	stop, ended := in.stop, in.ended
	if in.streams == nil {
		in.mu.Unlock()
		return nil
	}
	in.streams, in.up = nil, make(chan struct{})
	in.mu.Unlock()
	stop()
	return <-ended
}

// running waits until the server is up.
func (in *standIn) running(ctx context.Context) (*s2s.Streams, error) {
	for {
		in.mu.Lock()
		streams, up := in.streams, in.up
		in.mu.Unlock()
		if streams != nil {
			return streams, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// hand gives messages to the gateway and returns how many from the first it has
// acknowledged (XEP-0198).
func (in *standIn) hand(ctx context.Context, from, to string, stanzas [][]byte) (n int, err error) {
	streams, err := in.running(ctx)
	if err != nil {
		return 0, err
	}
	return streams.Hand(ctx, from, to, stanzas...)
}

// drained waits until what a gateway that is dead had written has been read: its
// streams have ended.
func (in *standIn) drained(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		in.mu.Lock()
		streams := in.streams
		in.mu.Unlock()
		if streams == nil || !hasInbound(streams.Status()) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("the streams of a gateway that is gone do not end")
		}
	}
}

func hasInbound(all []s2s.StreamStatus) bool {
	for _, st := range all {
		if st.Dir == "in" {
			return true
		}
	}
	return false
}

// Open implements s2s.Handler.
func (in *standIn) Open(string, string) error { return nil }

// Stanzas implements s2s.Handler: the server has a stanza once it is in the
// ledger.
func (in *standIn) Stanzas(_ context.Context, _, _ string, batch [][]byte, settled func()) error {
	life := in.site.life.Load()
	for _, stanza := range batch {
		if r, ok := read(stanza); ok {
			in.ledger.note(r, in.site, life)
		}
	}
	settled()
	return nil
}

// Skipped implements s2s.Handler: nothing that large is sent.
func (in *standIn) Skipped(_ context.Context, _, _ string, stanza *frame.Skipped, _ func()) error {
	return stanza
}

// Failed implements s2s.Handler: nothing is sent that would come here.
func (in *standIn) Failed(string, string, [][]byte, error) {}

// LocalLost implements s2s.Handler: that the gateway dies is no news.
func (in *standIn) LocalLost(string) {}

// LocalBack implements s2s.Handler.
func (in *standIn) LocalBack(string) {}
