package matrix

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"
)

const (
	// maxConnections bounds those of each listener. A homeserver keeps one or two
	// for each peer, and opens dozens when it joins a room.
	maxConnections = 512
	// arrivalIdle ends a connection without requests; homeservers keep theirs for
	// two minutes or less.
	arrivalIdle = 3 * time.Minute
	// requestHeader bounds the header of a request; net/http adds 4 KiB to it.
	requestHeader = maxTarget + 8<<10
)

// Run listens for the homeserver and keeps homeservers awake until ctx is done,
// then returns nil.
func (a *Adapter) Run(ctx context.Context) error {
	var proxy net.Listener
	var direct []net.Listener
	var listen net.ListenConfig
	closeAll := func() {
		if proxy != nil {
			proxy.Close()
		}
		for _, l := range direct {
			l.Close()
		}
	}
	defer closeAll()
	if a.cfg.Proxy.IsValid() {
		l, err := listen.Listen(ctx, "tcp", a.cfg.Proxy.String())
		if err != nil {
			return fmt.Errorf("listen for the homeserver's proxy requests: %w", err)
		}
		proxy = l
	}
	for _, addr := range a.cfg.Listen {
		l, err := listen.Listen(ctx, "tcp", addr.String())
		if err != nil {
			return fmt.Errorf("listen for the homeserver: %w", err)
		}
		direct = append(direct, l)
	}
	return a.out.run(ctx, proxy, direct)
}

// run serves the homeserver on listeners of which proxy may be nil, until ctx is
// done and all of its goroutines have ended. It closes the listeners.
func (o *outbound) run(ctx context.Context, proxy net.Listener, direct []net.Listener) error {
	parts, ctx := errgroup.WithContext(ctx)
	base := func(net.Listener) context.Context { return ctx }
	requests := &http.Server{
		Handler: o, BaseContext: base, ConnContext: withArrival, ErrorLog: serverLog(o.log),
		ReadHeaderTimeout: o.patience, IdleTimeout: arrivalIdle, MaxHeaderBytes: requestHeader,
		DisableGeneralOptionsHandler: true, // it would answer in our stead
	}
	parts.Go(func() error { return serve(ctx, requests, o.arrivals) })
	if proxy != nil {
		connects := &http.Server{
			Handler: http.HandlerFunc(o.connect), BaseContext: base, ErrorLog: serverLog(o.log),
			// One request a connection: nobody has a reason to wait on one.
			ReadHeaderTimeout: o.patience, IdleTimeout: o.patience, MaxHeaderBytes: connectHeader,
			DisableGeneralOptionsHandler: true,
		}
		parts.Go(func() error { return serve(ctx, connects, o.limited(proxy)) })
	}
	for _, l := range direct {
		parts.Go(func() error { return o.acceptArrivals(ctx, o.limited(l)) })
	}
	parts.Go(func() error { return o.wakes.run(ctx) })
	err := parts.Wait()
	o.handlers.wait()
	return err
}

// limited bounds who may connect, and how many connections there are.
func (o *outbound) limited(l net.Listener) net.Listener {
	return netutil.LimitListener(allowed{l, o.cfg.AllowFrom, func(remote net.Addr) {
		o.metrics.strangers.Inc()
		o.sometimes.Do(func() {
			o.log.Warn("a connection from an address that is not in matrix.allow_from is refused", "remote", remote.String())
		})
	}}, maxConnections)
}

// serve runs a server until ctx is done; what it was answering then has a moment
// to find out that its context has ended.
func serve(ctx context.Context, s *http.Server, l net.Listener) error {
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := s.Shutdown(within)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.Close()
		}
		ended <- err
	})
	err := s.Serve(l)
	if stop() {
		return errors.Join(err, s.Close())
	}
	if err := <-ended; err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// serverLog is where net/http says what goes wrong on a connection.
func serverLog(l *slog.Logger) *log.Logger {
	return log.New(debugWriter{l}, "", 0)
}

type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimSpace(string(p)), "side", "homeserver")
	return len(p), nil
}

// handlers counts what is at work, so that nothing of it is left when Run returns.
type handlers struct {
	mu     sync.Mutex
	closed bool
	work   sync.WaitGroup
}

// enter is false once wait was called.
func (h *handlers) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.work.Add(1)
	}
	return !h.closed
}

func (h *handlers) leave() { h.work.Done() }

func (h *handlers) wait() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.work.Wait()
}
