package peertest

import (
	"context"
	"net"
)

// Netns is a network namespace made by this process. A nil *Netns is the
// namespace that this process itself is in.
type Netns struct {
	// Name is what `ip netns` shows.
	Name string
}

// wrap makes argv run in the namespace.
func (n *Netns) wrap(argv []string) []string {
	if n == nil {
		return argv
	}
	return append([]string{"ip", "netns", "exec", n.Name}, argv...)
}

// Dial connects from within the namespace.
func (n *Netns) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}
