package matrix

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	// upstreamPatience is how long the operator's own proxy may take to answer.
	upstreamPatience = 30 * time.Second
	// upstreamHeader bounds its answer.
	upstreamHeader = 16 << 10
	// tunnelIdle ends a tunnel on which nothing moves; homeservers open another.
	tunnelIdle = 15 * time.Minute
)

// pass hands a CONNECT to the operator's own proxy and joins the two connections.
func (o *outbound) pass(ctx context.Context, w http.ResponseWriter, authority string) {
	far, err := dialUpstream(ctx, o.cfg.UpstreamProxy, authority)
	if err != nil {
		o.log.Info("the upstream proxy does not connect", "err", err)
		o.refuseConnect(w, "upstream", http.StatusBadGateway, "matrix.upstream_proxy does not connect")
		return
	}
	defer far.Close()
	near, err := hijack(w)
	if err != nil {
		return
	}
	defer near.Close()
	defer context.AfterFunc(ctx, func() { near.Close(); far.Close() })()
	if err := writeStatus(near, http.StatusOK, "Connection established"); err != nil {
		return
	}
	join(near, far)
}

// dialUpstream has the proxy open a tunnel to authority, which it resolves.
func dialUpstream(ctx context.Context, proxy *url.URL, authority string) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", proxy.Host)
	if err != nil {
		return nil, fmt.Errorf("dial upstream proxy: %w", err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: authority}, Host: authority, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask upstream proxy: %w", err)
	}
	r := bufio.NewReader(io.LimitReader(conn, upstreamHeader))
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("read answer of upstream proxy: %w", err)
	}
	if res.StatusCode != http.StatusOK { // CONNECT: any other is no tunnel, or has a body
		return nil, fmt.Errorf("upstream proxy answers %s", res.Status)
	}
	if !stop() {
		return nil, fmt.Errorf("ask upstream proxy: %w", context.Cause(ctx))
	}
	early, err := r.Peek(r.Buffered())
	if err != nil {
		return nil, err
	}
	return &earlyConn{conn, early}, nil
}

// join carries bytes both ways until both sides have ended, or one has failed, or
// nothing moves any more.
func join(a, b net.Conn) {
	done := make(chan error, 2)
	go func() { done <- carry(a, b) }()
	go func() { done <- carry(b, a) }()
	if err := <-done; err == nil {
		err = <-done
		if err == nil {
			return
		}
		done <- nil
	}
	a.Close()
	b.Close()
	<-done
}

// carry copies from one connection to the other and passes its end on.
func carry(to, from net.Conn) error {
	buf := make([]byte, 32<<10)
	for {
		if err := from.SetReadDeadline(time.Now().Add(tunnelIdle)); err != nil {
			return err
		}
		n, err := from.Read(buf)
		if n > 0 {
			if err := to.SetWriteDeadline(time.Now().Add(tunnelIdle)); err != nil {
				return err
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return closeWrite(to)
		case err != nil:
			return err
		}
	}
}

// closeWrite ends one direction of a connection, or all of it where it has no such
// thing.
func closeWrite(conn net.Conn) error {
	if early, ok := conn.(*earlyConn); ok {
		conn = early.Conn
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}
